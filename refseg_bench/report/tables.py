"""Results of runs as one table, and that table as text: terminal, Markdown, LaTeX, CSV, JSON.

Every number stands beside its protocol and its coverage. Metrics of different protocols never share
a column without a mark.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from refseg_bench.config.components import protocol_of
from refseg_bench.datasets.verify import manifest
from refseg_bench.errors import StoreError, printable, shown
from refseg_bench.files.store_io import parse_json, without_nan
from refseg_bench.report.compare import less_is_better, titles
from refseg_bench.run.inputs import Present, recorded
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.scoring.results import level_of
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.scoring.table import ScoreTable, breakdown, splitting
from refseg_bench.types import Estimate, Result

if TYPE_CHECKING:
    import pandas

#: A sample's costs → what they are called above a column.
COST = {
    "seconds": "s",
    "calls": "calls",
    "replayed": "replayed",
    "images": "images",
    "prompt_tokens": "tokens in",
    "answer_tokens": "tokens out",
    "reply_seconds": "reply s",
}
_COST_NOTE = (
    "per sample: s = seconds it was worked on; replayed = of its calls, those with a kept reply; "
    "reply s = seconds waited for replies when they were made"
)
#: Widest a name may be in a terminal before it is folded onto a second line.
_NAME_WIDTH = 34
#: The same above a column.
_FOLDED = 20


@dataclass(frozen=True)
class Row:
    """One run under one protocol."""

    #: run, method, dataset: what was run, by their names.
    run: str
    method: str
    dataset: str
    result: Result  #: its numbers
    label: str = ""  #: what the run is called beside the others
    sees_targets: bool = False  #: True if its method is shown the truth
    part: str = ""  #: which part of the split it was limited to; empty = the whole
    knows: str = ""  #: what its method answers from
    place: tuple[int, int] = (0, 0)  #: of the protocol among those of the data set, the newest version first
    root: Path = Path()  #: the run's folder: two of them may have one name
    #: What a sample took on average, see :meth:`~refseg_bench.run.store.RunStore.cost`.
    cost: Mapping[str, float] = field(default_factory=dict)
    split: str = ""

    @property
    def about(self) -> dict[str, str]:
        """What was run and scored, by column."""
        names = {"run": self.run, "method": self.method, "dataset": self.dataset, "split": self.split}
        return {**names, "label": self.label, "part": self.part, "protocol": self.result.protocol}

    @property
    def lacks(self) -> bool:
        """Whether it rests on a part of the samples."""
        return bool(self.part) or not self.result.whole

    @property
    def ranked(self) -> bool:
        """Whether it may be the best: neither what sees the truth nor what answers a part of the samples."""
        return not (self.sees_targets or self.lacks)


@dataclass(frozen=True)
class Cell:
    """One cell: its number in print, or plain text."""

    text: str  #: the number or words
    interval: str = ""  #: printed small below or beside it
    best: bool = False  #: the best of its column
    delta: str = ""  #: difference to a published number
    mark: str = ""  #: letters that refer to the table's notes


@dataclass(frozen=True)
class ResultTable:
    """A rectangle of cells with a caption."""

    caption: str  #: data set, protocol, unit of the numbers
    header: tuple[str, ...]  #: column titles
    rows: tuple[tuple[Cell, ...], ...]  #: cells, one row per run
    sections: Mapping[int, str] = field(default_factory=dict)  #: row number → title printed above it
    notes: tuple[str, ...] = ()  #: what the marks mean, and anything else to be said below
    names: int = 1  #: how many leading columns hold words rather than numbers


def rows_of(stores: Iterable[RunStore]) -> list[Row]:
    """All result rows of the runs: floors, then each method with its variants, then what sees the truth."""
    runs = [(store, store.info()) for store in stores]
    first = {info.choices.get("method"): place for place, (_, info) in reversed([*enumerate(runs)])}
    runs.sort(key=lambda pair: (pair[1].rank, first[pair[1].choices.get("method")]))
    labels: dict[Path, str] = {}
    groups: dict[tuple[str, str], list[tuple[RunStore, RunInfo]]] = {}
    for store, info in runs:
        groups.setdefault(info.data, []).append((store, info))
    for group in groups.values():
        named = zip(group, titles([info for _, info in group]), strict=True)
        labels.update({store.root: title for (store, _), title in named})
    rows = []
    for store, info in runs:
        method, (dataset, split) = info.choices.get("method", "?"), info.data
        knows = f"masks of other code, read from {info.source}" if info.source else info.knows
        about = (labels[store.root], info.sees_targets, info.part, knows)
        for protocol, result in store.results().items():
            place = info.lead(protocol)
            cost = _cost(store.made_from(protocol))
            row = Row(store.root.name, method, dataset, result, *about, place, store.root, cost, split)
            rows.append(replace(row, part=row.part or result.part))
    return rows


def _cost(made_from: Mapping[str, str]) -> dict[str, float]:
    try:
        told = parse_json(made_from.get("cost", "{}"))
        known = {name: float(told[name]) for name in COST if isinstance(told.get(name), int | float)}
    except (ValueError, AttributeError, OverflowError):
        return {}
    return {name: value for name, value in known.items() if 0 <= value < math.inf}


def costs_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Which costs to show: none where no row is of a chat model, for which they are what is compared."""
    rows = list(rows)
    asked = any("calls" in row.cost for row in rows)
    return tuple(name for name in COST if asked and any(name in row.cost for row in rows))


def headlines(store: RunStore) -> Iterator[str]:
    """What a run came to, a line per protocol: its first metric, in percent."""
    for row in rows_of([store]):
        name = next(iter(row.result.metrics))
        yield f"{row.run}: {name} {_headline(row.result).text} ({row.result.protocol})"


def leave_out_outdated(
    stores: Sequence[RunStore],
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    shared: dict[int, Present] | None = None,
) -> None:
    """Take results out of sight that were made from other predictions or data than there are now.

    No data set is opened for it: the frames and the data set's own files are looked for where the last
    command that opened it found them. A result of an older version doesn't tell what it was made from and
    stands; so does one whose data set is not on this machine. What was predicted on other data scoring
    refuses. ``shared``: a command's own, whose runs of one set look at the files once.
    """
    shared = {} if shared is None else shared
    for store in stores:
        results = store.results()
        dataset = recorded(store) if results else None
        present = dataset.present(shared) if dataset else None
        for protocol in results:
            made = store.made_from(protocol)
            if not {"lines", "facts", "state", "files"} <= made.keys():
                continue
            why, hint = "", "tells where, the same `refseg run` makes it again"
            if made["lines"] != store.mark(made)["lines"]:
                why, hint = "predictions", "makes it again"
            elif dataset is not None and present is not None:
                why = present.unlike(made, dataset)
            if why:
                store.outdated.add(protocol)
                say(
                    f"{store.root}: the result under {protocol} is not shown, for {why} have changed since; "
                    f"`refseg score {shlex.quote(str(store.root))} --protocol {shlex.quote(protocol)}` {hint}"
                )


def tabulate(rows: Sequence[Row]) -> list[ResultTable]:
    """One table per dataset and protocol; the best of each metric is marked.

    Neither a method that sees the truth nor a row of a part of the samples is the best of anything.
    """
    sets = {row.dataset for row in rows}
    return [_table(*names, group, sets) for names, group in _together(rows).items()]


def _together(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by data set (where there are several of its splits, by split) and protocol, its own ones first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    rows = list(rows)
    pairs = {(row.dataset, row.split) for row in rows}
    for row in rows:
        several = len({split for dataset, split in pairs if dataset == row.dataset}) > 1
        name = f"{row.dataset} {row.split}" if several else row.dataset
        groups.setdefault((name, row.result.protocol), []).append(row)
    sets = list(dict.fromkeys(dataset for dataset, _ in groups))
    order = sorted(groups, key=lambda key: (sets.index(key[0]), min(row.place for row in groups[key])))
    return {key: groups[key] for key in order}


def tables_of(stores: Sequence[RunStore]) -> Iterator[ResultTable]:
    """The tables of a report, data set by data set.

    Under the data set's own protocol the headline metric by the expressions' type, where they have one, and
    all metrics; then the headline metrics of all protocols side by side: the same masks under other rules.
    """
    all_rows = rows_of(stores)
    groups, sets = _together(all_rows), {row.dataset for row in all_rows}
    for dataset in dict.fromkeys(dataset for dataset, _ in groups):
        own = {protocol: rows for (name, protocol), rows in groups.items() if name == dataset}
        protocol, rows = next(iter(own.items()))
        yield from _by_type(dataset, protocol, rows, stores)
        yield _table(dataset, protocol, rows, sets)
        if len(own) > 1:
            yield _protocols(dataset, own)


def _protocols(dataset: str, groups: Mapping[str, Sequence[Row]]) -> ResultTable:
    """The headline metric of every run under every protocol it was scored under."""
    runs = dict.fromkeys((row.root, row.label) for rows in groups.values() for row in rows)
    header, columns = ["method"], []
    for protocol, rows in groups.items():
        metric = next(iter(rows[0].result.metrics))
        header.append(f"{protocol}\n{metric}")
        columns.append({row.root: row.result for row in rows})
    body = [
        (Cell(label), *(_headline(column[run]) if run in column else Cell("–") for column in columns))
        for run, label in runs
    ]
    notes = ["One of them with all its metrics: refseg report --protocol ID"]
    if not all(row.result.whole for rows in groups.values() for row in rows):
        notes.insert(0, "*: samples failed or are missing")
    return ResultTable(
        f"{dataset} · the same masks under several protocols · percent",
        tuple(header),
        tuple(body),
        notes=tuple(notes),
    )


def _headline(result: Result) -> Cell:
    name, estimate = next(iter(result.metrics.items()))
    cell = number_cell(estimate, result.percent(name))
    return cell if result.whole else replace(cell, text=f"{cell.text}*")


def _by_type(
    dataset: str, protocol: str, rows: Sequence[Row], stores: Iterable[RunStore]
) -> Iterator[ResultTable]:
    """The first metric that has a value by the expressions' type, where every run knows it."""
    runs = {store.root: store for store in stores}
    try:
        units = [ScoreTable.read_parquet(*runs[row.root].samples(protocol)) for row in rows]
    except StoreError:
        return  # a row stands without its samples; what needs them (compare, pages) tells
    if not all("type" in table.attrs for table in units) or "type" not in splitting(units):
        return
    rules = protocol_of(rows[0].result)
    parts = [breakdown(rules, table, "type", Bootstrap(resamples=0)) for table in units]
    kinds = {kind: sorted({part[kind][0] for part in parts if kind in part}) for kind in chain(*parts)}
    headline = shared_by(parts, rules.metrics)
    if headline is None:
        return  # the types are the protocol's own columns
    percent = rules.policy.percent(headline)
    body = [(Cell("n"), *(Cell("–".join(map(str, n))) for n in kinds.values()))]
    for row, part in zip(rows, parts, strict=True):
        found = (part[kind][1][headline] if kind in part else None for kind in kinds)
        body.append((Cell(row.label), *(Cell(number_cell(estimate, percent).text) for estimate in found)))
    # One line a method: what stands here is what it knows and doesn't.
    known = {row.method: f"{row.method}: {row.knows}" for row in rows if row.knows}
    yield ResultTable(
        f"{dataset} · {protocol} · {headline} by type, percent",
        ("method", *kinds),
        tuple(body),
        notes=tuple(known.values()),
    )


def shared_by(
    parts: Iterable[Mapping[str, tuple[int, Mapping[str, Estimate]]]], metrics: Iterable[str]
) -> str | None:
    """The first metric that all groups have: a mean over kinds of targets has no value where one lacks."""
    groups = [found for part in parts for _, found in part.values()]
    return next((n for n in metrics if all(math.isfinite(g[n].value) for g in groups)), None)


def _table(dataset: str, protocol: str, rows: list[Row], sets: Collection[str]) -> ResultTable:
    names = list(dict.fromkeys(name for row in rows for name in row.result.metrics))
    rules = [unsettled(row.result) for row in rows]
    mixed = len({*rules}) > 1
    # The same units with other facts: the masks of the data set were replaced between two scorings.
    truths = {row.result.truth for row in rows}
    whole = {row.result.truth for row in rows if row.ranked and any(row.result.truth)}
    replaced = len({units for units, _ in truths}) < len(truths) or len(whole) > 1
    top = {name: best_of(rows, name) for name in names}
    # Shares of the answers that show nothing, where any is there: said so, and empty without a word.
    nothing = [a for a in ("absent", "empty") if any(row.result.answers[a] for row in rows)]
    costs = costs_of(rows)
    body = []
    for row in rows:
        cells = [Cell(row.label or row.run)]
        for name in names:
            estimate = row.result.metrics.get(name)
            percent = row.result.percent(name)
            best = estimate and equal_in_print(estimate.value * percent, top[name] * percent)
            cells.append(number_cell(estimate, percent, bool(best) and row.ranked and len(rows) > 1))
        r = row.result
        cells += [Cell(f"{r.n}"), Cell(f"{r.failed}"), Cell(f"{r.missing}")]
        all_answers = sum(r.answers.values())
        cells += [Cell(f"{100 * r.answers[a] / all_answers:.1f}" if all_answers else "–") for a in nothing]
        cells += [Cell(_amount(row.cost.get(name))) for name in costs]
        body.append(tuple(cells))
    level = level_of([row.result for row in rows])
    notes = [f"{row.label or row.run}: {row.result.part}" for row in rows if row.result.part]
    facts = manifest(rows[0].dataset)
    if facts is not None and facts.unlike in sets:
        notes.append(f"Not comparable with {facts.unlike}: the same clips, other sentences.")
    if replaced:
        notes.append("the rows were scored against other samples or masks: `refseg score RUNS` does it again")
    said = "each row its own way, as noted" if mixed else rules[0]
    notes += [f"{row.label or row.run}: {rule}" for row, rule in zip(rows, rules, strict=True) if mixed]
    return ResultTable(
        f"{dataset} · {protocol} · percent{f', {level} intervals clustered by clip' if level else ''}"
        + (f" · not settled by the publication: {said}" if said else ""),
        ("method", *names, "n", "failed", "missing", *nothing, *(COST[name] for name in costs)),
        tuple(body),
        notes=(*notes, _COST_NOTE) if costs else tuple(notes),
    )


def best_of(rows: Iterable[Row], metric: str) -> float:
    """A metric's best value; NaN where none is: of rows of other samples, masks or open options no one is."""
    found = [row.result for row in rows if row.ranked]
    truths = {result.truth for result in found if any(result.truth)}
    alike = len(truths) < 2 and len({*map(unsettled, found)}) < 2
    values = [result.metrics[metric].value for result in found if alike and metric in result.metrics]
    better = min if less_is_better(metric) else max
    return better(filter(math.isfinite, values), default=math.nan)


def unsettled(result: Result) -> str:
    """How the options were set that the publication leaves open."""
    found = result.details.get("unsettled")
    return printable(", ".join(f"{k}={v}" for k, v in (found if isinstance(found, Mapping) else {}).items()))


def _amount(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")


def in_percent(result: Result, metric: str) -> Estimate:
    """A result's metric in percent, whatever its own unit is."""
    percent, estimate = result.percent(metric), result.metrics[metric]
    return Estimate(estimate.value * percent, estimate.low * percent, estimate.high * percent)


def equal_in_print(one: float, other: float) -> bool:
    """Whether two numbers look the same in a table: then both are the best or neither is.

    >>> equal_in_print(45.04, 44.96), equal_in_print(45.06, 44.96)
    (True, False)
    """
    return f"{one:z.1f}" == f"{other:z.1f}"


def number_cell(estimate: Estimate | None, percent: float, best: bool = False) -> Cell:
    """An estimate in print; ``percent`` is what its unit is multiplied with."""
    if estimate is None or not math.isfinite(estimate.value):
        return Cell("–")
    interval = ""
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        interval = f"{estimate.low * percent:z.1f}–{estimate.high * percent:z.1f}"
    return Cell(f"{estimate.value * percent:z.1f}", interval, best)


# ── the same table in every form ─────────────────────────────────────────────


def to_terminal(table: ResultTable, console: Console) -> None:
    """Print with rich; where turning doesn't make it fit the terminal it continues below, names repeated."""
    table = _shortened(table)
    console.print(Text(shown(table.caption), style="italic"), soft_wrap=True)
    table = _narrowed(table, console.width)
    for columns in _pages(table, console.width):
        grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
        for index in columns:
            name = index < table.names
            grid.add_column(
                Text(shown(table.header[index])),
                justify="left" if name else "right",
                overflow="fold",
                min_width=max(map(len, table.sections.values()), default=0) if index == 0 else None,
                no_wrap=not name,
                max_width=_name_width(table, console.width) if name else None,
            )
        for number, row in enumerate(table.rows):
            if number in table.sections:
                grid.add_section()
                grid.add_row(Text(shown(table.sections[number]), style="italic"))
            grid.add_row(*(_rich(row[index]) for index in columns))
        console.print(grid)
    for note in table.notes:
        console.print(Text(shown(note), style="dim"), soft_wrap=True)


def show_tables(stores: Sequence[RunStore], console: Console | None = None) -> None:
    """Print :func:`tables_of` of the results that stand; the others are told on standard error."""
    leave_out_outdated(stores)
    for table in tables_of(stores):
        to_terminal(table, console or Console())


def _shortened(table: ResultTable) -> ResultTable:
    """A table whose names say what differs: what all begin with is their column's title, what all end with
    closes the caption.
    """
    if table.names > 1 or table.sections:
        return table
    counts = [number for number, row in enumerate(table.rows) if row[0].text == "n"]
    words = [row[0].text.split(" · ") for number, row in enumerate(table.rows) if number not in counts]
    room = min(map(len, words), default=1) - 1 if len(words) > 1 else 0
    begin = next((k for k in range(room) if len({name[k] for name in words}) > 1), room)
    end = next((k for k in range(room - begin) if len({name[-1 - k] for name in words}) > 1), room - begin)
    if not begin + end:
        return table
    kept = iter(" · ".join(name[begin : len(name) - end]) for name in words)
    rows = tuple(
        row if n in counts else (replace(row[0], text=next(kept)), *row[1:])
        for n, row in enumerate(table.rows)
    )
    header = (" · ".join(words[0][:begin]) or table.header[0], *table.header[1:])
    caption = " · ".join([table.caption, *words[0][len(words[0]) - end :]])
    return replace(table, caption=caption, header=header, rows=rows)


def _narrowed(table: ResultTable, width: int) -> ResultTable:
    """A table too wide for the terminal on its side, or else with intervals in the first column only."""
    if len(_pages(table, width)) == 1:
        return table
    if table.names == 1 and not table.sections:
        sides = zip(*table.rows, strict=True)
        heads, *body = sides
        rows = tuple((Cell(name), *cells) for name, cells in zip(table.header[1:], body, strict=True))
        turned = replace(
            table, header=("", *("\n".join(wrap(cell.text, _FOLDED)) for cell in heads)), rows=rows
        )
        if len(_pages(turned, width)) == 1:
            return turned
    keep = table.names + 1
    plain = tuple((*row[:keep], *(replace(cell, interval="") for cell in row[keep:])) for row in table.rows)
    bare = replace(table, rows=plain)
    return bare if len(_pages(bare, width)) == 1 else table


def _wide(table: ResultTable, index: int) -> int:
    """Characters that a column takes."""
    cells = [_rich(row[index]).plain for row in table.rows]
    titles = table.sections.values() if index == 0 else ()
    return max(len(line) for text in (table.header[index], *titles, *cells) for line in text.split("\n"))


def _name_width(table: ResultTable, width: int) -> int:
    """Characters of a name before it is folded: all there are where everything fits beside it."""
    others = sum(2 + _wide(table, index) for index in range(table.names, len(table.header)))
    return max(_NAME_WIDTH, (width - others - 2) // max(1, table.names) - 2)


def _pages(table: ResultTable, width: int) -> list[list[int]]:
    """Column numbers of each part that fits the width."""
    most = _name_width(table, width)

    def wide(index: int) -> int:
        return 2 + (min(_wide(table, index), most) if index < table.names else _wide(table, index))

    names = list(range(table.names))
    room = width - sum(map(wide, names)) - 2
    pages: list[list[int]] = [list(names)]
    used = 0
    for index in range(table.names, len(table.header)):
        if used and used + wide(index) > room:
            pages.append(list(names))
            used = 0
        pages[-1].append(index)
        used += wide(index)
    return pages


def _rich(cell: Cell) -> Text:
    text = Text(shown(cell.text), style="bold" if cell.best else "")
    if cell.mark:
        text.append(cell.mark, style="dim")
    if cell.delta:
        text.append(f" {cell.delta}")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="dim")
    return text


def to_markdown(table: ResultTable) -> str:
    """A GitHub-flavoured table under its caption."""

    def cell(c: Cell) -> str:
        text = f"**{markdown(c.text)}**" if c.best else markdown(c.text)
        text += f"<sup>{c.mark}</sup>" if c.mark else ""
        text += f" {c.delta}" if c.delta else ""
        return f"{text} ({c.interval})" if c.interval else text

    lines = [
        f"**{markdown(table.caption)}**",
        "",
        "| " + " | ".join(markdown(h) for h in table.header) + " |",
        "|" + "|".join(" --- " if i < table.names else " ---: " for i in range(len(table.header))) + "|",
    ]
    for number, row in enumerate(table.rows):
        if number in table.sections:
            lines.append(f"| *{markdown(table.sections[number])}* |" + " |" * (len(table.header) - 1))
        lines.append("| " + " | ".join(cell(c) for c in row) + " |")
    if table.notes:
        lines += ["", *(f"- {markdown(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def markdown(text: str) -> str:
    """Text as Markdown shows it: no markup, no HTML, on one line."""
    text = printable(" ".join(text.split())).replace("&", "&amp;")
    return "".join(f"\\{character}" if character in "\\`*_[]<>|" else character for character in text)


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"$\cdot$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "τ": r"$\tau$",
    "†": r"$\dagger$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\n": " ",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def tex(text: str) -> str:
    """Text as LaTeX shows it."""
    text = printable(text.replace("\n", " "))
    return "".join(_TEX.get(character, character) for character in text)


def to_latex(table: ResultTable) -> str:
    r"""A booktabs table; needs ``\usepackage{booktabs}``, and ``graphicx`` from nine columns on."""

    def cell(c: Cell) -> str:
        text = rf"\textbf{{{tex(c.text)}}}" if c.best else tex(c.text)
        text += rf"\textsuperscript{{{tex(c.mark)}}}" if c.mark else ""
        text += f" {tex(c.delta)}" if c.delta else ""
        return rf"{text} {{\scriptsize {tex(c.interval)}}}" if c.interval else text

    width = len(table.header)
    columns = "l" * table.names + "r" * (width - table.names)
    # A table of many columns is shrunk to the text's width rather than run into the margin.
    before, after = ([r"\resizebox{\textwidth}{!}{%"], ["}"]) if width > 8 else ([], [])
    body = []
    for number, row in enumerate(table.rows):
        if number in table.sections:
            if number:
                body.append(r"\midrule")
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{tex(table.sections[number])}}}}} \\")
        line = " & ".join(cell(c) for c in row)
        # What begins with these would be taken for an argument of the row before.
        body.append("{}" * line.startswith(("[", "*")) + line + r" \\")
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{tex('. '.join((table.caption, *table.notes)))}}}",
        *before,
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(tex(h) for h in table.header) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *after,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv_of(records: Iterable[Mapping[str, Any]], header: Sequence[str] = ()) -> str:
    """Records of the same keys as CSV."""
    out = io.StringIO()
    rows = list(map(csv_cells, records))
    writer = csv.DictWriter(out, header or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def csv_cells(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose texts are :func:`csv_text`."""
    return {key: csv_text(value) if isinstance(value, str) else value for key, value in record.items()}


def csv_text(text: str) -> str:
    """Text as a cell of a spreadsheet: on one line, and never a formula.

    >>> csv_text("=1+1"), csv_text("-1.5")
    ("'=1+1", '-1.5')
    """
    plain = printable(text)
    if not plain.startswith(("=", "+", "-", "@", "\t")):
        return plain
    try:
        float(plain)
        return plain
    except ValueError:
        return f"'{plain}"


def to_frame(stores: Sequence[RunStore]) -> pandas.DataFrame:
    """The results of some runs for further computing: what ``refseg report --format csv`` writes.

    A line holds one metric of one run under one protocol: ``value`` and the ends ``low`` and ``high`` of its
    interval in the metric's own unit (``scale`` makes it what tables print), how many samples stand behind
    it, and a column ``cost_…`` for each cost that any run tells (NaN where a run doesn't). What no longer
    stands is left out, and told.
    """
    import pandas  # half a second that no command needs

    leave_out_outdated(stores)
    return pandas.DataFrame.from_records(list(lines_of(rows_of(stores))))


def lines_of(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Long form, full precision: one record per run, protocol and metric."""
    costs = costs_of(rows)
    for row in rows:
        for name, e in row.result.metrics.items():
            yield {
                **row.about, "metric": name, "value": e.value, "low": e.low, "high": e.high,
                "scale": 100 / row.result.percent(name), **row.result.coverage,
                "absent": row.result.answers["absent"], "empty": row.result.answers["empty"],
                **{f"cost_{name}": row.cost.get(name) for name in costs},
            }  # fmt: skip


def records_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON values, full precision; NaN is null."""
    records, costs = [], costs_of(rows)
    for row in rows:
        metrics = {name: asdict(e) for name, e in row.result.metrics.items()}
        coverage, answers = row.result.coverage, row.result.answers
        cost = {"cost": {name: row.cost.get(name) for name in costs}} if costs else {}
        whole = {**row.about, "metrics": metrics, **coverage, "answers": answers, "scale": row.result.scale}
        records.append(without_nan(whole | cost))
    return records


#: Format name → text of all rows of some runs. ``term`` prints and is not here.
FORMATS: dict[str, Callable[[Sequence[RunStore]], str]] = {
    "md": lambda stores: "\n".join(map(to_markdown, tables_of(stores))),
    "latex": lambda stores: "\n".join(map(to_latex, tables_of(stores))),
    "csv": lambda stores: csv_of(lines_of(rows_of(stores))),
    "json": lambda stores: json.dumps(records_of(rows_of(stores)), indent=2) + "\n",
}

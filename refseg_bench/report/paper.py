"""Published numbers, which of them a run is held against, and a paper's table with ours beside it.

The rows of ``results/paper/*.csv`` keep their order, columns are data sets, splits and metrics; rows are
grouped by what they need (attention only, no training, a trained detector, an API, tuned prompts, training).
Our numbers stand in lines of their own below the row they repeat, with interval and difference.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from refseg_bench.config.components import read
from refseg_bench.datasets.verify import manifest
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError, StoreError
from refseg_bench.files.store_io import read_text, without_nan
from refseg_bench.report.compare import PARTS, flatten, means
from refseg_bench.report.tables import (
    Cell,
    ResultTable,
    csv_of,
    in_percent,
    number_cell,
    to_latex,
    to_markdown,
)
from refseg_bench.run.build import frozen
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.results import level_of
from refseg_bench.types import Estimate, Result

#: How far a reproduced number may lie from the published one, in points, unless the experiment says.
TOLERANCE = 1.0


@dataclass(frozen=True)
class PaperRow:
    """One printed number, with the columns of the CSV."""

    #: paper, table, row: where it is printed; ``row`` is the row's number in its table.
    paper: str
    table: str
    row: str
    #: method, backbone, segmenter, kind: what it belongs to; empty = not printed.
    method: str
    backbone: str
    segmenter: str
    kind: str
    #: dataset, split: what it was measured on.
    dataset: str
    split: str
    setting: str  #: ``key=value`` pairs joined by ``;``
    metric: str  #: its name
    value: str  #: in percent, as printed
    source: str = ""  #: where a third party printed it

    @property
    def pairs(self) -> dict[str, str]:
        """The setting as a mapping."""
        return settings_of(self.setting)

    @property
    def number(self) -> float:
        """The value as a number."""
        return float(self.value)


#: The CSV's columns in order (``source`` only where there is one).
COLUMNS = tuple(f.name for f in fields(PaperRow))


def printed_name(dataset: str) -> str:
    """What papers' tables call a data set, by its card; one without a card goes by its own name."""
    facts = manifest(dataset)
    return dataset if facts is None else facts.printed_as or facts.title


def settings_of(text: str) -> dict[str, str]:
    """``a=1;b=2`` as a mapping."""
    return dict(pair.partition("=")[::2] for pair in text.split(";") if pair)


def paper_rows(file: str) -> list[PaperRow]:
    """The rows of one file of ``results/paper``.

    Raises:
        ConfigError: there is no such file.
        StoreError: the file lacks a column.
    """
    path = resource("results") / "paper" / file
    if Path(file).name != file or not path.is_file():
        have = sorted(p.name for p in path.parent.glob("*.csv"))
        raise ConfigError(f"No file '{file}' of published numbers.", where=path.parent, allowed=have)
    try:
        return [PaperRow(**row) for row in csv.DictReader(io.StringIO(read_text(path), newline=""))]
    except TypeError as error:
        raise StoreError(f"A row has other columns than expected ({error}).", where=path) from error


@dataclass(frozen=True)
class Reference:
    """Which published rows a run is held against, from ``reference:`` of its experiment."""

    #: file, table: the table.
    file: str
    table: str
    #: method, backbone, dataset, split: what rows must say; ``None`` = anything.
    method: str | None = None
    backbone: str | None = None
    dataset: str | None = None
    split: str | None = None
    setting: str = ""  #: pairs that rows must hold among theirs
    tolerance: float = TOLERANCE  #: how far in points the run may be off and still count as reproduced

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Reference:
        """From a config's node; keys that only help its interpolations are left out.

        Raises:
            ConfigError: the node has no file or table.
        """
        known = {f.name: node[f.name] for f in fields(cls) if node.get(f.name) is not None}
        for name in ("file", "table"):
            if name not in known:
                raise ConfigError(f"'reference' lacks '{name}'.", where="experiment")
        tolerance = known.pop("tolerance", TOLERANCE)
        if type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
            raise ConfigError(
                f"'reference.tolerance' is {tolerance!r}.", where="experiment", allowed=["points, 0 or more"]
            )
        return cls(**{name: str(value) for name, value in known.items()}, tolerance=tolerance)

    @classmethod
    def of_run(cls, store: RunStore) -> Reference | None:
        """What a run is held against, ``None`` if nothing."""
        node = frozen(store).get("reference")
        return cls.of(node) if node else None

    def rows(self) -> list[PaperRow]:
        """The published rows that fit, in print order."""
        dataset = None if self.dataset is None else printed_name(self.dataset)
        wanted = settings_of(self.setting)
        return [
            row
            for row in paper_rows(self.file)
            if row.table == self.table
            and self.method in (None, row.method)
            and self.backbone in (None, row.backbone)
            and dataset in (None, row.dataset)
            and self.split in (None, row.split)
            and wanted.items() <= row.pairs.items()
        ]


@dataclass(frozen=True)
class Held:
    """One number of a run beside the published one."""

    #: The published number; of predictions of other code, which repeat none, the same without a value.
    row: PaperRow
    run: str  #: the run's name
    protocol: str  #: what the run was scored under
    estimate: Estimate  #: the run's number, in percent
    result: Result  #: the whole result row, for its coverage
    tolerance: float  #: how far it may be off
    part: str = ""  #: which part of the split the run was limited to; empty = the whole
    sees_targets: bool = False  #: True if its method is shown the truth

    @property
    def delta(self) -> float:
        """Ours minus the published number, in points; NaN where none is."""
        return self.estimate.value - (self.row.number if self.row.value else math.nan)

    @property
    def within(self) -> bool:
        """True if the number counts as reproduced."""
        # A hair more: both numbers are printed with one or two decimals.
        return abs(self.delta) <= self.tolerance + 1e-9

    @property
    def whole(self) -> bool:
        """True if the number rests on all samples of the split."""
        return self.result.whole and not (self.part or self.result.part)

    @property
    def ranked(self) -> bool:
        """True if the number may be the best of its group."""
        return self.whole and not self.sees_targets


def counterpart(result: Result, row: PaperRow) -> str | None:
    """The metric of a printed number; ReVOS prints parts of its split, and their mean, as splits."""
    part = row.split.partition("/")[2]
    if part == "overall" and not any(name.startswith(f"{row.metric}/") for name in result.metrics):
        return None  # a mean over all expressions is not the mean of the parts
    name = row.metric if part in ("", "overall") else f"{row.metric}/{part}"
    return name if name in result.metrics else None


def is_of(split: str, printed: str) -> bool:
    """Whether a printed number is of a run's split, where both are known (papers say "val" for "valid").

    >>> is_of("val", "valid/overall"), is_of("valid_u", "valid")
    (True, False)
    """
    spelled = [{"val": "valid"}.get(name, name) for name in (split, printed.partition("/")[0])]
    return spelled[0] == spelled[1] or not {"", "unknown"}.isdisjoint(spelled)


def held_against(store: RunStore) -> list[Held]:
    """Every published number, of the run's own split, that a scored run has a counterpart of.

    A metric that several protocols of the run give is taken from the first that has it.
    """
    reference = Reference.of_run(store)
    if reference is None:
        return []
    _, split = store.info().data
    rows = (row for row in reference.rows() if is_of(split, row.split))
    return list(_beside_rows(store, rows, reference.tolerance))


def _beside_rows(store: RunStore, rows: Iterable[PaperRow], tolerance: float) -> Iterator[Held]:
    results, info = _in_order(store), store.info()
    more = info.part, info.sees_targets
    for row in rows:
        for result in results:
            name = counterpart(result, row)
            if name is not None and math.isfinite(result.metrics[name].value):
                ours = in_percent(result, name)
                yield Held(row, store.root.name, result.protocol, ours, result, tolerance, *more)
                break


def _beside(store: RunStore, columns: Iterable[Column], like: PaperRow) -> list[Held]:
    """What predictions of other code give for a table's columns, with no number of their own in print."""
    info = store.info()
    name, split = info.data
    blank = dict.fromkeys(("row", "backbone", "segmenter", "kind", "setting", "value"), "")
    like = replace(like, **blank, method=info.choices.get("method", "?"))
    rows = (replace(like, dataset=dataset, split=part, metric=metric) for dataset, part, metric in columns)
    wanted = (row for row in rows if row.dataset == printed_name(name) and is_of(split, row.split))
    return list(_beside_rows(store, wanted, TOLERANCE))


def departures(store: RunStore) -> str:
    """The words of a run's command that its experiment doesn't sweep, and that can change a prediction.

    Data set and split choose the row; of a part of the split :attr:`RunInfo.part` tells.
    """
    info = store.info()
    swept = {"dataset", "dataset.split", "dataset.videos"}
    with suppress(ConfigError):  # the experiment is not here any more
        name = info.choices.get("experiment")
        grid = read("experiment", name).get("sweep") if name else ()
        swept |= {key for keys in grid or () for key in keys.split(",")}
    known = {*PARTS, *dict(flatten(info.lasting))}
    typed = {word: word.lstrip("+~").partition("=")[0] for word in info.overrides}
    own = (word for word, key in typed.items() if key.partition("@")[0] in known and key not in swept)
    return ", ".join(word for word in own if not word.startswith("limit."))


def _in_order(store: RunStore) -> list[Result]:
    """Results in the order of the run's own protocols, others after them."""
    asked = [str(word) for word in frozen(store).get("protocols") or ()]
    results = store.results().values()
    return sorted(results, key=lambda r: [not means(word, r.protocol) for word in asked])


def runs_held_against(stores: Iterable[RunStore], file: str, table: str) -> list[RunStore]:
    """The runs that are held against one table."""
    references = ((store, Reference.of_run(store)) for store in stores)
    return [store for store, r in references if r is not None and (r.file, r.table) == (file, table)]


# ── a paper's table ──────────────────────────────────────────────────────────

#: Kinds in the order they are shown, with their titles.
KINDS = {
    "attention-only": "Attention only",
    "training-free": "Training-free",
    "trained-detector": "With a trained detector",
    "api-agent": "API agent",
    "prompt-tuned": "Prompt-tuned",
    "trained": "Trained",
    "files": "Predictions of other code",
    "": "Kind not stated",
}
_MARKS = "abcdefghijklmnopqrstuvwxyz"
_OTHERS = "†"

Column = tuple[str, str, str]


@dataclass
class TableLine:
    """One line of a table."""

    kind: str  #: group it stands in
    labels: tuple[str, str, str]  #: method, backbone, setting
    #: Column → value in percent, with its interval where it is ours.
    cells: dict[Column, Estimate] = field(default_factory=dict)
    #: Column → ours beside the published number; empty for a printed line.
    held: dict[Column, Held] = field(default_factory=dict)
    printed: dict[Column, str] = field(default_factory=dict)  #: column → the number as it is printed

    def shown(self, column: Column) -> Cell:
        """The number of a column: as printed, or as ours are."""
        cell = number_cell(self.cells[column], 1.0)
        return replace(cell, text=self.printed.get(column, cell.text))


@dataclass
class PaperTable:
    """A published table and the runs held against it."""

    #: paper, table: what it is.
    paper: str
    table: str
    method: str  #: the method whose table it is; rows of others were scored by rules the paper doesn't state
    columns: list[Column]  #: data set, split, metric, in order of appearance
    lines: list[TableLine]  #: grouped, printed lines each followed by ours
    notes: list[str]  #: about our runs


def experiment_table(name: str) -> tuple[str, str, str]:
    """File, table and method an experiment is held against.

    Raises:
        ConfigError: no such experiment, or it has no reference.
    """
    node = read("experiment", name).get("reference")
    if not node:
        raise ConfigError(
            f"Experiment '{name}' is held against no published table.",
            where=f"conf/experiment/{name}.yaml",
            hint="Report its runs as they are: refseg report runs",
        )
    return str(node["file"]), str(node["table"]), str(node.get("method", ""))


def kind_of(row: PaperRow) -> str:
    """The group of a row; a mask straight from attention is a kind of its own."""
    if row.kind == "training-free" and (row.segmenter == "none" or row.pairs.get("mask") == "attention"):
        return "attention-only"
    return row.kind


def paper_table(file: str, table: str, method: str, stores: Sequence[RunStore]) -> PaperTable:
    """Lay out a published table with the runs that are held against it.

    Raises:
        ConfigError: the file has no such table.
    """
    printed = [row for row in paper_rows(file) if row.table == table]
    if not printed:
        have = sorted({row.table for row in paper_rows(file)})
        raise ConfigError(f"'{file}' has no table '{table}'.", allowed=have)
    columns = list(dict.fromkeys((row.dataset, row.split, row.metric) for row in printed))
    lines: dict[tuple[str, ...], TableLine] = {}
    for row in printed:
        line = lines.setdefault(_key(row), TableLine(kind_of(row), _labels(row)))
        line.cells[(row.dataset, row.split, row.metric)] = Estimate(row.number)
        line.printed[(row.dataset, row.split, row.metric)] = row.value
    ours: dict[tuple[str, ...], list[TableLine]] = {}
    notes = []
    for store in runs_held_against(stores, file, table):
        found, label = held_against(store), ", ".join(filter(None, ["  ours", departures(store)]))
        for held in found:
            column = (held.row.dataset, held.row.split, held.row.metric)
            mine = ours.setdefault(_key(held.row), [])
            alike = (line for line in mine if column not in line.cells and line.labels[0] == label)
            place = next(alike, None)
            if place is None:
                place = TableLine(kind_of(held.row), (label, *_labels(held.row)[1:]))
                mine.append(place)
            place.cells[column] = held.estimate
            place.held[column] = held
        notes += _coverage(store, found)
    for store in stores:
        if store.info().source and (found := _beside(store, columns, printed[0])):
            places = {(h.row.dataset, h.row.split, h.row.metric): h for h in found}
            values = {column: held.estimate for column, held in places.items()}
            line = TableLine("files", (found[0].row.method, "–", "–"), values, places)
            lines[(store.root.name,)] = line
            notes += _coverage(store, found)
    order = {kind: index for index, kind in enumerate(KINDS)}
    ordered = sorted(lines.items(), key=lambda item: order.get(item[1].kind, len(order)))
    body = [line for key, first in ordered for line in (first, *ours.get(key, ()))]
    return PaperTable(printed[0].paper, table, method, columns, body, notes)


def _key(row: PaperRow) -> tuple[str, ...]:
    return (row.row, row.method, row.backbone, row.segmenter, row.kind, row.setting)


def _labels(row: PaperRow) -> tuple[str, str, str]:
    shown = {k: v for k, v in row.pairs.items() if k not in ("mask", "group")}
    return row.method, row.backbone or "–", ", ".join(f"{k}={v}" for k, v in shown.items()) or "–"


def _coverage(store: RunStore, found: Sequence[Held]) -> list[str]:
    results, reference = {h.protocol: h.result for h in found}, Reference.of_run(store)
    if reference is not None and not reference.rows():
        return [f"{store.root.name}: the table has no row of its backbone, data set and setting"]
    return [
        f"{store.root.name}: {protocol}, n={r.n} of {r.expected}, failed={r.failed}, missing={r.missing}"
        + (f"; not the split as released ({part})" if (part := store.info().part or r.part) else "")
        + f"; {store.info().command}"
        for protocol, r in results.items()
    ] or [
        f"{store.root.name}: beside no number, as none is of its split ({store.info().data[1]}), or it isn't "
        "scored under a protocol that gives these metrics"
    ]


# ── in print ─────────────────────────────────────────────────────────────────


def layout(table: PaperTable) -> ResultTable:
    """The table as cells: best of each group in bold, protocols that differ within a column marked.

    Ours on a part of the samples has a star and is never the best.
    """
    marks = _protocol_marks(table)
    with_setting = any(line.labels[2] != "–" for line in table.lines)
    names = 3 if with_setting else 2
    rows, sections, previous = [], {}, None
    for number, line in enumerate(table.lines):
        if line.kind != previous:
            sections[number] = KINDS.get(line.kind, line.kind)
            previous = line.kind
        cells = [Cell(label) for label in line.labels[:names]]
        for column in table.columns:
            cells.append(_cell(table, line, column, marks))
        rows.append(tuple(cells))
    header = ("method", "backbone", "setting")[:names]
    titles = ["\n".join(part for part in column if part) for column in table.columns]
    protocols = sorted({h.protocol for line in table.lines for h in line.held.values()})
    level = level_of(h.result for line in table.lines for h in line.held.values())
    caption = f"{table.paper}, table {table.table}: published numbers in percent"
    caption += (
        f", ours below them ({', '.join(protocols)}; difference to print; {level or 'no'} intervals by clip)"
        if protocols
        else "; no run is held against it yet"
    )
    said = [f"{mark}: {protocol}" for protocol, mark in marks.items() if protocol != _OTHERS]
    if any(c.mark == _OTHERS for row in rows for c in row):
        said.append(f"{_OTHERS}: as printed; the paper does not state the rules")
    if any(c.mark.endswith("*") for row in rows for c in row):
        said.append("*: not of all samples of the split")
    return ResultTable(caption, (*header, *titles), tuple(rows), sections, (*said, *table.notes), names)


def _protocol_marks(table: PaperTable) -> dict[str, str]:
    """Protocol → mark, where the runs of one column were scored under different ones."""
    mixed: dict[str, None] = {}
    for column in table.columns:
        here = dict.fromkeys(line.held[column].protocol for line in table.lines if column in line.held)
        if len(here) > 1:
            mixed.update(here)
    return {protocol: _MARKS[index % 26] for index, protocol in enumerate(mixed)}


def _cell(table: PaperTable, line: TableLine, column: Column, marks: Mapping[str, str]) -> Cell:
    if column not in line.cells:
        return Cell("–")
    group = [one for one in table.lines if one.kind == line.kind and column in one.cells]
    peers = [one for one in group if column not in one.held or one.held[column].ranked]
    top = max(peers, key=lambda one: one.cells[column].value, default=None)
    held, cell = line.held.get(column), line.shown(column)
    first = top is not None and cell.text == top.shown(column).text
    cell = replace(cell, best=len(group) > 1 and first and (held is None or held.ranked))
    if held is None:
        other = bool(table.method) and line.labels[0] != table.method
        return replace(cell, mark=_OTHERS if other else "")
    delta = f"({held.delta:+z.1f})" if held.row.value else ""
    mark = marks.get(held.protocol, "") + ("" if held.whole else "*")
    return replace(cell, delta=delta, mark=mark)


#: Columns of our numbers alone.
_OURS = (
    "low", "high", "delta", "within_tolerance", "run", "departures", "protocol", "n", "expected", "failed",
    "missing",
)  # fmt: skip


def to_records(table: PaperTable) -> list[dict[str, Any]]:
    """One record per number, printed and ours, at full precision."""
    out: list[dict[str, Any]] = []
    for line in table.lines:
        for column in table.columns:
            if column not in line.cells:
                continue
            value, held = line.cells[column], line.held.get(column)
            row = {
                "paper": table.paper,
                "table": table.table,
                "kind": line.kind,
                "method": held.row.method if held else line.labels[0],
                "backbone": line.labels[1],
                "setting": line.labels[2],
                **dict(zip(("dataset", "split", "metric"), column, strict=True)),
                "by": "ours" if held else "paper",
                "value": value.value,
                **dict.fromkeys(_OURS),
            }
            if held is not None:
                printed = {"delta": held.delta, "within_tolerance": held.within} if held.row.value else {}
                row |= {"low": value.low, "high": value.high, **printed, "run": held.run}
                departing = line.labels[0].partition("ours, ")[2]
                row |= {"departures": departing, "protocol": held.protocol, **held.result.coverage}
            out.append(without_nan(row))
    return out


#: Format name → text of a paper's table.
FORMATS: dict[str, Callable[[PaperTable], str]] = {
    "md": lambda table: to_markdown(layout(table)),
    "latex": lambda table: to_latex(layout(table)),
    "csv": lambda table: csv_of(to_records(table)),
    "json": lambda table: json.dumps(to_records(table), indent=2, ensure_ascii=False) + "\n",
}

"""Results of runs as one table, and that table as text: terminal, Markdown, LaTeX, CSV, JSON.

Every number stands beside its protocol and its coverage. Metrics of different protocols never share
a column.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from refseg_bench.store import RunStore
from refseg_bench.types import Estimate, Result


@dataclass(frozen=True)
class Row:
    """One run under one protocol."""

    run: str
    method: str
    dataset: str
    result: Result


@dataclass(frozen=True)
class Cell:
    """One cell: its number in print, or plain text."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class ResultTable:
    """A rectangle of cells with a caption: one dataset under one protocol.

    Attributes:
        caption: dataset, protocol, unit of the numbers.
        header: column titles.
        rows: cells, one row per run.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def rows_of(stores: Iterable[RunStore]) -> list[Row]:
    """All result rows of the runs, in the order given."""
    rows = []
    for store in stores:
        choices = store.info().get("choices", {})
        for result in store.results().values():
            rows.append(Row(store.root.name, choices.get("method", "?"), choices.get("dataset", "?"), result))
    return rows


def tabulate(rows: Sequence[Row]) -> list[ResultTable]:
    """One table per dataset and protocol; the best of each metric is marked.

    Bounds that see the truth are never the best of anything.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.result.protocol), []).append(row)
    return [_table(dataset, protocol, group) for (dataset, protocol), group in groups.items()]


def _table(dataset: str, protocol: str, rows: list[Row]) -> ResultTable:
    names = list(dict.fromkeys(name for row in rows for name in row.result.metrics))
    top = {}
    for name in names:
        values = [
            row.result.metrics[name].value
            for row in rows
            if name in row.result.metrics and not row.method.startswith("oracle")
        ]
        top[name] = max((v for v in values if math.isfinite(v)), default=math.nan)
    repeated = len({row.method for row in rows}) < len(rows)
    body = []
    for row in rows:
        cells = [Cell(row.run if repeated else row.method)]
        for name in names:
            estimate = row.result.metrics.get(name)
            best = (
                estimate is not None
                and len(rows) > 1
                and estimate.value == top[name]
                and not row.method.startswith("oracle")
            )
            cells.append(number_cell(estimate, 100.0 / row.result.scale, best))
        r = row.result
        cells += [Cell(f"{r.n}"), Cell(f"{r.failed}"), Cell(f"{r.missing}")]
        body.append(tuple(cells))
    return ResultTable(
        f"{dataset} · {protocol} · percent, 95 % intervals clustered by clip",
        ("method", *names, "n", "failed", "missing"),
        tuple(body),
    )


def number_cell(estimate: Estimate | None, percent: float, best: bool = False) -> Cell:
    """An estimate in print; ``percent`` is what its unit is multiplied with."""
    if estimate is None or not math.isfinite(estimate.value):
        return Cell("–")
    interval = ""
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        interval = f"{estimate.low * percent:.1f}–{estimate.high * percent:.1f}"
    return Cell(f"{estimate.value * percent:.1f}", interval, best)


# ── the same table in every form ─────────────────────────────────────────────


def to_terminal(table: ResultTable, console: Console) -> None:
    """Print with rich."""
    shown = RichTable(title=table.caption, title_justify="left")
    for index, title in enumerate(table.header):
        shown.add_column(title, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(*(_rich(cell) for cell in row))
    console.print(shown)


def _rich(cell: Cell) -> str:
    text = f"[bold]{cell.text}[/bold]" if cell.best else cell.text
    return f"{text} [dim]{cell.interval}[/dim]" if cell.interval else text


def to_markdown(table: ResultTable) -> str:
    """A GitHub-flavoured table under its caption."""

    def cell(c: Cell) -> str:
        text = f"**{c.text}**" if c.best else c.text.replace("|", "\\|")
        return f"{text} ({c.interval})" if c.interval else text

    lines = [
        f"**{table.caption}**",
        "",
        "| " + " | ".join(table.header) + " |",
        "|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(table.header))) + "|",
        *("| " + " | ".join(cell(c) for c in row) + " |" for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"$\cdot$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def tex(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(_TEX.get(character, character) for character in text)


def to_latex(table: ResultTable) -> str:
    r"""A booktabs table; needs ``\usepackage{booktabs}``."""

    def cell(c: Cell) -> str:
        text = rf"\textbf{{{tex(c.text)}}}" if c.best else tex(c.text)
        return rf"{text} {{\scriptsize {tex(c.interval)}}}" if c.interval else text

    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{tex(table.caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(tex(h) for h in table.header) + r" \\",
        r"\midrule",
        *(" & ".join(cell(c) for c in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Long form, full precision: one line per run, protocol and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["run", "method", "dataset", "protocol", "metric", "value", "low", "high", "scale", "n", "expected",
         "failed", "missing"]
    )  # fmt: skip
    for row in rows:
        r = row.result
        for name, e in r.metrics.items():
            writer.writerow(
                [row.run, row.method, row.dataset, r.protocol, name, repr(e.value), repr(e.low), repr(e.high),
                 r.scale, r.n, r.expected, r.failed, r.missing]
            )  # fmt: skip
    return out.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list, full precision; NaN is null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    records: list[dict[str, Any]] = [
        {
            "run": row.run,
            "method": row.method,
            "dataset": row.dataset,
            "protocol": row.result.protocol,
            "metrics": {
                name: {"value": number(e.value), "low": number(e.low), "high": number(e.high)}
                for name, e in row.result.metrics.items()
            },
            "n": row.result.n,
            "expected": row.result.expected,
            "failed": row.result.failed,
            "missing": row.result.missing,
            "scale": row.result.scale,
        }
        for row in rows
    ]
    return json.dumps(records, indent=2) + "\n"


#: Format name → text of all rows. ``term`` prints and is not here.
FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "md": lambda rows: "\n".join(to_markdown(t) for t in tabulate(rows)),
    "latex": lambda rows: "\n".join(to_latex(t) for t in tabulate(rows)),
    "csv": to_csv,
    "json": to_json,
}

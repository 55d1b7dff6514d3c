"""``refseg compare``: two runs, paired by sample: differences with intervals and p-values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.text import Text

from refseg_bench.config.components import open_dataset
from refseg_bench.errors import ConfigError, printable, shown
from refseg_bench.files.store_io import add_json, count, put_json, written
from refseg_bench.report.compare import Comparison, Group, compare, compare_truths
from refseg_bench.report.html import home, write_report
from refseg_bench.report.tables import Cell, ResultTable, leave_out_outdated, to_terminal
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.stats import holm

#: Most characters of an expression in a list.
_LONGEST = 100


def add(commands: Any) -> None:
    p = commands.add_parser(
        "compare",
        description="Differences are RUN_B − RUN_A in percent points, with an interval from resampling "
        "clips and the p-value of a randomisation test that swaps the runs clip by clip.",
    )
    p.add_argument("run_a", type=Path, metavar="RUN_A")
    p.add_argument("run_b", type=Path, nargs="?", metavar="RUN_B")
    p.add_argument(
        "--truth",
        metavar="NAME",
        help="in place of RUN_B: RUN_A's predictions again, held against this data set's masks of the same "
        "samples (RefCOCO-M's of RefCOCO val, or the reverse)",
    )
    p.add_argument("--root", type=Path, metavar="DIR", help="where that data set is")
    p.add_argument("--split", metavar="S", help="its split (default: its own)")
    p.add_argument("--protocol", metavar="ID", help="default: the first both are scored under")
    p.add_argument(
        "--by", default="", metavar="ATTR[,ATTR]", help="also by attribute: type, objects, size, motion …"
    )
    p.add_argument("--most", type=count(0), default=10, metavar="N", help="samples that moved most to list")
    p.add_argument(
        "--html",
        nargs="?",
        type=written(),
        const=Path(),
        metavar="DIR",
        help="write both runs' pages, print the comparison's link (default: report-2-runs-ID beside RUN_A)",
    )
    add_json(p, "what is printed")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    if (args.run_b is None) == (args.truth is None):
        raise ConfigError("Give a second run or --truth, one of the two.")
    if args.truth is None and (args.root or args.split):
        raise ConfigError("--root and --split go with --truth; a run knows its dataset.")
    if args.truth is not None and args.html is not None:
        raise ConfigError("--html opens the comparison of two runs; --truth has none.")
    stores = [RunStore.open(path) for path in (args.run_a, args.run_b) if path is not None]
    leave_out_outdated(stores)
    more = {"attributes": list(filter(None, map(str.strip, args.by.split(",")))), "most": args.most}
    if args.truth is None:
        found = compare(stores[0], stores[1], args.protocol, **more)
    else:
        other = open_dataset(args.truth, root=args.root, split=args.split)
        found = compare_truths(stores[0], other, args.protocol, **more)
    put_json(args.json, asdict(found))
    console = Console()
    show(found, console)
    if args.html is not None:
        page = write_report(stores, home(stores) if args.html == Path() else args.html).resolve().as_uri()
        names = urlencode({"a": args.run_a.name, "b": args.run_b.name})
        console.print(f"{page}#/compare?{names}", markup=False, highlight=False, soft_wrap=True)
    return 0


def show(found: Comparison, console: Console) -> None:
    """Print a comparison."""

    def table(
        title: str, header: tuple[str, ...], names: int, rows: Iterable[Sequence[str]], *notes: str
    ) -> None:
        cells = tuple(tuple(map(Cell, row)) for row in rows)
        to_terminal(ResultTable(title, header, cells, notes=notes, names=names), console)

    (first, second), folders = found.labels, (found.first, found.second)
    about = f"A = {first} ({folders[0]})\nB = {second} ({folders[1]})\n{found.protocol}"
    console.print(Text(shown(about), overflow="fold"))
    level = f", {100 * found.level:g} % intervals" if found.level else ""
    groups, scale = (found.overall, *found.groups), found.percents[found.headline]
    corrected = iter(holm([d.p for group in groups for d in group.differences.values()]))
    header = ("", "metric", "A", "B", "B − A", "interval", "p", "Holm", "n", "clips")
    holm_note = "Holm: p corrected for all tests of this table; * below 0.05"
    rows = (row for group in groups for row in _rows(group, found.percents, corrected))
    table(f"B − A, percent points{level}", header, 2, rows, holm_note)
    for title, moved in (("B is better", found.gained), ("B is worse", found.lost)):
        ends = ((m, m.first * scale, m.second * scale) for m in moved)
        told = [(m.unit, _line(m.text), f"{a:.1f}", f"{b:.1f}", f"{b - a:+z.1f}") for m, a, b in ends]
        if told:
            table(title, ("sample", "expression", "A", "B", "B − A"), 2, told)
    if found.config:
        options = [(key, str(one), str(other)) for key, (one, other) in found.config.items()]
        table("options that differ", ("option", "A", "B"), 3, options)
    if found.unpaired:
        console.print(f"{found.unpaired} units are in one of the runs only and are left out")


def _line(text: str) -> str:
    """An expression in a cell: one line, not too long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _rows(group: Group, percents: Mapping[str, float], corrected: Iterator[float]) -> list[tuple[str, ...]]:
    name = f"{group.attribute} = {group.value}" if group.attribute else "all"
    return [
        (
            name if index == 0 else "",
            metric,
            _number(d.first * scale),
            _number(d.second * scale),
            _number(d.value * scale, "+z.2f"),
            "one clip: no interval"
            if d.clusters == 1
            else f"{d.low * scale:+z.2f} … {d.high * scale:+z.2f}"
            if d.low == d.low
            else "–",
            *_tested(d.p, next(corrected)),
            str(d.units),
            str(d.clusters),
        )
        for index, (metric, d) in enumerate(group.differences.items())
        for scale in [percents[metric]]
    ]


def _number(value: float, how: str = "z.2f") -> str:
    return format(value, how) if math.isfinite(value) else "–"


def _tested(p: float, corrected: float) -> tuple[str, str]:
    """A p-value and its corrected form, marked where that is significant."""
    if math.isnan(p):
        return "–", "–"
    return f"{p:.4f}", f"{corrected:.4f}{'*' * (corrected < 0.05)}"

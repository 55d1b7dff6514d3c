"""``refseg compare``: two runs, paired by sample: differences with intervals and p-values."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from refseg_bench.report.compare import Comparison, Group


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser(
        "compare",
        help="paired difference of two runs",
        description="Differences are RUN_B − RUN_A in percent points, with an interval from resampling "
        "clips and the p-value of a randomisation test that swaps the runs clip by clip.",
    )
    p.add_argument("run_a", type=Path, metavar="RUN_A")
    p.add_argument("run_b", type=Path, metavar="RUN_B")
    p.add_argument("--protocol", metavar="ID", help="default: the first both are scored under")
    p.add_argument("--by", action="append", default=[], metavar="ATTRIBUTE", help="break down by it")
    p.add_argument("--most", type=int, default=10, metavar="N", help="samples that moved most to list")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console

    from refseg_bench.report.compare import compare
    from refseg_bench.store import RunStore

    found = compare(
        RunStore.open(args.run_a),
        RunStore.open(args.run_b),
        args.protocol,
        attributes=args.by,
        most=args.most,
    )
    show(found, Console())
    return 0


def show(found: Comparison, console: Console) -> None:
    """Print a comparison."""
    from rich.table import Table

    console.print(f"A = {found.first}\nB = {found.second}\n{found.protocol}", markup=False, highlight=False)
    table = Table("", "metric", "B − A", "interval", "p", "n", "clips", title="B − A, percent points")
    for group in (found.overall, *found.groups):
        for row in _rows(group, 100.0 / found.scale):
            table.add_row(*row)
    console.print(table)
    for title, moved in (("B is better", found.gained), ("B is worse", found.lost)):
        if moved:
            listing = Table("sample", "A", "B", title=title)
            for m in moved:
                scale = 100.0 / found.scale
                listing.add_row(m.unit, f"{m.first * scale:.1f}", f"{m.second * scale:.1f}")
            console.print(listing)
    if found.config:
        options = Table("option", "A", "B", title="options that differ")
        for key, (first, second) in found.config.items():
            options.add_row(key, str(first), str(second))
        console.print(options)
    if found.unpaired:
        console.print(f"{found.unpaired} units are in one of the runs only and are left out")


def _rows(group: Group, scale: float) -> list[tuple[str, ...]]:
    name = f"{group.attribute} = {group.value}" if group.attribute else "all"
    return [
        (
            name if index == 0 else "",
            metric,
            f"{d.value * scale:+.2f}",
            f"{d.low * scale:+.2f} … {d.high * scale:+.2f}",
            f"{d.p:.4f}",
            str(d.units),
            str(d.clusters),
        )
        for index, (metric, d) in enumerate(group.differences.items())
    ]

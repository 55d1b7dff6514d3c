"""``refseg report``: the results of runs side by side, to the terminal, as text, or as pages to browse."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from refseg_bench.commands.status import find
from refseg_bench.errors import StoreError
from refseg_bench.report import tables
from refseg_bench.store import RunStore

#: `refseg run` leaves the pages of more samples than this to `refseg report --html`.
_AT_ONCE = 3000


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser("report", help="results of runs side by side")
    p.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    p.add_argument("--format", choices=["term", *tables.FORMATS], default="term")
    p.add_argument("-o", "--output", type=Path, help="write to a file instead of standard output")
    p.add_argument(
        "--html",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="DIR",
        help="write pages to browse every sample (default: RUN/report of one run, runs/report of several)",
    )
    p.add_argument("--frames", type=int, default=32, metavar="N", help="--html: frames of a clip to show")
    p.add_argument("--side", type=int, default=480, metavar="PX", help="--html: longest side of a frame")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    stores = find(args.runs)
    if args.html is not None:
        from refseg_bench.report.html import ReportOptions, write_report

        folder = home(stores) if args.html == Path() else args.html
        print(
            write_report(stores, folder, ReportOptions(frames=max(1, args.frames), side=max(16, args.side)))
        )
        return 0
    rows = tables.rows_of(stores)
    if not rows:
        raise StoreError(
            "None of the runs is scored yet.",
            where=", ".join(str(s.root) for s in stores[:5]),
            cure="refseg score RUN",
        )
    if args.format == "term":
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(args.output.open("w", encoding="utf-8")) if args.output else None
            show(stores, Console(file=out))
        return 0
    text = tables.FORMATS[args.format](rows)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def show(stores: Sequence[RunStore], console: Console | None = None) -> None:
    """Print the tables of the runs."""
    for table in tables.tabulate(tables.rows_of(stores)):
        tables.to_terminal(table, console or Console())


def home(stores: Sequence[RunStore]) -> Path:
    """Where the pages of some runs go: inside the run, or beside several."""
    return (stores[0].root if len(stores) == 1 else stores[0].root.parent) / "report"


def pages(stores: Sequence[RunStore]) -> str:
    """Make the pages of runs that just finished; a line that says where they are.

    Raises:
        StoreError: the folder holds something else, or can't be written.
    """
    from refseg_bench.report.html import write_report

    samples = sum(len(store.index()) for store in stores)
    if samples > _AT_ONCE:
        where = (
            " ".join(str(store.root) for store in stores[:3]) if len(stores) <= 3 else stores[0].root.parent
        )
        return f"pages to browse the {samples} samples: refseg report --html {where}"
    return f"every sample: {write_report(stores, home(stores))}"

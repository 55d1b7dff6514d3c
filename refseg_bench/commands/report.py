"""``refseg report``: the results of runs side by side, to the terminal or as text."""

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


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser("report", help="results of runs side by side")
    p.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    p.add_argument("--format", choices=["term", *tables.FORMATS], default="term")
    p.add_argument("-o", "--output", type=Path, help="write to a file instead of standard output")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    stores = find(args.runs)
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

"""``refseg status``: done, failed and left per run, read from the folders alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from refseg_bench.errors import StoreError
from refseg_bench.run import dataset_of, frozen, plan
from refseg_bench.store import RunStore, runs_in


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser("status", help="done, failed and left of runs")
    p.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    p.add_argument("--failures", type=int, default=5, metavar="N", help="failed samples to name per run")
    p.set_defaults(main=main)


def find(paths: list[Path]) -> list[RunStore]:
    """The runs the paths name: run folders, or folders that hold them.

    Raises:
        StoreError: a path names none.
    """
    found: list[RunStore] = []
    for path in paths or [Path("runs")]:
        if (path / "run.json").is_file():
            found.append(RunStore.open(path))
            continue
        inside = runs_in(path)
        if not inside:
            raise StoreError("No run folder here.", where=path, cure="`refseg run` makes one.")
        found.extend(inside)
    return found


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    console = Console()
    table = Table("run", "done", "failed", "left", "s/sample", "peak MiB")
    failures: list[str] = []
    for store in find(args.runs):
        expected = sum(len(es) for _, es in plan(dataset_of(frozen(store))))
        index = store.index()
        done = sum(line.ok for line in index.values())
        failed = len(index) - done
        # A look at a few predictions is enough for a rate; reading all would decode every mask line.
        seen = [store.read(line) for line in list(index.values())[:: max(1, len(index) // 50)] if line.ok]
        rate = sum(p.seconds.get("total", 0.0) for p in seen) / len(seen) if seen else float("nan")
        peak = max((p.peak_mb for p in seen), default=float("nan"))
        table.add_row(
            store.root.name,
            str(done),
            str(failed),
            str(expected - done - failed),
            f"{rate:.2f}",
            f"{peak:.0f}",
        )
        for failure in list(store.failures())[: args.failures]:
            assert failure.failure is not None
            first = failure.failure.message.splitlines()[0] if failure.failure.message else ""
            failures.append(f"{store.root.name}  {failure.sample}: {failure.failure.kind}: {first}")
    console.print(table)
    for line in failures:
        console.print(line, markup=False, highlight=False)
    return 0

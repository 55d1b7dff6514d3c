"""``refseg status``: done, failed and left per run, read from the folders; who is at work, asked once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from refseg_bench.errors import ConfigError, RefsegError, StoreError, printable
from refseg_bench.files.store_io import add_json, count, put_json
from refseg_bench.run.build import frozen
from refseg_bench.run.inputs import Present, recorded
from refseg_bench.run.progress import log_path
from refseg_bench.run.store import RunStore, find_runs
from refseg_bench.run.submissions import Submission, living, submissions
from refseg_bench.run.summary import FEW, summarize
from refseg_bench.run.workers import BEAT, Census, describe, records


def add(commands: Any) -> None:
    p = commands.add_parser("status")
    p.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    p.add_argument("--failures", type=count(0), default=FEW, metavar="N", help="failed samples named per run")
    p.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=5.0,
        metavar="SECONDS",
        help="tell again every SECONDS (default: 5) until nobody works on the runs",
    )
    add_json(p, "the table")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    if args.watch is not None and not 0 < args.watch < 86_400:
        raise ConfigError(f"--watch is {args.watch:g}.", allowed=["more than 0 seconds, less than a day"])
    console = Console(width=1000)  # no line is folded: names are to be copied, numbers to be read
    while True:
        table, notes, rows, code = _look(args)
        if args.watch is not None:
            console.clear()
        console.print(table)
        for note in notes:
            for line in note.split("\n"):
                console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        put_json(args.json, rows)
        if args.watch is None or not any(row["working"] for row in rows):
            return code
        time.sleep(args.watch)


def _look(args: argparse.Namespace) -> tuple[Table, list[str], list[dict[str, Any]], int]:
    """The table of all runs, what stands below it, the same as JSON values, and the exit code."""
    heads = ("run", "done", "failed", "left", "s/sample", "ETA", "GPU h", "peak MiB")
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    stores = find_runs(args.runs)
    busy = living(stores)
    code, shared = 0, dict[int, Present]()
    for store in stores:
        try:
            rows.append(_tell(store, shared, busy[store.root], args.failures, table, notes))
        except RefsegError as error:
            # A run that can't be read doesn't hide the others.
            notes.append(f"{store.root.name}  {error}")
            code = 2
    return table, notes, rows, code


def _tell(
    store: RunStore,
    shared: dict[int, Present],
    busy: Sequence[Submission],
    failures: int,
    table: Table,
    notes: list[str],
) -> dict[str, Any]:
    """One run: its row, and what there is to say below."""

    def note(text: str) -> None:
        notes.append(f"{store.root.name}  {text}")

    try:
        frozen(store)
        dataset = recorded(store)
        if dataset is None:
            raise StoreError("no command has opened its data set yet")
        found = summarize(store, dataset.work, dataset.present(shared), failures)
        if changed := dataset.changed():
            note(
                f"{changed} has changed since the last command that opened the data set; "
                "the same `refseg run` tells what it changes"
            )
    except RefsegError as error:
        # A folder that can't tell what was asked for still tells what is in it.
        note(f"what is left is unknown: {error.what}")
        found = summarize(store, None, None, failures)
    for text in found.notes:
        note(text)
    left, rate, peak = found.left, found.rate, found.peak
    jobs = records(store.root)
    census = Census()
    silent = ((job, time.time() - job.beat) for job in jobs if not job.end)
    # SLURM is asked about submissions alone: of its processes the sign of life tells.
    quiet = [j for j, s in silent if s >= 2 * BEAT or not (j.owner.slurm or census.alive(j.owner, s))]
    # What was cancelled may still be ending; a worker may have joined since.
    told_over = (s for s in submissions(store.root) if s.state == "over")
    over = {s.id: (store.root / "launches" / s.id / "launch.json").stat().st_mtime for s in told_over}
    alive = [job for job in jobs if not job.end and job not in quiet]
    alive = [job for job in alive if job.owner.started >= over.get(job.owner.launch, 0.0)]
    eta = None if rate is None or not alive or not left else left * rate / len(alive)
    row: dict[str, Any] = {"run": store.root.name, "done": found.done, "failed": found.failed, "left": left}
    row |= {"seconds_per_sample": rate, "eta_seconds": eta, "gpu_hours": sum(job.gpu_hours for job in jobs)}
    row |= {"peak_mib": peak, "stages_mib": found.stages, "working": bool(alive or busy)}
    table.add_row(
        printable(store.root.name),
        str(found.done),
        str(found.failed),
        "?" if left is None else str(left),
        "–" if rate is None else f"{rate:.2f}",
        "–" if eta is None else duration(eta),
        f"{row['gpu_hours']:.2f}",
        "–" if peak is None else f"{peak:.0f}",
    )
    if found.stages:
        note("peak MiB by stage: " + ", ".join(f"{n} {peak:.0f}" for n, peak in found.stages.items()))
    if left and not alive and not busy:
        note(f"nobody works on it; this goes on: {store.info().command}")
    for job in alive:
        if now := job.now:
            note(f"{describe([job.owner])}: {printable(now)}")
    for submission in busy:
        note(f"{'at work' if alive else 'submitted'}: {submission.told()}")
        notes.append(f"  log: {store.root / 'log' / submission.id}")
    if busy:
        for other in submissions(store.root):
            if other.state == "refused" and other.created >= busy[0].created:
                notes.append(f"  made way for it: {other.told()}")
    if left or found.failed:
        for job in [j for j in jobs if (j.end and j.end.error) or j in quiet][-failures or len(jobs) :]:
            note(f"{describe([job.owner])}: {job.end.error if job.end else 'no sign of life'}")
            notes.append(f"  log: {store.root / 'log' / job.owner.launch}")
    for failed in found.failures:
        note(f"{failed.sample}: {failed.why}")
        if (log := log_path(store.root, failed.job)).is_file():
            notes.append(f"  log: {log}")
    return row


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

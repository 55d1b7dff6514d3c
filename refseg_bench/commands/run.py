"""``refseg run``: compose, freeze, predict, score, report. The same command again goes on."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from refseg_bench.config import compose as configs
from refseg_bench.errors import RefsegError
from refseg_bench.files.store_io import add_json, put_json, to_yaml
from refseg_bench.report import tables
from refseg_bench.report.compare import verdicts
from refseg_bench.report.html import pages
from refseg_bench.report.tables import Cell, ResultTable
from refseg_bench.run import launch
from refseg_bench.run.shards import Planned
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_runs


def add(commands: Any) -> None:
    p = commands.add_parser(
        "run",
        description="Compose the choices and overrides, freeze them into a run folder, predict what is left.",
        epilog="Examples: refseg run method=centre_point · refseg run -m method=lexical,empty "
        "dataset=shapes,photos · refseg run --cfg job",
    )
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="choices and overrides (Hydra's grammar)"
    )
    p.add_argument("-m", "--multirun", action="store_true", help="expand a=b,c into one run each")
    p.add_argument("--cfg", choices=["job"], help="print the composed config and stop")
    p.add_argument("--dry", action="store_true", help="print what would run and which weights lack, and stop")
    p.add_argument(
        "--freeze",
        action="store_true",
        help="make the run folders, print a worker's command for each, and stop",
    )
    p.add_argument(
        "--retry-failed",
        action="store_true",
        help="take only samples that have failed, also of a run that others are still at",
    )
    add_json(p, "the results; with --cfg, --dry or --freeze what those print")
    p.add_argument("--no-score", action="store_true", help="predict only")
    p.add_argument("--no-html", action="store_true", help="don't write the pages to browse the samples")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    if args.retry_failed:
        args.overrides.append("cluster.retry_failed=true")
    points = configs.compose(args.overrides, multirun=args.multirun)
    if args.cfg:
        put_json(args.json, {point.folder: point.values for point in points})
        for point in points:
            print(f"# {point.folder}")
            print(to_yaml(point.values))
        return 0
    if args.freeze and not args.dry:
        return _freeze(points, args.json)
    alone = len(points) == 1  # a sweep chooses its own rows
    baselines = configs.baselines_of(points[0]) if alone else []
    if args.dry:
        found = launch.preview([*points, *baselines])
        put_json(args.json, found)
        _show(found, args.overrides)
        return 2 if any(told["problem"] for told in found["weights"].values()) else 0
    values = {point.path: point.values for point in [*points, *baselines]}
    code, scored = 0, set[Path]()

    def show(run: Planned) -> None:
        nonlocal code
        if not args.no_score:
            code = max(code, score_runs([run.store], values))
            scored.add(run.store.root)
            for line in tables.headlines(run.store):
                print(f"  {line}", file=sys.stderr)

    with _ending_well():
        launched = launch.launch([*points, *baselines], score=not args.no_score, done=show, lead=alone)
        if alone and launched[0].error is not None:
            raise launched[0].error
    here: list[RunStore] = []
    for item in launched:
        if item.error is not None:
            print(f"{item.store.root}\n  {item.error}", file=sys.stderr)
            code = 2
        elif item.tally is not None:
            code = max(code, int(item.tally.failed > 0))
            if item.tally.elsewhere:
                print(f"{item.store.root}\n  {item.tally.elsewhere} samples are not done", file=sys.stderr)
                code = max(code, 1)
            elif item.aside:
                print(f"{item.store.root}\n  {item.aside} samples were not tried yet", file=sys.stderr)
            else:
                here.append(item.store)
    if here and not args.no_score:
        code = max(code, score_runs([store for store in here if store.root not in scored], values))
        tables.show_tables(here)
        if baselines and here[0].root == points[0].path:
            for line in verdicts(here[0], here[1:]):
                print(line)
        if not args.no_html:
            try:
                print(pages(here))
            except RefsegError as error:
                print(f"no pages to browse: {error}", file=sys.stderr)
    put_json(args.json, tables.records_of(tables.rows_of(here)))
    return code


def _freeze(points: Sequence[configs.Composed], out: Path | None) -> int:
    """Freeze runs for any engine's workers: their commands on standard output, the rest on standard error."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    runs = launch.freeze_for_workers(points, say)
    put_json(out, [{"run": run.store.root, "samples": run.samples, "shards": run.shards} for run in runs])
    for run in runs:
        say(f"{run.store.root}\n  {run.samples} samples left in {len(run.work)} clips; shards: {run.shards}")
        print(shlex.join(["refseg", "work", str(run.store.root.resolve())]), flush=True)
    say(f"any number of workers, started in {Path.cwd()} (docs/cluster.md); for parts of their own give each")
    say("REFSEG_SHARD=0, 1 … and REFSEG_SHARDS; then `refseg score RUN` and `refseg report RUN`")
    return 0


def _show(found: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Print what :func:`launch.preview` found as one table, and below it the weights."""
    weights, total = found["weights"], found["total"]
    lacking = {name for name, told in weights.items() if told["here"] is False}
    rows = []
    for of in (
        *found["runs"],
        {"run": "all", "options": "", "cached": None, "shards": "", "weights": weights, **total},
    ):
        cached = "–" if of["cached"] is None else f"{of['cached']} of {of['asked']}"
        missing = len(lacking.intersection(of["weights"]))
        state = "–" if not of["weights"] else f"{missing} missing" if missing else "here"
        counts = ("?" if of[key] is None else str(of[key]) for key in ("samples", "clips", "shards"))
        rows.append(tuple(map(Cell, (Path(of["run"]).name, of["options"], *counts, cached, state))))
    notes = [f"weights of {told['node']}: {name}: {_size(told)}" for name, told in weights.items()]
    if any(not weights[name]["problem"] for name in lacking):
        size = total["megabytes_to_fetch"]
        told = "size unknown" if size is None else f"{size:,.0f} MB"
        notes.append(f"get what is missing ({told}): refseg models get {shlex.join(overrides)}")
    if total["jobs"]:
        notes.append(f"{total['jobs']} jobs on SLURM")
    if any(of["cached"] is not None for of in found["runs"]):
        notes.append("cached: expressions of the first clips that need no model call")
    header = ("run", "options", "samples", "clips", "shards", "cached", "weights")
    known = [k for k in range(len(header)) if any(row[k].text not in ("?", "–", "") for row in rows[:-1])]
    caption = f"What is left to predict in {Path(found['runs'][0]['run']).parent}"
    names, body = tuple(header[k] for k in known), tuple(tuple(row[k] for k in known) for row in rows)
    tables.to_terminal(ResultTable(caption, names, body, notes=(*notes, *found["notes"])), Console())


def _size(told: Mapping[str, Any]) -> str:
    size = "size unknown" if told["megabytes"] is None else f"{told['megabytes']:,.0f} MB"
    known = {True: f"here, {size}", False: f"missing, {size}", None: "can't tell"}
    return str(told["problem"] or known[told["here"]])


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """Let SIGTERM (`refseg cancel`, a batch system) end the work as Ctrl-C does: shards too, and recorded."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

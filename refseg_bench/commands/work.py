"""``refseg work``: one worker of a frozen run, for any scheduler; `cluster=local` starts it, too."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from refseg_bench.errors import ConfigError, RefsegError, StoreError
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import Submission, submissions
from refseg_bench.run.worker import DRAIN, PARTS, Shard, die_with, draining, part_of
from refseg_bench.run.workers import LEAVING
from refseg_bench.segmenters.base import shared_by_rows


def add(commands: Any) -> None:
    p = commands.add_parser(
        "work",
        description="Work on a run that `refseg run` (or `refseg run --freeze`) has frozen, beside any "
        "number of other workers on any machines that see its folder, until nothing is left of its part. "
        "The part is told by --shard and --of, else by the first variable that is set of "
        f"{', '.join(PARTS)}; without any it takes whatever is open.",
        epilog="Ends with 0 when its part is done, 1 when some of it failed, 2 when starting it again can't "
        f"help, 75 when there is more to do: told to end (SIGTERM: within {DRAIN:g} s), or others have it.",
    )
    p.add_argument("run", nargs="+", type=Path, metavar="RUN", help="run folder (several: in turn)")
    p.add_argument("--shard", type=int, metavar="N", help="which part, from 0")
    p.add_argument("--of", type=int, metavar="N", help="how many parts")
    p.add_argument(
        "--launch", action="append", metavar="ID", help="submission of each run (default: the newest)"
    )
    p.add_argument("--capture", action="store_true", help="fill the attention cache only")
    p.add_argument("--parent", type=int, metavar="PID", help="process to end with")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    if args.parent is not None:
        die_with(args.parent)
    asked = args.launch or [None] * len(args.run)
    if len(asked) != len(args.run):
        raise ConfigError(f"{len(args.run)} runs have {len(asked)} submissions.", where="--launch")
    code = 0
    with draining(), shared_by_rows():
        for run, name in zip(args.run, asked, strict=True):
            try:
                code = max(code, _work(args, run, name))
            except RefsegError as error:
                if len(args.run) == 1:
                    raise
                # The others may do well.
                print(f"{run}\n  {error}", file=sys.stderr)
                code = max(code, error.code)
            except KeyboardInterrupt:
                if not LEAVING.is_set():
                    raise
                print(
                    f"{run}: told to end; what was finished is kept, the rest is handed back", file=sys.stderr
                )
                return os.EX_TEMPFAIL
    return code


def _work(args: argparse.Namespace, run: Path, asked: str | None) -> int:
    launch = _submission(RunStore.open(run), asked)
    shard, shards = part_of(args.shard, args.of, launch.shards if launch else 1)
    name, ours = launch.id if launch else None, args.parent is not None
    tally = Shard(str(run), name, shard, shards, args.capture, serve=ours)()
    if args.capture:
        return 0
    if not (tally.done or tally.failed or tally.elsewhere):
        print(f"{run}: nothing is left to predict", file=sys.stderr)
    if tally.elsewhere:
        print(
            f"{run}: {tally.elsewhere} samples are with other workers; if none is at work, "
            "`refseg run` or `refseg run --freeze` again has them predicted",
            file=sys.stderr,
        )
        return os.EX_TEMPFAIL
    return int(tally.failed > 0)


def _submission(store: RunStore, asked: str | None) -> Submission | None:
    """The submission to work for, whose workers try each sample once; ``None`` where there is none."""
    found = [s for s in submissions(store.root) if s.state != "refused" and asked in (None, s.id)]
    if asked is not None and not found:
        raise StoreError("No such submission.", where=store.root / "launches" / asked)
    return found[-1] if found else None

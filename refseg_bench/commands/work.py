"""``refseg work``: one worker of a frozen run, for any scheduler; `cluster=local` starts it, too."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from refseg_bench.errors import StoreError
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import Submission, submissions
from refseg_bench.run.worker import DRAIN, PARTS, Shard, die_with, draining, part_of
from refseg_bench.run.workers import LEAVING


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser(
        "work",
        description="Work on a run that `refseg run` (or `refseg run --freeze`) has frozen, beside any "
        "number of other workers on any machines that see its folder, until nothing is left of its part. "
        "The part is told by --shard and --of, else by the first variable that is set of "
        f"{', '.join(PARTS)}; without any it takes whatever is open.",
        epilog="Ends with 0 when its part is done, 1 when some of it failed, 2 when starting it again can't "
        f"help, 75 when there is more to do: told to end (SIGTERM: within {DRAIN:g} s), or others have it.",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--shard", type=int, metavar="N", help="which part, from 0")
    p.add_argument("--of", type=int, metavar="N", help="how many parts")
    p.add_argument("--launch", metavar="ID", help="submission that it works for (default: the newest)")
    p.add_argument("--capture", action="store_true", help="fill the attention cache only")
    p.add_argument("--parent", type=int, metavar="PID", help="process to end with")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.parent is not None:
        die_with(args.parent)
    launch = _submission(RunStore.open(args.run), args.launch)
    shard, shards = part_of(args.shard, args.of, launch.shards if launch else 1)
    try:
        with draining():
            name, ours = launch.id if launch else None, args.parent is not None
            tally = Shard(str(args.run), name, shard, shards, args.capture, serve=ours)()
    except KeyboardInterrupt:
        if not LEAVING.is_set():
            raise
        print(f"{args.run}: told to end; what was finished is kept, the rest is handed back", file=sys.stderr)
        return os.EX_TEMPFAIL
    if args.capture:
        return 0
    if tally.elsewhere:
        print(f"{args.run}: {tally.elsewhere} samples are with other workers", file=sys.stderr)
        return os.EX_TEMPFAIL
    return int(tally.failed > 0)


def _submission(store: RunStore, asked: str | None) -> Submission | None:
    """The submission to work for, whose workers try each sample once; ``None`` where there is none."""
    found = [s for s in submissions(store.root) if s.state != "refused" and asked in (None, s.id)]
    if asked is not None and not found:
        raise StoreError("No such submission.", where=store.root / "launches" / asked)
    return found[-1] if found else None

"""``refseg work``: one shard of a submission, started by `refseg run`; not meant to be typed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from refseg_bench.run.worker import Shard, die_with


def add(commands: Any) -> None:
    """Declare the options; no help line, so that the list of commands leaves it out."""
    p = commands.add_parser("work", description="Work on one shard of a frozen run.")
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--launch", required=True, help="id of the submission")
    p.add_argument("--shard", type=int, default=0, help="which part, from 0")
    p.add_argument("--of", type=int, default=1, help="how many parts")
    p.add_argument("--capture", action="store_true", help="fill the attention cache only")
    p.add_argument("--parent", type=int, help="process to end with")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.parent is not None:
        die_with(args.parent)
    tally = Shard(str(args.run), args.launch, args.shard, args.of, args.capture)()
    return 1 if tally.failed and not args.capture else 0

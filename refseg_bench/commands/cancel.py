"""``refseg cancel``: end the jobs and processes that work on runs. What is finished is kept."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from refseg_bench import scheduler
from refseg_bench.commands.status import find
from refseg_bench.launch.records import living
from refseg_bench.owners import Owner


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser("cancel", help="end the jobs and processes that work on runs")
    p.add_argument("runs", nargs="+", type=Path, help="run folders, or a folder of them")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    stores = {store.root: store for store in find(args.runs)}
    here = Owner.here("", "")
    elsewhere = 0
    for root, found in living(stores.values()).items():
        if not found:
            print(f"{root}: nothing works on it")
        for submission in found:
            owner = submission.owner
            if submission.jobs:
                scheduler.cancel(submission.jobs.values())
                print(f"{root}: cancelled SLURM jobs {', '.join(submission.jobs.values())}")
            elif (owner.host, owner.boot, owner.space) == (here.host, here.boot, here.space):
                with suppress(ProcessLookupError):
                    # Not SIGINT: a shell starts background jobs with that one ignored.
                    os.kill(owner.pid, signal.SIGTERM)
                print(f"{root}: interrupted process {owner.pid}")
            else:
                print(f"{root}: process {owner.pid} runs on {owner.host}; cancel it there")
                elsewhere += 1
                continue
            submission.state = "over"
            submission.write(stores[root])
    return 1 if elsewhere else 0

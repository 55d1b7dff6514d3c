"""``refseg cancel``: end the jobs and processes that work on runs. What is finished is kept."""

from __future__ import annotations

import argparse
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from refseg_bench.errors import printable
from refseg_bench.files.store_io import add_json, put_json
from refseg_bench.run.store import find_runs
from refseg_bench.run.submissions import living
from refseg_bench.run.workers import Census, Owner, cancel, describe, records, runs_command


def add(commands: Any) -> None:
    p = commands.add_parser("cancel")
    p.add_argument("runs", nargs="+", type=Path, help="run folders, or a folder of them")
    add_json(p, "what was ended")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    stores = {store.root: store for store in find_runs(args.runs)}
    here = Owner.here("", "")
    left = 0
    ended: dict[str, list[Any]] = {str(root): [] for root in stores}
    for root, found in living(stores.values()).items():
        census = Census()
        told = {submission.id for submission in found}
        others = [r for r in records(root) if not r.end and r.owner.launch not in told]
        others = [r for r in others if census.alive(r.owner, time.time() - r.beat)]
        if others:
            at_work = describe(record.owner for record in others)
            print(printable(f"{root}: {at_work}: workers end where they were started (SIGTERM)"))
            left += len(others)
        elif not found:
            print(f"{root}: nothing works on it")
        for submission in found:
            owner = submission.owner
            if submission.jobs:
                cancel(submission.jobs.values())
                print(f"{root}: cancelled SLURM jobs {', '.join(submission.jobs.values())}")
            elif (owner.host, owner.boot, owner.space) != (here.host, here.boot, here.space):
                print(printable(f"{root}: process {owner.pid} runs on {owner.host}; cancel it there"))
                left += 1
                continue
            elif not runs_command(owner.pid, owner.born, submission.command):
                print(
                    f"{root}: process {owner.pid} is not the command that the run's record names; left alone"
                )
                left += 1
                continue
            else:
                with suppress(ProcessLookupError):
                    # Not SIGINT: a shell starts background jobs with that one ignored.
                    os.kill(owner.pid, signal.SIGTERM)
                print(f"{root}: interrupted process {owner.pid}")
            ended[str(root)].append({"pid": owner.pid, "host": owner.host, "jobs": submission.jobs})
            submission.state = "over"
            submission.write(stores[root])
    put_json(args.json, ended)
    return 1 if left else 0

"""What the run folder keeps of every `refseg run`: who asked for what, and which jobs came of it.

Two submissions of one run find each other here: each writes its record first and looks for others next,
so that of two at the same time at least the later one sees the earlier.
"""

from __future__ import annotations

import getpass
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refseg_bench.errors import StoreError
from refseg_bench.files.store_io import read_record, readable, sealed, sealed_text, to_yaml
from refseg_bench.run.store import RunStore, record_of
from refseg_bench.run.workers import Census, Owner, is_job, moment, queued

_DROP = "Remove its folder: it only tells of one `refseg run`."


@dataclass
class Submission:
    """One `refseg run` of one run."""

    id: str  #: its folder's name below ``launches/`` and ``log/``
    kind: str  #: ``debug``, ``local``, ``ray`` or ``slurm``; ``frozen`` for workers that others start
    created: float  #: seconds since the epoch
    user: str  #: who
    command: str  #: the command line
    owner: Owner  #: the submitting process
    shards: int = 1  #: parts
    #: Role (``capture``, ``work``, ``score``, ``report``) → SLURM job id.
    jobs: dict[str, str] = field(default_factory=dict)
    #: ``open``, ``over``, ``refused`` when it made way for another, ``frozen`` for workers to join.
    state: str = "open"

    def write(self, store: RunStore) -> None:
        """Keep the record."""
        store.keep(sealed(asdict(self), 2), "launches", self.id, "launch.json")

    def told(self) -> str:
        """The submission in one line, for another one's user."""
        jobs = ", ".join(f"{role} job {number}" for role, number in self.jobs.items())
        where = jobs or f"process {self.owner.pid} on {self.owner.host}"
        kind = self.kind if self.kind == "frozen" else f"cluster={self.kind}"
        return f"{kind} by {self.user} at {moment(self.created)} ({where})"


def register(store: RunStore, values: Mapping[str, Any], kind: str, shards: int) -> Submission:
    """Freeze what this submission asks for and leave its record."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"
    submission = Submission(
        id=name,
        kind=kind,
        created=time.time(),
        user=_user(),
        command=shlex.join(sys.argv),
        owner=Owner.here(name, name),
        shards=shards,
    )
    store.keep(sealed_text(to_yaml(values)), "launches", name, "config.yaml")
    submission.write(store)
    return submission


def submissions(root: Path) -> list[Submission]:
    """All submissions of a run, the oldest first; damaged records are left out."""
    found = readable((root / "launches").glob("*/launch.json"), _read)
    return sorted(found, key=lambda s: (s.created, s.id))


def _read(path: Path) -> Submission:
    found = record_of(Submission, read_record(path), path, _DROP)
    if found.id != path.parent.name or not all(map(is_job, found.jobs.values())):
        raise StoreError("The record is of another submission, or names no job.", where=path, hint=_DROP)
    found.owner.check(path)
    return found


def living(stores: Iterable[RunStore]) -> dict[Path, list[Submission]]:
    """The submissions of each run that still have a process or a job; SLURM is asked once for all."""
    unfinished: dict[Path, Sequence[Submission]] = {
        store.root: [s for s in submissions(store.root) if s.state == "open"] for store in stores
    }
    ids = {number for found in unfinished.values() for s in found for number in s.jobs.values()}
    states = queued(ids)
    census = Census()

    def alive(submission: Submission) -> bool:
        if submission.jobs:
            # Where SLURM can't be asked, it may well be.
            return states is None or any(number in states for number in submission.jobs.values())
        return census.alive(submission.owner)

    return {root: [s for s in found if alive(s)] for root, found in unfinished.items()}


def _user() -> str:
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return "unknown"

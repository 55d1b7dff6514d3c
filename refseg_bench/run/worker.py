"""What a worker does: its part of one submission, from frozen files alone. It never composes.

``refseg work`` is the worker of every engine, ``cluster=local`` among them; submitit and Ray pickle the same
:class:`Shard`, because they start it again in their own ways. Everything heavy is imported inside the calls:
only when this module is loaded does submitit listen to SLURM's signals, and one that comes earlier ends the
job.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench.errors import ConfigError, RefsegError

if TYPE_CHECKING:
    from refseg_bench.run.progress import Progress
    from refseg_bench.run.shards import Tally

_PR_SET_PDEATHSIG = 1
#: Seconds that a worker which is told to end has for the sample it is at.
DRAIN = 20.0
#: Most parts of a run.
MOST_PARTS = 100_000
#: Variables that tell a worker its part, and of how many, by whoever may have started it; the first counts.
PARTS = {
    "REFSEG_SHARD": "REFSEG_SHARDS",
    "SLURM_ARRAY_TASK_ID": "SLURM_ARRAY_TASK_COUNT",
    "JOB_COMPLETION_INDEX": "REFSEG_SHARDS",  # Kubernetes doesn't tell a pod how many completions there are
    "SKYPILOT_NODE_RANK": "SKYPILOT_NUM_NODES",
    "RANK": "WORLD_SIZE",
}


class _Job:
    def checkpoint(self) -> Any:
        """What submitit re-queues when time is up: the same, for the store knows what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Shard(_Job):
    """One part of a run, callable wherever the run folder is mounted."""

    root: str  #: the run folder
    launch: str | None  #: the submission's id; ``None`` = one of its own
    #: shard, shards: which part of how many; ``None`` = all, beside others.
    shard: int | None
    shards: int
    capture: bool = False  #: fill the attention cache only
    #: Start or use the server that the submission names. Not of a run folder that somebody may have received:
    #: its words would be run here.
    serve: bool = True

    def __call__(self, progress: Progress | None = None) -> Tally:
        """Do it; ``progress`` is that of all runs of a command."""
        from refseg_bench.backbones.weights import wanted_by
        from refseg_bench.config.compose import load
        from refseg_bench.run.build import frozen
        from refseg_bench.run.loop import capture_on, work_on
        from refseg_bench.run.server import served
        from refseg_bench.run.store import RunStore

        store = RunStore.open(Path(self.root))
        with wanted_by(store.root):
            if self.capture:
                return capture_on(store, shard=self.shard or 0, shards=self.shards, launch=self.launch)
            values = frozen(store, self.launch)
            work = partial(
                work_on,
                store,
                shard=self.shard,
                shards=self.shards,
                launch=self.launch,
                steal=load(values).cluster.steal,
                progress=progress,
            )
            return served(values, self.launch or "", store.place("log", self.launch or ""), work, self.serve)


@dataclass(frozen=True)
class Command(_Job):
    """A command line of this program as a job."""

    arguments: tuple[str, ...]  #: after ``refseg``

    def __call__(self) -> None:
        """Run it; another code than 0 is an error, so that SLURM shows the job as failed."""
        code = subprocess.run([sys.executable, "-m", "refseg_bench", *self.arguments]).returncode
        if code != 0:
            raise RefsegError(f"`refseg {' '.join(self.arguments)}` ended with code {code}.")


def part_of(
    number: int | None, of: int | None, frozen: int, told: Mapping[str, str] = os.environ
) -> tuple[int | None, int]:
    """A worker's part and of how many: as it was given, else by the variables of :data:`PARTS`.

    ``frozen``: how many the run was frozen for, which holds where nothing else tells.

    Returns:
        ``None`` for the part where nothing tells one.

    Raises:
        ConfigError: there is no such part.

    >>> part_of(None, None, 1, {"JOB_COMPLETION_INDEX": "2", "REFSEG_SHARDS": "8", "RANK": "0"})
    (2, 8)
    >>> part_of(None, None, 8, {})
    (None, 1)
    """
    name, count = "--shard", "--of"
    if number is None and of is None:
        name = next((each for each in PARTS if told.get(each)), "REFSEG_SHARD")
        count = PARTS[name]
        if not told.get(name) and not told.get(count):
            return None, 1
        number = _whole(told, name)
        if name == "SLURM_ARRAY_TASK_ID":
            # An array may begin anywhere: --array=8-15.
            number -= _whole(told, "SLURM_ARRAY_TASK_MIN", "0")
            number //= max(1, _whole(told, "SLURM_ARRAY_TASK_STEP", "1"))
        known = name == "JOB_COMPLETION_INDEX"
        of = _whole(told, count, str(frozen) if known else "")
    number, of = -1 if number is None else number, frozen if of is None else of
    if not 0 <= number < of <= MOST_PARTS:
        raise ConfigError(
            f"There is no part {number} of {of}: parts are counted from 0, and {MOST_PARTS} at most.",
            where=f"{name} and {count}",
            hint=f"Set {count} to how many there are, or leave out both: then a worker takes what is open.",
        )
    return number, of


def _whole(told: Mapping[str, str], name: str, default: str = "") -> int:
    said = told.get(name) or default
    if not re.fullmatch(r"[0-9]{1,9}", said):
        raise ConfigError(
            f"{name} is '{said}'." if said else f"{name} is not set.", where=name, allowed=["0, 1, 2 …"]
        )
    return int(said)


@contextmanager
def draining() -> Iterator[None]:
    """Within the block SIGTERM hands back what this worker has taken, instead of ending it at once.

    After the sample it is at, or after :data:`DRAIN` seconds, or at once where it is told again, it ends by
    ``KeyboardInterrupt``.
    """
    from refseg_bench.run.workers import LEAVING

    def told(number: int, frame: Any) -> None:
        if number == signal.SIGALRM or LEAVING.is_set():
            raise KeyboardInterrupt
        LEAVING.set()
        signal.setitimer(signal.ITIMER_REAL, DRAIN)

    LEAVING.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with(parent: int) -> None:
    """End this process when its parent does (Linux; at once if it is gone), so that no shard works unseen."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)

"""What a worker does: one shard of one submission, from frozen files alone. It never composes.

SLURM gets these objects pickled by submitit; ``cluster=local`` starts ``refseg work`` with the same facts.
Everything heavy is imported inside the calls: only when this module is loaded does submitit listen to
SLURM's signals, and one that comes earlier ends the job.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench.errors import RefsegError

if TYPE_CHECKING:
    from refseg_bench.run.shards import Tally

_PR_SET_PDEATHSIG = 1


class _Job:
    def checkpoint(self) -> Any:
        """What submitit re-queues when time is up: the same, for the store knows what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Shard(_Job):
    """One part of a run, callable wherever the run folder is mounted.

    Attributes:
        root: the run folder.
        launch: the submission's id.
        shard, shards: which part of how many.
        capture: fill the attention cache only.
    """

    root: str
    launch: str
    shard: int
    shards: int
    capture: bool = False

    def __call__(self) -> Tally:
        """Do it."""
        from refseg_bench.config.compose import load
        from refseg_bench.run.build import frozen
        from refseg_bench.run.loop import capture_on, work_on
        from refseg_bench.run.store import RunStore

        store = RunStore.open(Path(self.root))
        if self.capture:
            return capture_on(store, shard=self.shard, shards=self.shards, launch=self.launch)
        steal = load(frozen(store, self.launch)).cluster.steal
        return work_on(store, shard=self.shard, shards=self.shards, launch=self.launch, steal=steal)


@dataclass(frozen=True)
class Command(_Job):
    """A command line of this program as a job.

    Attributes:
        arguments: after ``refseg``.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run it.

        Raises:
            RefsegError: it ended with another code than 0 (so SLURM shows the job as failed).
        """
        code = subprocess.run([sys.executable, "-m", "refseg_bench", *self.arguments]).returncode
        if code != 0:
            raise RefsegError(f"`refseg {' '.join(self.arguments)}` ended with code {code}.")


def die_with(parent: int) -> None:
    """End this process when its parent does (Linux), so that no shard works on unseen.

    Args:
        parent: the process id it must have; if it is gone already, this one ends at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)

"""Asking SLURM, and telling it to stop: thin, and rarely used (no polling storms).

Submitting lives in :mod:`refseg_bench.run.slurm`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from refseg_bench.errors import RefsegError

#: States in which a job's processes may be running.
_ACTIVE = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})


@dataclass(frozen=True, slots=True)
class JobState:
    """One job (or one task of an array) that is not over.

    Attributes:
        state: SLURM's word (``PENDING``, ``RUNNING`` …).
        restarts: how often it was re-queued.
    """

    state: str
    restarts: int

    @property
    def active(self) -> bool:
        """True if its processes may be running now."""
        return self.state in _ACTIVE


def is_job(number: str) -> bool:
    """Whether a text is a job id and nothing else: digits, for a task of an array ``_`` and more of them."""
    return re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18})?", number) is not None


def queued(job_ids: Iterable[str]) -> dict[str, JobState] | None:
    """Which of the jobs are not over, asked in one call.

    Args:
        job_ids: raw ids; the id of an array stands for its tasks.

    Returns:
        Raw job id → state, also of every listed array's tasks; ``None`` where SLURM can't be asked.
    """
    wanted = sorted(filter(is_job, set(job_ids)))
    if not wanted:
        return {}
    if shutil.which("squeue") is None:
        return None
    fields = "JobID:24,ArrayJobID:24,State:24,RestartCnt:12"
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", f"--jobs={','.join(wanted)}", f"--Format={fields}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        # A single id that SLURM has forgotten is an error to squeue, and an answer to us.
        return {} if "Invalid job id" in done.stderr else None
    found: dict[str, JobState] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        state = JobState(words[2], int(words[3]) if words[3].isdigit() else 0)
        found[words[0]] = state
        # An array is listed under its own id too, as long as one of its tasks is not over.
        found.setdefault(words[1], state)
    return found


def cancel(job_ids: Iterable[str]) -> None:
    """End jobs, pending or running.

    Raises:
        RefsegError: SLURM refused or can't be asked.
    """
    wanted = sorted(filter(is_job, set(job_ids)))
    if not wanted:
        return
    try:
        done = subprocess.run(["scancel", "--", *wanted], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefsegError(
            f"Can't ask SLURM ({error}).", where=" ".join(wanted), cure="Cancel from a login node."
        ) from error
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise RefsegError(f"scancel: {done.stderr.strip()}", where=" ".join(wanted))

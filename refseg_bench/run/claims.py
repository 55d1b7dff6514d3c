"""Which process takes which clip of a run, when several work on it at once.

A claim is a hard link of the worker's own record to ``claims/CLIP.N``: making one is a single atomic
step, on NFS too, and what it says can't be torn. N counts the owners of a clip: a process that finds
the last owner dead makes the next number, so nothing is ever deleted and two can't both take over.
A clip is claimed by expressions that are still open, once per submission, whatever came of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from refseg_bench.errors import StoreError
from refseg_bench.files.store_io import (
    leave_out,
    parse_json,
    read_bytes,
    safe_name,
    sealed,
    unsealed,
    within,
    write_atomic,
    write_error,
)
from refseg_bench.run.store import record_of
from refseg_bench.run.workers import AT_WORK, BEAT, Census, Owner

#: A file system without hard links, or a file with as many as it may have.
_NO_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})


#: Most bytes of a process's record.
_MOST = 1 << 20
_DROP = "Delete the file: it only tells who worked on the run, and since when."


@dataclass
class End:
    """The line that a process ends its record with.

    Attributes:
        seconds: wall time it worked.
        well: False where an exception ended it.
        error: that exception.
        gpus: accelerators it held; ``None`` = as many as its owner says.
        done, failed: samples.
    """

    seconds: float = 0.0
    well: bool = False
    error: str = ""
    gpus: int | None = None
    done: int = 0
    failed: int = 0


@dataclass(frozen=True)
class JobRecord:
    """What the run folder keeps of one process.

    Attributes:
        owner: the process.
        end: what it wrote when it ended; ``None`` before.
        beat: file time of its last sign of life.
        path: the file.
    """

    owner: Owner
    end: End | None
    beat: float
    path: Path

    @property
    def seconds(self) -> float:
        """Wall time it worked, up to its last sign of life."""
        return self.end.seconds if self.end else max(0.0, self.beat - self.owner.started)

    @property
    def gpu_hours(self) -> float:
        """Accelerators held × hours."""
        held = self.end.gpus if self.end else None
        return (self.owner.gpus if held is None else held) * self.seconds / 3600


def read_record(path: Path) -> JobRecord | None:
    """Read a process's record (or a claim, which is the same file); ``None`` while it is being made.

    Raises:
        StoreError: the record is damaged.
    """
    try:
        beat = path.stat().st_mtime
        # A line without its end is still being written.
        lines = read_bytes(path, _MOST).decode("utf-8").split("\n")[:-1]
        parts = [unsealed(parse_json(line), path) for line in lines[:2]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"The record of a process can't be read ({error}).", where=path, hint=_DROP
        ) from error
    if not parts:
        return None
    owner = record_of(Owner, parts[0], path, _DROP)
    owner.check(path)
    end = record_of(End, parts[1], path, _DROP) if len(parts) > 1 else None
    return JobRecord(owner, end, beat, path)


def records(root: Path) -> list[JobRecord]:
    """Every process that ever worked on the run, in the order they started; damaged records are left out."""
    found: list[JobRecord] = []
    for path in sorted((root / "jobs").glob("*.json")):
        try:
            record = read_record(path)
        except StoreError as error:
            leave_out(error)
        else:
            found += [] if record is None else [record]
    return found


class Desk:
    """A worker's place in a run: its record, its claims, its count of failures.

    Args:
        root: the run folder.
        owner: this process.
        census: who is alive; by default one that asks about all of the run's processes at once.
    """

    def __init__(self, root: Path, owner: Owner, census: Census | None = None) -> None:
        self.root, self.owner = root, owner
        self._launch = root / "launches" / owner.launch
        self.census = census or Census(
            lambda: [r.owner for r in records(root) if not r.end], within(root, self._launch) / "queue.json"
        )
        self.record = root / "jobs" / f"{owner.job}.json"
        self._held: Path | None = None
        self._end: dict[str, Any] = {}
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            for folder in ("jobs", "claims", "log", "launches"):
                within(self.root, self.root / folder)
            for folder in ("jobs", "claims"):
                (self.root / folder).mkdir(exist_ok=True)
            write_atomic(self.record, sealed(asdict(self.owner)))
        except OSError as error:
            raise write_error(error, self.record) from error
        AT_WORK.add(self.owner.job)
        self._pulse.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        AT_WORK.discard(self.owner.job)
        # A process that ends by an exception leaves its claims to be taken over.
        end = {**self._end, "well": kind is None, "seconds": time.time() - self.owner.started}
        if isinstance(error, Exception):
            end["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        with contextlib.suppress(OSError), self.record.open("a", encoding="utf-8") as handle:
            # The claims are links to this file: this line ends all of them.
            handle.write(sealed(end))

    def finish(self, **facts: Any) -> None:
        """What to remember of this process when it ends well."""
        self._end.update(facts)

    def take(self, clip_id: str) -> bool:
        """Claim a clip.

        Returns:
            False if a living process has it, or this submission is through with it.

        Raises:
            StoreError: the claim can't be written.
        """
        name = safe_name(clip_id)
        for number in range(1 << 30):
            path = self.root / "claims" / f"{name}.{number}"
            if self._make(path):
                self._held = self.root / "claims" / f"{name}.{number + 1}"
                return True
            claim = read_record(path)
            if claim is None:
                # Being made, where no links can be; or its maker was killed at it.
                if self._since(path) < 2 * BEAT:
                    return False
                continue
            # The same file where links can be made; where they can't, the claim is an old copy.
            held = read_record(self.root / "jobs" / f"{claim.owner.job}.json") or claim
            if held.end:
                if held.end.well and held.owner.launch == self.owner.launch:
                    return False
            elif self.census.alive(held.owner, self._since(held.path)):
                return False
        raise AssertionError("unreachable")

    @property
    def lost(self) -> bool:
        """Whether another process took over the clip last taken here.

        It does so only when it was told that this one is dead, as SLURM says of a node it can't reach.
        """
        return self._held is not None and self._held.exists()

    def fail(self, sample: str) -> int:
        """Count a failed sample of this submission; returns how many there are, of all its processes."""
        folder = self._launch / "failed"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / safe_name(sample)).touch()
        with contextlib.suppress(OSError):
            return sum(1 for _ in folder.iterdir())
        return 0

    def stop(self) -> None:
        """Tell the other processes of this submission to stop."""
        with contextlib.suppress(OSError):
            self._launch.mkdir(parents=True, exist_ok=True)
            (self._launch / "stop").touch()

    @property
    def stopped(self) -> bool:
        """Whether a process of this submission said so."""
        return (self._launch / "stop").exists()

    def _make(self, path: Path) -> bool:
        try:
            os.link(self.record, path)
            return True
        except FileExistsError:
            # Over NFS the answer to a link that was made can get lost, and the repeated call fails.
            with contextlib.suppress(OSError):
                return path.samefile(self.record)
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise write_error(error, path) from error
        return self._copy(path)

    def _copy(self, path: Path) -> bool:
        """The same where no link can be made: O_EXCL is atomic too."""
        try:
            with path.open("x", encoding="utf-8") as handle:
                handle.write(sealed(asdict(self.owner)))
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise write_error(error, path) from error

    def _since(self, path: Path) -> float:
        """Seconds since a file was touched; 0 where it can't be told."""
        # Both times are the file server's: the clocks of two machines needn't agree.
        with contextlib.suppress(OSError):
            os.utime(self.record)
            return self.record.stat().st_mtime - path.stat().st_mtime
        return 0.0

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.record)


def forget(root: Path) -> None:
    """Drop the claims of a run whose samples are all there: nobody needs them any more."""
    with contextlib.suppress(OSError):
        for path in within(root, root / "claims").glob("*"):
            path.unlink(missing_ok=True)

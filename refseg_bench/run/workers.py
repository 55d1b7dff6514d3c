"""Who works on a run, whether that process still lives, and which clip it has taken.

A claim or a submission must not expire by a clock alone: the operating system is asked about processes
of this machine, SLURM about its jobs. Only for a process that neither can tell of (another machine,
no scheduler) does a heartbeat that has stopped for long stand in.

A claim is a hard link of the worker's own record to ``claims/CLIP.N``: making one is a single atomic
step, on NFS too, and what it says can't be torn. N counts the owners of a clip: a process that finds
the last owner dead makes the next number, so nothing is ever deleted and two can't both take over.
A clip is claimed by expressions that are still open, once per submission, whatever came of it.

SLURM is asked rarely, about many jobs at once; submitting to it lives in :mod:`refseg_bench.run.slurm`.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from refseg_bench import env
from refseg_bench.errors import RefsegError, StoreError
from refseg_bench.files.store_io import (
    PUT_BACK,
    parse_json,
    read_bytes,
    read_record,
    readable,
    safe_name,
    sealed,
    unsealed,
    within,
    write_atomic,
    writing,
)
from refseg_bench.run.store import record_of

#: Ending of the file beside a record that says what its process is at, and its most characters.
_NOW, _MOST_NOW = ".now", 1000
#: Seconds between two signs of life of a worker.
BEAT = 30.0
#: Without any sign of life for so long, a process nobody can be asked about is taken for dead.
SILENCE = 20 * BEAT
#: Variable by which one who starts workers again calls each: of one name no two live.
TASK = "REFSEG_TASK"
#: Jobs this very process is at; one that it ended badly is dead, although its process lives on.
AT_WORK: set[str] = set()
#: Set when this process was told to end: it hands back what it has taken.
LEAVING = threading.Event()
#: Seconds for which an answer of SLURM is good.
_FRESH = 60.0
#: States in which a job's processes may be running.
_ACTIVE = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})

#: A file system without hard links, or a file with as many as it may have.
_NO_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})
#: Most bytes of a process's record.
_MOST = 1 << 20
_DROP = "Delete the file: it only tells who worked on the run, and since when."


@dataclass(frozen=True)
class Owner:
    """One process that works on a run, told apart from every other."""

    job: str  #: name of its files in the run folder
    launch: str  #: the submission it belongs to
    host: str  #: the node's name (SLURM's own where there is one)
    boot: str  #: the host's boot id; a reboot ends all of its processes
    space: str  #: the process-id namespace; a pid means nothing outside its container
    #: pid, born: process id and its start time in the kernel's clock ticks.
    pid: int
    born: int
    slurm: str | None  #: raw SLURM job id, or ``None``
    restarts: int  #: how often SLURM had re-queued that job
    #: shard, shards: its part of the run.
    shard: int
    shards: int
    gpus: int  #: accelerators it holds
    started: float  #: seconds since the epoch
    task: str = ""  #: what the one who starts it again calls it, else empty

    @classmethod
    def here(cls, job: str, launch: str, *, shard: int = 0, shards: int = 1) -> Owner:
        """This process."""
        slurm, restarts = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "RESTART_COUNT"))
        return cls(
            job=job,
            launch=launch,
            host=_host(),
            boot=_boot(),
            space=_space(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            slurm=slurm if is_job(slurm) else None,
            restarts=int(restarts) if is_job(restarts) else 0,
            shard=shard,
            shards=shards,
            gpus=env.gpus(),
            started=time.time(),
            task=os.environ.get(TASK, ""),
        )

    def check(self, path: Path) -> None:
        """See to it that an owner that was read from ``path`` can be a process.

        Raises:
            StoreError: it can't.
        """
        named = self.slurm is None or is_job(self.slurm)
        if self.pid < 1 or not named or safe_name(self.job) != self.job or not moment(self.started):
            raise StoreError("The record names no process.", where=path, hint=PUT_BACK)


@dataclass(frozen=True)
class Answer:
    """What SLURM said."""

    when: float  #: seconds since the epoch when it was asked
    asked: list[str]  #: the jobs asked about
    states: dict[str, JobState] | None  #: those that are not over; ``None`` where SLURM couldn't be asked

    def fresh(self) -> bool:
        """Whether it is still good; one from the future (another node's clock) isn't."""
        return 0 <= time.time() - self.when < _FRESH

    def tells_of(self, owner: Owner) -> bool:
        """Whether the owner need not be asked about again."""
        return self.fresh() and (owner.slurm in self.asked or owner.started > self.when)

    def write(self, path: Path) -> None:
        """Keep it for other processes, if it can be."""
        with suppress(OSError):
            write_atomic(path, sealed(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Answer | None:
        """A kept answer that is still good; a damaged file is none."""
        with suppress(StoreError):
            found = record_of(cls, read_record(path), path)
            return found if found.fresh() else None
        return None


@dataclass(eq=False)
class Census:
    """Answers whether owners live; SLURM's answers are kept for a while, deaths for ever."""

    #: Gives the owners of the run that have not ended; SLURM is asked about all in one call.
    peers: Callable[[], Iterable[Owner]] = tuple
    shared: Path | None = None  #: a file for SLURM's answer, for all processes of a submission
    _dead: set[str] = field(default_factory=set, init=False)
    _answer: Answer | None = field(default=None, init=False)
    _here: tuple[str, str, str] = field(default_factory=lambda: (_host(), _boot(), _space()), init=False)

    def alive(self, owner: Owner, silent: float = 0.0) -> bool:
        """Whether the process still runs; in doubt, yes. ``silent``: seconds since its last sign of life."""
        if owner.job in self._dead:
            return False
        living = self._look(owner, silent)
        if not living:
            self._dead.add(owner.job)
        return living

    def _look(self, owner: Owner, silent: float) -> bool:
        host, boot, space = self._here
        if owner.host == host and owner.boot != boot:
            return False
        if (owner.host, owner.space) == (host, space):
            if owner.pid == os.getpid():
                return owner.job in AT_WORK
            return lives(owner.pid, owner.born)
        if owner.slurm is not None:
            return self._slurm(owner)
        return silent < SILENCE

    def _slurm(self, owner: Owner) -> bool:
        assert owner.slurm is not None
        if self._answer is None or not self._answer.tells_of(owner):
            self._answer = self._ask(owner) if self.shared is None else self._ask_together(owner)
        answer = self._answer
        # An answer says nothing of a process that came after it, or that it was not asked about.
        if answer is None or not answer.tells_of(owner) or owner.started > answer.when:
            return True
        if answer.states is None:
            return True
        state = answer.states.get(owner.slurm)
        # Pending again, or started again: the process that we knew is gone.
        return state is not None and state.state in _ACTIVE and state.restarts == owner.restarts

    def _ask(self, owner: Owner) -> Answer:
        ids = {o.slurm for o in (owner, *self.peers()) if o.slurm is not None}
        when = time.time()
        return Answer(when, sorted(ids), queued(ids))

    def _ask_together(self, owner: Owner) -> Answer | None:
        """The answer that a process of the submission has, or one to be had by all; ``None`` = not now."""
        assert self.shared is not None
        found = Answer.read(self.shared)
        if found is not None:
            return found
        # One process asks within a minute; a lock that a killed one leaves counts for its minute only.
        lock = self.shared.with_name(f"{self.shared.stem}-{int(time.time() // _FRESH)}.lock")
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            return None
        except OSError:
            return self._ask(owner)
        try:
            found = Answer.read(self.shared) or self._ask(owner)
            found.write(self.shared)
        finally:
            for old in self.shared.parent.glob(f"{self.shared.stem}-*.lock"):
                with suppress(OSError):
                    old.unlink()
        return found


def leave() -> None:
    """End this process's work if it was told to; from now on nothing but another signal cuts it short."""
    if LEAVING.is_set():
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def describe(owners: Iterable[Owner]) -> str:
    """Owners in one line, for a person."""
    told = []
    for o in owners:
        what = f"SLURM job {o.slurm}" if o.slurm else f"process {o.pid}"
        told.append(f"{what} on {o.host} since {moment(o.started)}")
    return "; ".join(told)


def moment(seconds: float) -> str:
    """Seconds since the epoch as local date and time; empty where there is no such date."""
    with suppress(ValueError, OverflowError, OSError):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    return ""


def lives(pid: int, born: int) -> bool:
    """Whether that very process (not a later one with its number) is running."""
    stat = _stat(pid)
    if stat is None:
        if Path("/proc/self/stat").exists():
            return False
        with suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
        return True
    return stat[0] not in ("Z", "X") and (born == 0 or int(stat[19]) == born)


def runs_command(pid: int, born: int, command: str) -> bool:
    """Whether the process started at that time and runs that `refseg` command line; in doubt, no.

    A record from elsewhere may name any process.
    """
    try:
        said = shlex.split(command)[1:]
        line = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except (OSError, ValueError):
        return False
    program, words = line[: len(line) - len(said)], line[len(line) - len(said) :]
    ours = any(Path(word).name in ("refseg", "refseg_bench") for word in program)
    return born > 0 and lives(pid, born) and words == said and ours


def _stat(pid: int) -> list[str] | None:
    """Fields of ``/proc/PID/stat`` from the state on, or ``None``."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _born(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[19]) if stat else 0


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename.split(".")[0]


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


# ── asking SLURM ────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class JobState:
    """One job (or task of an array) that is not over: SLURM's word for it, and how often it was re-queued."""

    state: str
    restarts: int


def _client(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def is_job(number: str) -> bool:
    """Whether a text is a job id and nothing else: digits, for a task of an array ``_`` and more of them."""
    return re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18})?", number) is not None


def queued(job_ids: Iterable[str]) -> dict[str, JobState] | None:
    """Which of the jobs are not over, asked in one call. An array's id stands for its tasks.

    Raw job id → state, also of every listed array's tasks; ``None`` where SLURM can't be asked.
    """
    wanted = sorted(filter(is_job, set(job_ids)))
    if not wanted:
        return {}
    fields = "JobID:24,ArrayJobID:24,State:24,RestartCnt:12"
    try:
        done = _client("squeue", "--noheader", "--array", f"--jobs={','.join(wanted)}", f"--Format={fields}")
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
        done = _client("scancel", "--", *wanted)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefsegError(
            f"Can't ask SLURM ({error}).", where=" ".join(wanted), hint="Cancel from a login node."
        ) from error
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise RefsegError(f"scancel: {done.stderr.strip()}", where=" ".join(wanted))


@dataclass
class End:
    """The line that a process ends its record with."""

    seconds: float = 0.0  #: wall time it worked
    well: bool = False  #: False where an exception ended it
    error: str = ""  #: that exception
    gpus: int | None = None  #: accelerators it held; ``None`` = as many as its owner says
    #: done, failed: samples.
    done: int = 0
    failed: int = 0


@dataclass(frozen=True)
class JobRecord:
    """What the run folder keeps of one process; ``beat``: file time of its last sign of life."""

    owner: Owner
    end: End | None
    beat: float
    path: Path

    @property
    def now(self) -> str:
        """What it said last that it was at; empty where it said nothing."""
        with suppress(OSError, StoreError, ValueError):
            return read_bytes(self.path.with_suffix(_NOW), 4 * _MOST_NOW).decode("utf-8")
        return ""

    @property
    def seconds(self) -> float:
        """Wall time it worked, up to its last sign of life."""
        return self.end.seconds if self.end else max(0.0, self.beat - self.owner.started)

    @property
    def gpu_hours(self) -> float:
        """Accelerators held × hours."""
        held = self.end.gpus if self.end else None
        return (self.owner.gpus if held is None else held) * self.seconds / 3600


def job_record(path: Path) -> JobRecord | None:
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
    return [record for record in readable((root / "jobs").glob("*.json"), job_record) if record is not None]


class Desk:
    """A worker's place in a run: its record, its claims, its count of failures.

    ``census``: who is alive; by default one that asks about all of the run's processes at once.
    """

    def __init__(self, root: Path, owner: Owner, census: Census | None = None) -> None:
        self.root, self.owner = root, owner
        self._launch = root / "launches" / owner.launch
        self.census = census or Census(
            lambda: [r.owner for r in records(root) if not r.end], within(root, self._launch) / "queue.json"
        )
        self.record = root / "jobs" / f"{owner.job}.json"
        #: The claim last made, and the one that a process which takes over makes.
        self._held: tuple[Path, Path] | None = None
        #: Of the clip last taken here: nobody has had it before; this submission was through with it.
        self.first = self.again = False
        self._end: dict[str, Any] = {}
        #: What it is at, for those who ask; told with every sign of life.
        self.now: Callable[[], str] = str
        self._began = time.monotonic()  # the time of day may be set meanwhile
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        with writing(self.record):
            for folder in ("jobs", "claims", "log", "launches"):
                within(self.root, self.root / folder)
            for folder in ("jobs", "claims"):
                (self.root / folder).mkdir(exist_ok=True)
            write_atomic(self.record, sealed(asdict(self.owner)))
            if self.owner.task:
                self._succeed()
        AT_WORK.add(self.owner.job)
        self._pulse.start()
        return self

    def _succeed(self) -> None:
        """End what former processes of this task left open."""
        mine = self.owner

        def former(other: Owner) -> bool:
            if other.task != mine.task or other.job == mine.job:
                return False
            here = (other.host, other.boot, other.space) == (mine.host, mine.boot, mine.space)
            # One that lives is no predecessor: both have the variable from who started them.
            return not (here and self.census.alive(other))

        close(self.root, former, "it was lost, and started again")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._pulse.join()
        with suppress(OSError):
            self.record.with_suffix(_NOW).unlink(missing_ok=True)
        AT_WORK.discard(self.owner.job)
        # A process that ends by an exception leaves its claims to be taken over.
        end = {**self._end, "well": kind is None, "seconds": time.monotonic() - self._began}
        if isinstance(error, Exception):
            end["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        there = os.O_WRONLY | os.O_APPEND  # it isn't made anew where the run was removed meanwhile
        with suppress(OSError), os.fdopen(os.open(self.record, there), "w", encoding="utf-8") as handle:
            # The claims are links to this file: this line ends all of them.
            handle.write(sealed(end))

    def finish(self, **facts: Any) -> None:
        """What to remember of this process when it ends well."""
        self._end.update(facts)

    def take(self, clip_id: str, failed_by: str = "", *, lost: bool = False) -> bool:
        """Claim a clip.

        Args:
            clip_id: the clip.
            failed_by: the process by which all that is open of the clip has failed: it is through with it.
            lost: samples of it have no outcome. Where this submission is through with it, and not just now
                (a file server may be late to tell), they were lost, as by a file that somebody removed.

        Returns:
            False if a living process has it, or this submission is through with it.

        Raises:
            StoreError: the claim can't be written.
        """
        name, again = safe_name(clip_id), False
        for number in range(1 << 30):
            path = self.root / "claims" / f"{name}.{number}"
            if self._make(path):
                self.first, self.again = number == 0, again
                self._held = path, path.with_name(f"{name}.{number + 1}")
                return True
            claim = job_record(path)
            if claim is None:
                # Being made, where no links can be; or its maker was killed at it.
                if self._since(path) < 2 * BEAT:
                    return False
                continue
            # The same file where links can be made; where they can't, the claim is an old copy.
            held = job_record(self.root / "jobs" / f"{claim.owner.job}.json") or claim
            if (held.end and held.end.well) or held.owner.job == failed_by:
                mine = held.owner.launch == self.owner.launch
                if mine and not (lost and held.end and self._since(held.path) > 2 * BEAT):
                    return False
                again = again or mine
            elif held.end is None and self.census.alive(held.owner, self._since(held.path)):
                return False
        raise AssertionError("unreachable")

    @property
    def lost(self) -> bool:
        """Whether another process took over the clip last taken here.

        It does so only when it was told that this one is dead, as SLURM says of a node it can't reach. When
        all is done the claims are dropped.
        """
        if self._held is None or self._held[1].exists():
            return self._held is not None
        with suppress(StoreError):
            claim = job_record(self._held[0])
            return claim is None or claim.owner.job != self.owner.job
        return False

    def fail(self, sample: str) -> int:
        """Count a failed sample of this submission; returns how many there are, of all its processes."""
        folder = self._launch / "failed"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / safe_name(sample)).touch()
        with suppress(OSError):
            return sum(1 for _ in folder.iterdir())
        return 0

    def stop(self) -> None:
        """Tell the other processes of this submission to stop."""
        with suppress(OSError):
            self._launch.mkdir(parents=True, exist_ok=True)
            (self._launch / "stop").touch()

    @property
    def stopped(self) -> bool:
        """Whether a process of this submission said so."""
        return (self._launch / "stop").exists()

    def _make(self, path: Path) -> bool:
        """Write a claim; False if there is one."""
        with writing(path):
            try:
                os.link(self.record, path)
                return True
            except FileExistsError:
                # Over NFS the answer to a link that was made can get lost, and the repeated call fails.
                with suppress(OSError):
                    return path.samefile(self.record)
                return False
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            # O_EXCL is atomic, too.
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as handle:
                handle.write(sealed(asdict(self.owner)))
                return True
        return False

    def _since(self, path: Path) -> float:
        """Seconds since a file was touched; 0 where it can't be told."""
        # Both times are the file server's: the clocks of two machines needn't agree.
        with suppress(OSError):
            os.utime(self.record)
            return self.record.stat().st_mtime - path.stat().st_mtime
        return 0.0

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            # Signs of life go on whatever is wrong with what is told: it changes while it is read, or nobody
            # reads the terminal any more.
            with suppress(Exception):
                os.utime(self.record)
                if now := self.now()[:_MOST_NOW]:
                    write_atomic(self.record.with_suffix(_NOW), now)


def close(root: Path, lost: Callable[[Owner], bool], why: str) -> None:
    """End the records that lost processes left open: nobody else tells of a machine that is gone.

    Raises:
        StoreError: a record can't be written, or leads out of the folder.
    """
    for record in records(root):
        if record.end is None and lost(record.owner):
            with writing(record.path), within(root, record.path).open("a", encoding="utf-8") as handle:
                handle.write(sealed(asdict(End(record.seconds, error=why))))


def forget(root: Path, census: Census | None = None) -> None:
    """Drop the claims of a run whose samples are all there, unless a process still goes by them."""
    census = census or Census()
    if any(not r.end and census.alive(r.owner, time.time() - r.beat) for r in records(root)):
        return
    with suppress(OSError):
        for path in within(root, root / "claims").glob("*"):
            path.unlink(missing_ok=True)

"""The run folder: frozen config, predictions, scores. Append-only, no locks, safe on NFS.

Layout of one run::

    runs/METHOD-DATASET-1a2b3c4d/
      config.yaml            frozen, resolved; workers read nothing else
      run.json               name, digest, command line, choices
      data.json              what the last command saw of the data set: samples, texts, frame names
      summary.json           what `refseg status` says of many predictions, while they are the same
      env/JOB.json           one environment record per process that worked on the run
      predictions/JOB.jsonl  one line per sample; each process has its own file
      maps/SAMPLE.npz        attention maps kept for the report
      pictures/DIGEST.jpg    what a chat model was shown, kept for the report
      scores/PROTOCOL@V/     samples.parquet, result.json and made_from.json
      jobs/JOB.json          who worked on the run, from when to when
      claims/CLIP.N          which of them took a clip
      launches/ID/           what one `refseg run` asked for, frozen
      log/                   one log per process

A line is durable once it ends in a newline: a torn last line is ignored. A sample is *done* when any
file holds a good line of it; failed samples are tried again by the next run. Every record and line ends
with a checksum of its content, and so does ``config.yaml``; ``result.json`` holds the one of its table.
What a folder holds is checked when it is read, for it may come from anywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError, StoreError, some
from refseg_bench.files.store_io import (
    PUT_BACK,
    checksum,
    content,
    leads_out,
    look,
    open_regular,
    parse_json,
    read_bytes,
    read_npz,
    read_record,
    reading,
    replacing,
    safe_name,
    sealed,
    sealed_text,
    sweep,
    sync,
    to_plain,
    within,
    without_nan,
    write_atomic,
    write_error,
    writing,
)
from refseg_bench.types import (
    Grounding,
    HeatPoint,
    Inputs,
    MaskTrack,
    Prediction,
    Result,
    SampleFailure,
    Status,
    rle_fault,
    sample_id,
)

# Every line starts with these keys in this order, so that an index is made without parsing masks.
_HEAD = re.compile(
    rb'\{"sample": ("(?:[^"\\]|\\.)*"), "clip": ("(?:[^"\\]|\\.)*"), "ok": (true|false)'
    rb'(?:, "turn": (\d{1,9}), "inputs": \["([0-9a-f]{0,32})", "([0-9a-f]{0,32})", "([0-9a-f]{0,32})"'
    rb'(?:, "([0-9a-f]{1,32})")?\](?:, "weights": "([0-9a-f]{1,32})")?)?'
    rb'(?:, "run": "([0-9a-z]{1,64})")?'
)

# And ends with the checksum of all bytes before, and before that what the sample took.
_TAIL = re.compile(rb', "check": "([0-9a-f]{16})"\}\s*\Z')
#: Its length, where nothing but the newline comes after it.
_TAIL_LENGTH = len(', "check": "0123456789abcdef"}\n')
_TOOK = re.compile(
    rb'(?:"cost": (\{[^{}]{0,999}\})\}, )?"seconds": (\{[^{}]{0,2999}\}), "peak_mb": [^{}]{1,99}\}\s*\Z'
)
#: What is counted of a chat model's conversations.
_COUNTED = ("calls", "replayed", "images", "prompt_tokens", "answer_tokens")
#: Most bytes of a line.
_LONGEST = 256 << 20


@dataclass(frozen=True, slots=True)
class StoredLine:
    """Where one stored sample lies."""

    sample: str
    clip: str
    ok: bool
    path: Path
    offset: int
    length: int
    #: ``facts``, ``files``, ``state``, ``truth`` and ``weights`` of its :class:`~refseg_bench.types.Inputs`;
    #: ``None`` = not known.
    inputs: tuple[str, str, str, str, str] | None = None
    turn: int = 0  #: as in its :class:`~refseg_bench.types.Prediction`


def job_name() -> str:
    """A name no other process has: start time, SLURM job where there is one, host, pid."""
    number = os.environ.get("SLURM_JOB_ID", "")
    slurm = f"slurm{number}-" if re.fullmatch("[0-9]{1,18}", number) else ""
    host = os.uname().nodename.split(".")[0]
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slurm}{host}-{os.getpid()}-{os.urandom(3).hex()}"


class PredictionWriter:
    """Appends samples of one process to its own file.

    A write that fails (disk full) is cut off again, so that what was finished stays readable. Each line bears
    the run's digest: lines that came from another run's folder are no samples of this one.
    """

    def __init__(self, root: Path, job: str, run: str) -> None:
        self.job, self.run = job, run
        self.path = root / "predictions" / f"{job}.jsonl"
        self._handle: IO[bytes] | None = None
        self._synced = -math.inf
        self._durable = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        try:
            self._synced = -math.inf
            self.sync()
        except StoreError:
            # An error that is under way already says more.
            if kind is None:
                raise
        finally:
            self._handle.close()
            self._handle = None

    def append(self, prediction: Prediction) -> None:
        """Store one sample; it is durable against the death of the process on return.

        Raises:
            StoreError: the line can't be written.
        """
        line, good = line_of(prediction, self.run), 0
        try:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # "x": no two processes ever share a file.
                self._handle = self.path.open("xb", buffering=0)
            good = self._handle.tell()
            view = memoryview(line)
            while view:
                view = view[self._handle.write(view) :]
        except OSError as error:
            if self._handle is not None:
                with contextlib.suppress(OSError):
                    self._handle.truncate(good)
                    self._handle.seek(good)
            raise write_error(error, self.path) from error

    def sync(self) -> None:
        """Make what was appended durable against the death of the machine, at most once a second.

        Raises:
            StoreError: it can't be made so (NFS tells of a full disk here). What was appended since the
                last time is cut off again: those samples stay open.
        """
        now = time.monotonic()
        if self._handle is None or now - self._synced < 1.0:
            return
        end = self._handle.tell()
        try:
            sync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._handle.truncate(self._durable)
                self._handle.seek(self._durable)
            raise write_error(error, self.path) from error
        self._synced, self._durable = now, end


def line_of(prediction: Prediction, run: str = "") -> bytes:
    """A prediction as it is stored in the run of that digest."""
    text = json.dumps(_record(prediction, run), ensure_ascii=True)[:-1].encode()
    return text + f', "check": "{checksum(text)}"}}\n'.encode()


def better(line: StoredLine, known: StoredLine) -> bool:
    """Whether of two lines of one sample the first is the one to go by."""
    if line.turn != known.turn:
        return line.turn > known.turn
    if line.ok != known.ok:
        return line.ok
    # By file and place, whatever order the files grew in: two readers agree on the best line.
    earlier = (line.path, line.offset) < (known.path, known.offset)
    return earlier if line.ok else not earlier


def scan(path: Path, offset: int, damaged: Callable[[int], None], run: str = "") -> Iterator[StoredLine]:
    """The good lines of a predictions file from an offset on.

    ``damaged`` receives the offset of every line that is no whole record, or of another run than ``run``
    (empty = any).
    """
    with reading(path), open_regular(path) as handle:
        handle.seek(offset)
        for raw in iter(lambda: handle.readline(_LONGEST), b""):
            if not raw.endswith(b"\n"):
                # Still being written, or torn; else whole but for its newline, or without an end.
                if _sound(raw[:-1]) or len(raw) >= _LONGEST:
                    damaged(offset)
                return
            line = _stored(raw, path, offset, run)
            if line is not None:
                yield line
            elif not raw.isspace():
                damaged(offset)
            offset += len(raw)


def _stored(raw: bytes, path: Path, offset: int, run: str) -> StoredLine | None:
    """A line by its first keys, if it fits its checksum."""
    head = _HEAD.match(raw)
    if head is None or not _sound(raw):
        return None
    named, within, ok, turn, facts, files, state, truth, weights, digest = head.groups()
    try:
        sample, clip = _text(named), sys.intern(_text(within))
    except ValueError:
        return None
    if not sample.startswith(f"{clip}/") or (run and digest is not None and digest.decode() != run):
        return None
    inputs = None
    if turn is not None:
        # Samples of one clip share their digests.
        shared = [sys.intern(part.decode()) if part else "" for part in (files, state, weights)]
        inputs = (facts.decode(), shared[0], shared[1], truth.decode() if truth else "", shared[2])
    return StoredLine(sample, clip, ok == b"true", path, offset, len(raw), inputs, int(turn or 0))


def _text(told: bytes) -> str:
    """A JSON text; most hold nothing that needs a parser."""
    plain = told[1:-1].decode() if b"\\" not in told and told.isascii() else "\0"
    return plain if plain.isprintable() else str(json.loads(told))


def _sound(raw: bytes) -> bool:
    """Whether a line fits the checksum at its end."""
    tail = _TAIL.match(raw, len(raw) - _TAIL_LENGTH) or _TAIL.search(raw)
    return tail is not None and checksum(raw[: tail.start()]) == tail[1].decode()


def _record(p: Prediction, run: str) -> dict[str, Any]:
    record: dict[str, Any] = {"sample": p.sample, "clip": p.clip, "ok": p.ok}
    if p.inputs is not None:
        record["turn"] = p.turn
        truth = [p.inputs.truth] if p.inputs.truth else []
        record["inputs"] = [p.inputs.facts, p.inputs.files, p.inputs.state, *truth]
        if p.inputs.weights:
            record["weights"] = p.inputs.weights
    if run:
        record["run"] = run
    record["expression"] = p.expression
    if p.inputs is not None:
        record["text"] = p.inputs.text
        record["frames"] = list(p.inputs.frames)
        record["size"] = list(p.inputs.size)
    if p.track is not None:
        record["size"] = list(p.track.size)
        record["rles"] = [None if r is None else r.decode("ascii") for r in p.track.rles]
    if p.failure is not None:
        record["failure"] = asdict(p.failure)
    if p.point is not None:
        record["point"] = [p.point.frame, p.point.y, p.point.x, p.point.value]
    if p.no_target is not None:
        record["no_target"] = p.no_target
    if p.details:
        record["details"] = to_plain(p.details)
    record["seconds"] = {k: round(v, 6) for k, v in p.seconds.items()}
    record["peak_mb"] = round(p.peak_mb, 1)
    return record


def _took(end: bytes) -> dict[str, float]:
    """What a line's last bytes say of a sample's cost."""
    found = _TOOK.search(end)
    cost, seconds = ({}, {}) if found is None else (_numbers(found[1]), _numbers(found[2]))
    took = {"seconds": seconds["total"]} if "total" in seconds else {}
    if "calls" in cost:
        took |= {name: cost[name] for name in _COUNTED if name in cost}
        took |= {"reply_seconds": cost["seconds"]} if "seconds" in cost else {}
    return took


def _numbers(text: bytes | None) -> dict[str, float]:
    with contextlib.suppress(ValueError):
        return {k: v for k, v in parse_json((text or b"{}").decode()).items() if _finite(v) and v >= 0}
    return {}


def _prediction(r: Any) -> Prediction:
    """Undo :func:`_record`; a value that is not what it has to be is a ``ValueError``."""
    _expect(isinstance(r, dict), "line")
    for name in ("sample", "clip", "expression"):
        _expect(isinstance(r.get(name), str), name)
    _expect(r["sample"] == sample_id(r["clip"], r["expression"]), "sample")
    inputs = None
    if "inputs" in r:
        said, frames, size = r["inputs"], r.get("frames"), r.get("size")
        _expect(isinstance(said, list) and len(said) in (3, 4), "inputs")
        _expect(all(isinstance(part, str) for part in said), "inputs")
        _expect(isinstance(frames, list) and [type(part) for part in frames] == [int, str, str], "frames")
        _expect(isinstance(r.get("text"), str), "text")
        _expect(isinstance(r.get("weights", ""), str), "weights")
        facts, files, state, *truth = said
        more = "".join(truth), r.get("weights", "")
        inputs = Inputs(r["text"], tuple(frames), _size(size), facts, files, state, *more)
    _expect(type(r.get("turn", 0)) is int, "turn")
    track = _track(r["size"], r["rles"]) if "rles" in r and "size" in r else None
    failure = None
    if "failure" in r:
        f = r["failure"]
        _expect(isinstance(f, dict), "failure")
        words = [f.get(name) for name in ("kind", "message", "traceback")]
        _expect(all(isinstance(word, str) for word in words), "failure")
        failure = SampleFailure(*words)
    _expect((track is None) != (failure is None), "failure")
    _expect(r.get("ok") is (failure is None), "ok")
    point = None
    if "point" in r:
        _expect(isinstance(r["point"], list) and len(r["point"]) == 4, "point")
        frame, y, x, value = r["point"]
        _expect(all(map(_finite, (frame, y, x))) and (isinstance(value, float) or _finite(value)), "point")
        _expect(track is not None and 0 <= frame < len(track), "point")
        point = HeatPoint(int(frame), float(y), float(x), float(value))
    details, seconds = r.get("details", {}), r.get("seconds", {})
    _expect(isinstance(details, dict), "details")
    _expect(isinstance(seconds, dict) and all(map(_finite, seconds.values())), "seconds")
    _expect(r.get("no_target") in (None, True, False), "no_target")
    _expect(_finite(r.get("peak_mb", 0.0)), "peak_mb")
    return Prediction(
        sample=r["sample"],
        clip=r["clip"],
        expression=r["expression"],
        track=track,
        failure=failure,
        point=point,
        no_target=r.get("no_target"),
        details=details,
        seconds=seconds,
        peak_mb=float(r.get("peak_mb", 0.0)),
        inputs=inputs,
        turn=int(r.get("turn", 0)),
    )


def _track(size: Any, rles: Any) -> MaskTrack:
    shape = _size(size)
    _expect(isinstance(rles, list) and all(c is None or isinstance(c, str) for c in rles), "rles")
    counts = tuple(None if c is None else c.encode("ascii", "replace") for c in rles)
    # Equal masks (a static object, empty frames) are measured once.
    for code in {c for c in counts if c is not None}:
        fault = rle_fault(code, shape)
        if fault is not None:
            raise ValueError(f"the mask of frame {counts.index(code)}: {fault}")
    return MaskTrack(shape, counts)


def _size(size: Any) -> tuple[int, int]:
    _expect(isinstance(size, list) and [type(n) for n in size] == [int, int], "size")
    return size[0], size[1]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _expect(met: bool, what: str) -> None:
    if not met:
        raise ValueError(f"'{what}' is missing or not what it has to be")


T = TypeVar("T")

#: Folders that freezing makes.
_PARTS = ("predictions", "env", "log")

#: Most bytes of a table of scores.
_MOST_SAMPLES = 4 << 30
_RESCORE = "Score the run again: refseg score RUN"

#: File names inside a protocol's scores folder.
SAMPLES, RESULT, MADE_FROM = "samples.parquet", "result.json", "made_from.json"


@dataclass
class RunInfo:
    """What ``run.json`` holds: all that reading commands need to know of a run's config."""

    digest: str  #: of what can change a prediction
    name: str | None = None  #: the folder's name without it
    overrides: list[str] = field(default_factory=list)  #: the command line
    choices: dict[str, str] = field(default_factory=dict)  #: group → member
    created: str = ""  #: when it was frozen
    lasting: dict[str, Any] = field(default_factory=dict)  #: the options that the digest is made of
    bound: bool = False  #: True if the method is a bound (its class says so), not a grounding method
    sees_targets: bool = False  #: True if the method is shown the truth
    knows: str = ""  #: what the method answers from, in words
    #: Component → what published tables call it, where its config says so.
    printed: dict[str, str] = field(default_factory=dict)
    #: What its data set is scored under by default; those lead.
    protocols: list[str] = field(default_factory=list)
    source: str = ""  #: of predictions of other code the folder or file they were read from, else empty
    content: str = ""  #: digest of those predictions

    @property
    def label(self) -> str:
        """What it is called: by the name it was given, or its method; its raw attention as such.

        A part of a split says so.
        """
        method, dataset = (self.choices.get(part, "?") for part in ("method", "dataset"))
        given = any(word.startswith("name=") for word in self.overrides) and self.name
        name = (given or method).removesuffix(f"-{dataset}")
        name = f"{method} · raw" if name == f"{method}_raw" else name
        return f"{name} ({self.part})" if self.part else name

    def lead(self, protocol: str) -> tuple[int, int]:
        """The place of ``id@version`` among the protocols of the run's data set; others come after those.

        Of one protocol the newest version comes first.
        """
        name, _, version = protocol.partition(":")[0].partition("@")
        own = [word.partition("@")[0].partition(":")[0] for word in self.protocols]
        return own.index(name) if name in own else len(own), -int(version) if version.isdecimal() else 0

    @property
    def part(self) -> str:
        """Which part of its split it was limited to, as typed; empty = the whole."""
        limit, dataset = (self.lasting.get(name) for name in ("limit", "dataset"))
        parts = {f"limit.{key}": value for key, value in limit.items()} if isinstance(limit, dict) else {}
        parts["dataset.videos"] = dataset.get("videos") if isinstance(dataset, dict) else None
        return ", ".join(
            f"{key}={f'{len(value)} named' if isinstance(value, list) else value}"
            for key, value in parts.items()
            if value
        )

    @property
    def data(self) -> tuple[str, str]:
        """Name and split of its data set, the split empty where it isn't known."""
        told = self.lasting.get("dataset")
        node = told if isinstance(told, dict) else {}
        return str(node.get("name") or self.choices.get("dataset", "?")), str(node.get("split", ""))

    @property
    def rank(self) -> int:
        """Its place in a table: floors, methods without a model, methods, what sees the truth, the truth."""
        net = bool(self.source) or self.choices.get("backbone") not in (None, "None")
        return 3 + (not self.lasting.get("segmenter")) if self.sees_targets else 0 if self.bound else 1 + net

    @property
    def command(self) -> str:
        """The command that makes the run again."""
        if not self.source:
            return shlex.join(["refseg", "run", *self.overrides])
        data, method = (self.lasting.get(part) or {} for part in ("dataset", "method"))
        options = {
            "predictions": self.source,
            "dataset": self.choices.get("dataset", "?"),
            "split": data.get("split"),
            "threshold": method.get("threshold"),
            "name": self.choices.get("method", "?"),
        }
        words = [word for key, value in options.items() if value for word in (f"--{key}", str(value))]
        return shlex.join(["refseg", "score", *words, "--save"])


@dataclass
class _EnvRecord:
    """The part of an environment record that is shown; the rest is kept as it is."""

    refseg_bench: str = "?"
    commit: str | None = None
    dirty: bool | None = None
    python: str = "?"
    started: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Details:
    """What is used of a result's details, beside the rules, which are checked where they are built."""

    interval: dict[str, float] | None = None
    fractions: list[str] | None = None


def record_of(kind: type[T], record: Mapping[str, Any], path: Path, hint: str = PUT_BACK) -> T:
    """The dataclass that a record of ``path`` holds; what else is in it is left out.

    Raises:
        StoreError: a value is missing or of another type.
    """
    known = schema.options(kind)
    try:
        return schema.construct(kind, {k: v for k, v in record.items() if k in known}, "")
    except ConfigError as error:
        raise StoreError(error.what, where=path, allowed=error.allowed, hint=hint) from error


@dataclass
class RunStore:
    """One run folder."""

    root: Path  #: the folder
    #: Protocols whose stored result is not to be shown.
    outdated: set[str] = field(default_factory=set, init=False, repr=False)
    _index: dict[str, StoredLine] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[Path, int] = field(default_factory=dict, init=False, repr=False)
    _stats: dict[Path, os.stat_result] = field(default_factory=dict, init=False, repr=False)
    _clips: dict[str, list[StoredLine]] | None = field(default=None, init=False, repr=False)
    _lost: dict[Path, set[int]] = field(default_factory=dict, init=False, repr=False)
    _run: str = field(default="", init=False, repr=False)

    # ── making and opening ────────────────────────────────────────────────

    @classmethod
    def create(cls, root: Path, config_yaml: str, info: RunInfo) -> RunStore:
        """Freeze a run, or open it when the same run is already frozen there.

        Raises:
            StoreError: the folder holds a run of another config, or can't be written.
        """
        store, frozen = cls(root), sealed_text(config_yaml)
        store.sweep()
        with writing(root):
            if store.info_path.is_file():
                known = store.info().digest
                if known != info.digest:
                    raise StoreError(
                        f"The folder holds a run of another config (digest {known}, not {info.digest}).",
                        where=root,
                        hint="Choose another name=… or move the folder away.",
                    )
                return store
            if root.is_dir() and not (root / "config.yaml").is_file() and any(map(_foreign, root.iterdir())):
                raise StoreError(
                    "The folder exists, but is no run folder.",
                    where=root,
                    hint="Choose another name=… or paths.runs=…",
                )
            for part in _PARTS:
                store.place(part).mkdir(parents=True, exist_ok=True)
            write_atomic(root / "config.yaml", frozen)
            # Written last: a run folder without run.json was never completely frozen.
            write_atomic(store.info_path, sealed(to_plain(asdict(info)), 2))
        return store

    @classmethod
    def open(cls, root: Path) -> RunStore:
        """Open an existing run folder.

        Raises:
            StoreError: there is none.
        """
        store = cls(root)
        if not store.info_path.is_file():
            near = sorted(p.parent.name for p in root.parent.glob("*/run.json"))[:20]
            hint = "`refseg status` lists the runs."
            raise StoreError("No run folder.", where=root, allowed=near or None, hint=hint)
        return store

    def sweep(self) -> None:
        """Remove what killed processes left half-written; no link is followed out of the folder."""
        parts = [self.root / part for part in ("env", "jobs", "maps", "pictures")]
        for folder in (*parts, *self.root.glob("scores/*"), *self.root.glob("launches/*")):
            with contextlib.suppress(StoreError):
                sweep(within(self.root, folder))
        sweep(self.root)

    def place(self, *names: str) -> Path:
        """A path of the folder to write to or delete.

        Raises:
            StoreError: a symbolic link on the way leads out of the folder.
        """
        return within(self.root, self.root.joinpath(*names))

    def keep(self, text: str, *names: str) -> None:
        """Write a small file of the folder in one step, with the folders it lacks.

        Raises:
            StoreError: it can't be written, or a link on the way leads out of the folder.
        """
        path = self.place(*names)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)

    @property
    def info_path(self) -> Path:
        """The file that makes a folder a run."""
        return self.root / "run.json"

    @property
    def config_path(self) -> Path:
        """The frozen config."""
        return self.root / "config.yaml"

    def info(self) -> RunInfo:
        """What is known of the run as data.

        Raises:
            StoreError: the file is damaged, or a value is not what it has to be.
        """
        return record_of(RunInfo, read_record(self.info_path), self.info_path)

    # ── predictions ───────────────────────────────────────────────────────

    def writer(self, job: str | None = None) -> PredictionWriter:
        """A new predictions file of this process."""
        self.place("predictions")
        return PredictionWriter(self.root, job or job_name(), self.info().digest)

    def index(self) -> Mapping[str, StoredLine]:
        """Sample id → its best line.

        What was predicted last on other data comes first; then a good one before a failed one, the first
        good one, the last failed one.

        Every call looks at the files again, but reads only what was appended since the last one.
        """
        with reading(self.root / "predictions"):
            files = self._files()
            stats = {p: p.stat() for p in (*files, *filter(Path.is_file, [self.info_path]))}
        if any(_other(stats.get(path), known) for path, known in self._stats.items()):
            # A file was cut, removed or replaced: what we knew of it may be gone.
            self._index, self._seen, self._clips, self._lost, self._run = {}, {}, None, {}, ""
        self._stats = stats
        with contextlib.suppress(StoreError):
            self._run = self._run or self.info().digest
        for path in files:
            seen = self._seen.get(path, 0)
            if stats[path].st_size <= seen:
                continue
            for line in scan(path, seen, self._lost.setdefault(path, set()).add, self._run):
                self._seen[path] = line.offset + line.length
                known = self._index.get(line.sample)
                if known is None or better(line, known):
                    self._index[line.sample] = line
                    self._clips = None
        return self._index

    def _files(self) -> list[Path]:
        """The predictions' files; unlike ``glob`` no folder that can't be read is taken for an empty one."""
        folder = self.root / "predictions"
        with contextlib.suppress(FileNotFoundError):
            return sorted(folder / name for name in os.listdir(folder) if name.endswith(".jsonl"))
        return []

    def mark(self, known: Mapping[str, str] | None = None) -> dict[str, str]:
        """Digests of predictions' ``lines``, and of files' states as ``seen``; if ``known``, none is read."""
        with reading(self.root / "predictions"):
            files = self._files()
            seen = checksum(repr([(path.name, look(path)) for path in files]).encode())
            if known is not None and known.get("seen") == seen:
                return {"lines": known.get("lines", ""), "seen": seen}
            lines = "\n".join(f"{path.name} {content(path, sys.maxsize).hex()}" for path in files)
        return {"lines": checksum(lines.encode()), "seen": seen}

    def damage(self) -> StoreError | None:
        """The lines that are no whole record, told as one error; ``None`` if there is none.

        They matter where a sample is missing: it may be one of theirs.
        """
        self.index()
        lost = sorted((path, at) for path, places in self._lost.items() for at in places)
        if not lost:
            return None
        told = [f"{path} at byte {at}" for path, at in lost]
        return StoreError(
            f"{len(told)} stored lines don't fit their checksum, are another run's, or are no records.",
            where=some(told, 3),
            hint="Give the same `refseg run` again: what they held is predicted anew.",
        )

    def done(self) -> set[str]:
        """Ids of the samples that have a prediction."""
        return {sample for sample, line in self.index().items() if line.ok}

    def weights(self) -> str:
        """Digest of the weights of the process that started last; empty where no sample tells of any."""
        good = ((line, line.inputs[4]) for line in self.index().values() if line.ok and line.inputs)
        return max(((line.path.name, line.offset, own) for line, own in good if own), default=("",) * 3)[2]

    def turn(self, sample: str) -> int:
        """The turn of a sample's next prediction, by the lines that :meth:`index` read last."""
        known = self._index.get(sample)
        return 0 if known is None else known.turn + known.ok

    @staticmethod
    def read(line: StoredLine) -> Prediction:
        """Load one stored sample.

        Raises:
            StoreError: the file changed under us.
        """
        with reading(line.path), open_regular(line.path) as handle:
            handle.seek(line.offset)
            raw = handle.read(line.length)
        try:
            found = _prediction(parse_json(raw.decode("ascii")))
            _expect((found.sample, found.clip, found.ok) == (line.sample, line.clip, line.ok), "sample")
        except ValueError as error:
            raise StoreError(
                f"The prediction of '{line.sample}' can't be read ({error}).",
                where=f"{line.path} at byte {line.offset}",
                hint="Delete that line and run again: only this sample is predicted anew.",
            ) from error
        return found

    def predictions(self, clip_id: str) -> dict[str, Prediction]:
        """Expression id → prediction or failure, of one clip."""
        return {p.expression: p for p in (self.read(line) for line in self._lines_of(clip_id))}

    def statuses(self, clip_id: str) -> dict[str, Status]:
        """Expression id → ``ok`` or ``failed``, of one clip, without reading its predictions."""
        skip = len(clip_id) + 1
        return {line.sample[skip:]: "ok" if line.ok else "failed" for line in self._lines_of(clip_id)}

    def _lines_of(self, clip_id: str) -> list[StoredLine]:
        index = self.index()
        if self._clips is None:
            grouped: dict[str, list[StoredLine]] = {}
            for line in index.values():
                grouped.setdefault(line.clip, []).append(line)
            self._clips = grouped
        return self._clips.get(clip_id, [])

    def some(self, lines: Iterable[StoredLine]) -> list[Prediction]:
        """Up to 50 of the predictions, evenly spread: enough for a rate; all would be every mask."""
        good = [line for line in lines if line.ok]
        return [self.read(line) for line in good[:: max(1, math.ceil(len(good) / 50))]]

    def cost(self) -> dict[str, float]:
        """What a sample took on average, of those that tell it; no mask is read for it.

        Returns:
            ``seconds`` it was worked on. Where a chat model was asked also ``calls``, ``replayed``,
            ``images``, ``prompt_tokens``, ``answer_tokens`` and ``reply_seconds``, as
            :class:`~refseg_bench.backbones.chat.Cost` counts them.
        """
        told: dict[str, list[float]] = {}
        lines = sorted(self.index().values(), key=lambda line: (line.path, line.offset))
        for path, those in itertools.groupby(lines, key=lambda line: line.path):
            with reading(path), open_regular(path) as handle:
                for line in those:
                    length = min(line.length, 1 << 12)
                    handle.seek(line.offset + line.length - length)
                    for name, value in _took(handle.read(length)).items():
                        told.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in told.items()}

    def failures(self) -> Iterator[Prediction]:
        """All samples whose best line is a failure."""
        return (self.read(line) for line in self.index().values() if not line.ok)

    # ── maps, environment, scores ─────────────────────────────────────────

    def write_maps(self, grounding: Grounding, sample: str) -> None:
        """Keep the maps of one sample, quantised to 8 bits."""
        if not grounding.maps:
            return
        arrays: dict[str, NDArray[Any]] = {}
        for name, volume_THW in grounding.maps.items():
            arrays[name] = np.clip(np.rint(np.asarray(volume_THW, np.float32) * 255), 0, 255).astype(np.uint8)
            arrays[f"{name}.frames"] = np.asarray(
                grounding.map_frames.get(name, tuple(range(len(volume_THW)))), np.int32
            )
        path = self.maps_path(sample)
        self.place("maps").mkdir(exist_ok=True)
        with writing(path), replacing(path) as handle:
            np.savez_compressed(handle, allow_pickle=False, **arrays)

    def read_maps(self, sample: str) -> dict[str, NDArray[Any]]:
        """The kept maps of one sample (uint8 volumes and their ``NAME.frames``), empty if none.

        Raises:
            StoreError: the file is damaged. Its format checks every byte.
        """
        path = self.maps_path(sample)
        if not path.is_file():
            return {}
        found = read_npz(path)
        for name, volume in found.items():
            if name.endswith(".frames"):
                fit = volume.dtype == np.int32 and volume.ndim == 1
            else:
                frames = found.get(f"{name}.frames", volume)
                fit = volume.dtype == np.uint8 and volume.ndim == 3 and frames.shape == volume.shape[:1]
            if not fit:
                raise StoreError("The maps are not such as a run keeps.", where=path, hint="Delete the file.")
        return found

    def write_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Keep what a chat model was shown, once each."""
        for name, data in pictures.items():
            path = self.place("pictures", f"{name}.jpg")
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                if not path.is_file():
                    with replacing(path, durable=False) as handle:
                        handle.write(data)

    def picture(self, name: str) -> Path | None:
        """The file of a picture by its digest, as a record names it; ``None`` where there is none."""
        path = self.root / "pictures" / f"{name}.jpg"
        named = re.fullmatch("[0-9a-f]{32}", name) is not None
        return path if named and path.is_file() and leads_out(path, self.root) is None else None

    def maps_path(self, sample: str) -> Path:
        """The file of one sample's maps."""
        return self.root / "maps" / f"{safe_name(sample)}.npz"

    def write_env(self, job: str, record: Mapping[str, Any]) -> None:
        """Keep the environment record of one process."""
        self.keep(sealed(to_plain(record), 2), "env", f"{job}.json")

    def environments(self) -> dict[str, dict[str, Any]]:
        """Job → environment record.

        Raises:
            StoreError: one is damaged.
        """
        found = {path: read_record(path) for path in sorted((self.root / "env").glob("*.json"))}
        return {p.stem: {**record, **vars(record_of(_EnvRecord, record, p))} for p, record in found.items()}

    def scores_dir(self, protocol: str) -> Path:
        """The folder of one protocol's scores; ``protocol`` is ``id@version``."""
        return self.root / "scores" / safe_name(protocol)

    def write_result(
        self, result: Result, samples: Callable[[IO[bytes]], None], made_from: Mapping[str, str] | None = None
    ) -> None:
        """Keep one protocol's result row and its per-unit table.

        Args:
            result: the row; written after its table, so that a row always has one.
            samples: writes the table as Parquet into the open file it is given.
            made_from: digests of the predictions and the data. They have a file of their own: the row is
                the same whichever processes predicted.
        """
        folder = self.scores_dir(result.protocol)
        self.place("scores", folder.name)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / SAMPLES) as handle:
                samples(handle)
                handle.seek(0)  # of what is written here: another command may write its own meanwhile
                held = checksum(handle.read())
            told = without_nan(to_plain(asdict(result)))
            row = sealed({**told, "run": self.info().digest, "samples": held}, 2)
            write_atomic(folder / RESULT, row)
            if made_from is not None:
                write_atomic(folder / MADE_FROM, sealed({**made_from, "result": checksum(row.encode())}, 2))

    def made_from(self, protocol: str) -> dict[str, str]:
        """The digests a result was written with; empty where they are not known.

        Raises:
            StoreError: they are damaged.
        """
        folder = self.scores_dir(protocol)
        if not (folder / MADE_FROM).exists():
            return {}
        found = read_record(folder / MADE_FROM)
        # A process that ended between the two files left those of an earlier row.
        with reading(folder / RESULT):
            whole = found.get("result") == checksum(read_bytes(folder / RESULT))
        return {name: str(value) for name, value in found.items()} if whole else {}

    def results(self) -> dict[str, Result]:
        """Protocol → result row, for every protocol the run was scored under but :attr:`outdated`.

        Those of its data set come first.

        Raises:
            StoreError: a row is damaged.
        """
        found, info = {}, self.info()
        for path in sorted((self.root / "scores").glob(f"*/{RESULT}")):
            told = read_record(path)
            row = record_of(Result, {k: _with_nan(v) if k == "metrics" else v for k, v in told.items()}, path)
            record_of(_Details, row.details, path)
            counts = (row.n, row.expected, row.failed, row.missing)
            known = {"scale", "details"} <= told.keys() and 0 < row.scale < math.inf
            if not (known and all(0 <= count < 1 << 40 for count in counts)):
                raise StoreError("No protocol counts like this row.", where=path, hint=_RESCORE)
            made = row.details.get("interval") or {}
            if not (
                made.keys() <= {"resamples", "level", "seed"}
                and 0 <= made.get("resamples", 0) <= 1e6
                and 0 < made.get("level", 0.5) < 1
                and 0 <= made.get("seed", 0) < 1 << 63
            ):
                raise StoreError("No intervals are made like this row's.", where=path, hint=_RESCORE)
            if (told.get("run", info.digest), safe_name(row.protocol)) != (info.digest, path.parent.name):
                raise StoreError("The row is of another run or another protocol.", where=path, hint=_RESCORE)
            if row.protocol not in self.outdated:
                found[row.protocol] = row
        return dict(sorted(found.items(), key=lambda item: (info.lead(item[0]), item[0])))

    def samples(self, protocol: str) -> tuple[Path, bytes]:
        """The table behind a result row: its file and the content, which belongs to that row.

        Raises:
            StoreError: it is missing or damaged, or is of another scoring than the row.
        """
        path = self.scores_dir(protocol) / SAMPLES
        known = read_record(path.with_name(RESULT)).get("samples")
        with reading(path):
            data = read_bytes(path, _MOST_SAMPLES)
        if checksum(data) != known:
            raise StoreError("The scores don't belong to their result row.", where=path, hint=_RESCORE)
        return path, data


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _with_nan(v) for k, v in value.items()}
    return math.nan if value is None else value


def runs_in(folder: Path) -> list[RunStore]:
    """All run folders directly below a folder, by name."""
    return [RunStore(p.parent) for p in sorted(folder.glob("*/run.json"))]


def find_runs(paths: Sequence[Path]) -> list[RunStore]:
    """The runs the paths name, each once: run folders, or folders of them; which can't be read is told.

    Raises:
        StoreError: a path names none.
    """
    found: list[RunStore] = []
    for path in paths or [Path("runs")]:
        if (path / "run.json").is_file():
            found.append(RunStore.open(path))
            continue
        inside = runs_in(path)
        with contextlib.suppress(OSError):
            for folder in sorted(path.iterdir()):
                if folder.is_dir() and not os.access(folder, os.X_OK):
                    print(f"{folder}: left out, for this user may not read it", file=sys.stderr)
        if not inside:
            raise StoreError("No run folder here.", where=path, hint="`refseg run` makes one.")
        found.extend(inside)
    first: dict[Path, RunStore] = {}  # of a folder and links to it
    for store in found:
        first.setdefault(store.root.resolve(), store)
    return [*first.values()]


def _other(now: os.stat_result | None, known: os.stat_result) -> bool:
    """True unless a file is the same as it was, or the same with more at its end."""
    if now is None or (now.st_dev, now.st_ino) != (known.st_dev, known.st_ino):
        return True
    grown = now.st_size - known.st_size
    return grown < 0 or (grown == 0 and now.st_mtime_ns != known.st_mtime_ns)


def _foreign(path: Path) -> bool:
    """True for what a freeze that was cut short can't have left."""
    if path.is_dir():
        return path.name not in _PARTS or any(path.iterdir())
    return not path.name.startswith((".config.yaml.", ".run.json."))

"""The run folder: frozen config, predictions, scores. Append-only, no locks, safe on NFS.

Layout of one run::

    runs/METHOD-DATASET-1a2b3c4d/
      config.yaml            frozen, resolved; workers read nothing else
      run.json               name, digest, command line, choices
      env/JOB.json           one environment record per process that worked on the run
      predictions/JOB.jsonl  one line per sample; each process has its own file
      maps/SAMPLE.npz        attention maps kept for the report
      scores/PROTOCOL@V/     samples.parquet and result.json
      jobs/JOB.json          who worked on the run, from when to when
      claims/CLIP.N          which of them took a clip
      launches/ID/           what one `refseg run` asked for, frozen
      log/                   one log per process

A line is durable once it ends in a newline: a torn last line is ignored. A sample is *done* when any
file holds a good line of it; failed samples are tried again by the next run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import StoreError
from refseg_bench.files.store_io import (
    read_json,
    replacing,
    safe_name,
    sweep,
    to_plain,
    within,
    write_atomic,
    write_error,
)
from refseg_bench.types import (
    Estimate,
    Grounding,
    HeatPoint,
    Inputs,
    MaskTrack,
    Prediction,
    Result,
    SampleFailure,
    Status,
)

# Every line starts with these keys in this order, so that an index is made without parsing masks.
_HEAD = re.compile(
    rb'\{"sample": ("(?:[^"\\]|\\.)*"), "clip": ("(?:[^"\\]|\\.)*"), "ok": (true|false)'
    rb'(?:, "turn": (\d{1,9}), "inputs": \["([0-9a-f]{0,32})", "([0-9a-f]{0,32})", "([0-9a-f]{0,32})"\])?'
)

#: Folders that freezing makes.
_PARTS = ("predictions", "env", "log")

#: File names inside a protocol's scores folder.
SAMPLES, RESULT = "samples.parquet", "result.json"


@dataclass(frozen=True, slots=True)
class Line:
    """Where one stored sample lies.

    Attributes:
        inputs: ``facts``, ``files`` and ``state`` of its :class:`~refseg_bench.types.Inputs`; ``None`` =
            not known.
        turn: as in its :class:`~refseg_bench.types.Prediction`.
    """

    sample: str
    clip: str
    ok: bool
    path: Path
    offset: int
    length: int
    inputs: tuple[str, str, str] | None = None
    turn: int = 0


@dataclass
class RunStore:
    """One run folder.

    Attributes:
        root: the folder.
        outdated: protocols whose stored result is not to be shown.
    """

    root: Path
    outdated: set[str] = field(default_factory=set, init=False, repr=False)
    _index: dict[str, Line] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[Path, int] = field(default_factory=dict, init=False, repr=False)
    _clips: dict[str, list[Line]] | None = field(default=None, init=False, repr=False)

    # ── making and opening ────────────────────────────────────────────────

    @classmethod
    def create(cls, root: Path, config_yaml: str, info: Mapping[str, Any]) -> RunStore:
        """Freeze a run, or open it when the same run is already frozen there.

        Raises:
            StoreError: the folder holds a run of another config, or can't be written.
        """
        store = cls(root)
        store.sweep()
        try:
            if store.info_path.is_file():
                known = store.info()
                if known.get("digest") != info.get("digest"):
                    raise StoreError(
                        f"The folder holds a run of another config (digest {known.get('digest')}, "
                        f"not {info.get('digest')}).",
                        where=root,
                        cure="Choose another name=… or move the folder away.",
                    )
                return store
            if root.is_dir() and not (root / "config.yaml").is_file() and any(map(_foreign, root.iterdir())):
                raise StoreError(
                    "The folder exists, but is no run folder.",
                    where=root,
                    cure="Choose another name=… or paths.runs=…",
                )
            for part in _PARTS:
                (root / part).mkdir(parents=True, exist_ok=True)
            write_atomic(root / "config.yaml", config_yaml)
            # Written last: a run folder without run.json was never completely frozen.
            write_atomic(store.info_path, json.dumps(dict(info), indent=2) + "\n")
        except OSError as error:
            raise write_error(error, root) from error
        return store

    @classmethod
    def open(cls, root: Path) -> RunStore:
        """Open an existing run folder.

        Raises:
            StoreError: there is none.
        """
        store = cls(root)
        if not store.info_path.is_file():
            near = (
                sorted(p.parent.name for p in root.parent.glob("*/run.json")) if root.parent.is_dir() else []
            )
            raise StoreError(
                "No run folder.",
                where=root,
                allowed=near[:20] or None,
                cure="`refseg status` lists the runs.",
            )
        return store

    def sweep(self) -> None:
        """Remove what killed processes left half-written; no link is followed out of the folder."""
        parts = [self.root / part for part in ("env", "jobs", "maps")]
        for folder in (*parts, *self.root.glob("scores/*"), *self.root.glob("launches/*")):
            with contextlib.suppress(StoreError):
                sweep(within(self.root, folder))
        sweep(self.root)

    @property
    def info_path(self) -> Path:
        """The file that makes a folder a run."""
        return self.root / "run.json"

    @property
    def config_path(self) -> Path:
        """The frozen config."""
        return self.root / "config.yaml"

    def launch_config(self, launch: str) -> Path:
        """The frozen values of one submission: equal to the run's but for what can't change predictions."""
        return self.root / "launches" / launch / "config.yaml"

    def info(self) -> dict[str, Any]:
        """Name, digest, overrides and choices of the run."""
        return read_json(self.info_path)

    # ── predictions ───────────────────────────────────────────────────────

    def writer(self, job: str | None = None) -> PredictionWriter:
        """A new predictions file of this process."""
        return PredictionWriter(self.root, job or job_name())

    def index(self) -> Mapping[str, Line]:
        """Sample id → its best line.

        What was predicted last on other data comes first; then a good one before a failed one, the first
        good one, the last failed one.

        Every call looks at the files again, but reads only what was appended since the last one.
        """
        sizes = {p: p.stat().st_size for p in sorted((self.root / "predictions").glob("*.jsonl"))}
        if any(sizes.get(path, -1) < seen for path, seen in self._seen.items()):
            # A file was cut or removed by hand: what we knew of it may be gone.
            self._index, self._seen, self._clips = {}, {}, None
        for path, size in sizes.items():
            seen = self._seen.get(path, 0)
            if size == seen:
                continue
            for line in _scan(path, seen):
                self._seen[path] = line.offset + line.length
                known = self._index.get(line.sample)
                if known is None or _better(line, known):
                    self._index[line.sample] = line
                    self._clips = None
        return self._index

    def mark(self) -> str:
        """A digest of the predictions' files; it stays the same as long as nothing is appended or cut."""
        files = sorted((self.root / "predictions").glob("*.jsonl"))
        told = "\n".join(f"{path.name} {path.stat().st_size}" for path in files)
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    def done(self) -> set[str]:
        """Ids of the samples that have a prediction."""
        return {sample for sample, line in self.index().items() if line.ok}

    def read(self, line: Line) -> Prediction:
        """Load one stored sample.

        Raises:
            StoreError: the file changed under us.
        """
        with line.path.open("rb") as handle:
            handle.seek(line.offset)
            raw = handle.read(line.length)
        try:
            return _prediction(json.loads(raw))
        except (json.JSONDecodeError, KeyError, ValueError) as error:
            raise StoreError(
                f"A prediction can't be read ({error}).",
                where=f"{line.path} at byte {line.offset}",
                cure="Delete that line and run again: only this sample is predicted anew.",
            ) from error

    def predictions(self, clip_id: str) -> dict[str, Prediction]:
        """Expression id → prediction or failure, of one clip."""
        return {p.expression: p for p in (self.read(line) for line in self._lines_of(clip_id))}

    def statuses(self, clip_id: str) -> dict[str, Status]:
        """Expression id → ``ok`` or ``failed``, of one clip, without reading its predictions."""
        skip = len(clip_id) + 1
        return {line.sample[skip:]: "ok" if line.ok else "failed" for line in self._lines_of(clip_id)}

    def _lines_of(self, clip_id: str) -> list[Line]:
        index = self.index()
        if self._clips is None:
            grouped: dict[str, list[Line]] = {}
            for line in index.values():
                grouped.setdefault(line.clip, []).append(line)
            self._clips = grouped
        return self._clips.get(clip_id, [])

    def failures(self) -> Iterator[Prediction]:
        """All samples whose best line is a failure."""
        for line in self.index().values():
            if not line.ok:
                yield self.read(line)

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
        path.parent.mkdir(exist_ok=True)
        try:
            with replacing(path) as handle:
                np.savez_compressed(handle, allow_pickle=False, **arrays)
        except OSError as error:
            raise write_error(error, path) from error

    def read_maps(self, sample: str) -> dict[str, NDArray[Any]]:
        """The kept maps of one sample (uint8 volumes and their ``NAME.frames``), empty if none."""
        path = self.maps_path(sample)
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}

    def maps_path(self, sample: str) -> Path:
        """The file of one sample's maps."""
        return self.root / "maps" / f"{safe_name(sample)}.npz"

    def write_env(self, job: str, record: Mapping[str, Any]) -> None:
        """Keep the environment record of one process."""
        (self.root / "env").mkdir(exist_ok=True)
        write_atomic(
            self.root / "env" / f"{job}.json", json.dumps(dict(record), indent=2, sort_keys=True) + "\n"
        )

    def environments(self) -> dict[str, dict[str, Any]]:
        """Job → environment record."""
        return {p.stem: read_json(p) for p in sorted((self.root / "env").glob("*.json"))}

    def scores_dir(self, protocol: str) -> Path:
        """The folder of one protocol's scores; ``protocol`` is ``id@version``."""
        return self.root / "scores" / safe_name(protocol)

    def write_result(self, result: Result, samples: Callable[[IO[bytes]], None]) -> None:
        """Keep one protocol's result row and its per-unit table.

        Args:
            result: the row; written last, so that a row always has its table.
            samples: writes the table as Parquet into the open file it is given.
        """
        folder = self.scores_dir(result.protocol)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / SAMPLES) as handle:
                samples(handle)
            write_atomic(folder / RESULT, json.dumps(_result_record(result), indent=2) + "\n")
        except OSError as error:
            raise write_error(error, folder) from error

    def results(self) -> dict[str, Result]:
        """Protocol → result row, for every protocol the run was scored under but :attr:`outdated`."""
        found = {}
        for path in sorted((self.root / "scores").glob(f"*/{RESULT}")):
            result = _result(read_json(path))
            if result.protocol not in self.outdated:
                found[result.protocol] = result
        return found


class PredictionWriter:
    """Appends samples of one process to its own file.

    A write that fails (disk full) is cut off again, so that what was finished stays readable.
    """

    def __init__(self, root: Path, job: str) -> None:
        self.job = job
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
        line = (json.dumps(_record(prediction), ensure_ascii=True) + "\n").encode()
        good = 0
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
            os.fsync(self._handle.fileno())
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                return  # the file system has no such thing
            with contextlib.suppress(OSError):
                self._handle.truncate(self._durable)
                self._handle.seek(self._durable)
            raise write_error(error, self.path) from error
        self._synced, self._durable = now, end


def runs_in(folder: Path) -> list[RunStore]:
    """All run folders directly below a folder, by name."""
    return [RunStore(p.parent) for p in sorted(folder.glob("*/run.json"))]


def job_name() -> str:
    """A name no other process has: start time, SLURM job where there is one, host, pid."""
    slurm = os.environ.get("SLURM_JOB_ID")
    parts = [
        time.strftime("%Y%m%d-%H%M%S"),
        *([f"slurm{slurm}"] if slurm else []),
        os.uname().nodename.split(".")[0],
    ]
    return "-".join([*parts, str(os.getpid()), uuid.uuid4().hex[:6]])


def _foreign(path: Path) -> bool:
    """True for what a freeze that was cut short can't have left."""
    if path.is_dir():
        return path.name not in _PARTS or any(path.iterdir())
    return not path.name.startswith((".config.yaml.", ".run.json."))


def _better(line: Line, known: Line) -> bool:
    if line.turn != known.turn:
        return line.turn > known.turn
    if line.ok != known.ok:
        return line.ok
    # By file and place, whatever order the files grew in: two readers agree on the best line.
    earlier = (line.path, line.offset) < (known.path, known.offset)
    return earlier if line.ok else not earlier


def _scan(path: Path, offset: int) -> Iterator[Line]:
    """The good lines of a predictions file from an offset on."""
    with path.open("rb") as handle:
        handle.seek(offset)
        for raw in handle:
            length = len(raw)
            # A line without its newline is still being written, or was torn.
            if raw.endswith(b"\n") and raw.rstrip().endswith(b"}"):
                head = _HEAD.match(raw)
                if head is not None:
                    yield _line(head, path, offset, length)
            offset += length


def _line(head: re.Match[bytes], path: Path, offset: int, length: int) -> Line:
    inputs = None
    if head[4] is not None:
        # Samples of one clip share their digests.
        inputs = (head[5].decode(), sys.intern(head[6].decode()), sys.intern(head[7].decode()))
    sample, clip = json.loads(head[1]), sys.intern(json.loads(head[2]))
    return Line(sample, clip, head[3] == b"true", path, offset, length, inputs, int(head[4] or 0))


def _record(p: Prediction) -> dict[str, Any]:
    record: dict[str, Any] = {"sample": p.sample, "clip": p.clip, "ok": p.ok}
    if p.inputs is not None:
        record["turn"] = p.turn
        record["inputs"] = [p.inputs.facts, p.inputs.files, p.inputs.state]
    record["expression"] = p.expression
    if p.inputs is not None:
        record["text"] = p.inputs.text
        record["frames"] = list(p.inputs.frames)
        record["size"] = list(p.inputs.size)
    if p.track is not None:
        record["size"] = list(p.track.size)
        record["rles"] = [None if r is None else r.decode("ascii") for r in p.track.rles]
    if p.failure is not None:
        record["failure"] = {
            "kind": p.failure.kind,
            "message": p.failure.message,
            "traceback": p.failure.traceback,
        }
    if p.point is not None:
        record["point"] = [p.point.frame, p.point.y, p.point.x, p.point.value]
    if p.no_target is not None:
        record["no_target"] = p.no_target
    if p.details:
        record["details"] = to_plain(p.details)
    record["seconds"] = {k: round(v, 6) for k, v in p.seconds.items()}
    record["peak_mb"] = round(p.peak_mb, 1)
    return record


def _prediction(r: Mapping[str, Any]) -> Prediction:
    inputs = None
    if "inputs" in r:
        (facts, files, state), (count, first, last), (height, width) = r["inputs"], r["frames"], r["size"]
        size = (int(height), int(width))
        inputs = Inputs(r["text"], (int(count), first, last), size, facts, files, state)
    track = None
    if "rles" in r:
        height, width = r["size"]
        track = MaskTrack(
            (int(height), int(width)), tuple(None if c is None else c.encode("ascii") for c in r["rles"])
        )
    failure = None
    if "failure" in r:
        f = r["failure"]
        failure = SampleFailure(f["kind"], f["message"], f["traceback"])
    point = None
    if "point" in r:
        frame, y, x, value = r["point"]
        point = HeatPoint(int(frame), float(y), float(x), float(value))
    return Prediction(
        sample=r["sample"],
        clip=r["clip"],
        expression=r["expression"],
        track=track,
        failure=failure,
        point=point,
        no_target=r.get("no_target"),
        details=r.get("details", {}),
        seconds=r.get("seconds", {}),
        peak_mb=float(r.get("peak_mb", 0.0)),
        inputs=inputs,
        turn=int(r.get("turn", 0)),
    )


def _result_record(r: Result) -> dict[str, Any]:
    def number(value: float) -> float | None:
        # JSON has no NaN.
        return float(value) if math.isfinite(value) else None

    return {
        "protocol": r.protocol,
        "metrics": {
            name: {"value": number(e.value), "low": number(e.low), "high": number(e.high)}
            for name, e in r.metrics.items()
        },
        "n": r.n,
        "expected": r.expected,
        "failed": r.failed,
        "missing": r.missing,
        "scale": r.scale,
        "details": to_plain(r.details),
    }


def _result(record: Mapping[str, Any]) -> Result:
    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    return Result(
        protocol=record["protocol"],
        metrics={
            name: Estimate(number(e["value"]), number(e["low"]), number(e["high"]))
            for name, e in record["metrics"].items()
        },
        n=record["n"],
        expected=record["expected"],
        failed=record["failed"],
        missing=record["missing"],
        scale=record["scale"],
        details=record["details"],
    )

"""The lines of a predictions file: appending, finding and reading them.

A line is durable once it ends in a newline: a torn last line is ignored. Each starts with the keys that an
index needs and ends with a checksum of its content. What a line holds is checked when it is read, for it may
come from anywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from refseg_bench.errors import StoreError
from refseg_bench.files.store_io import (
    UNCHECKED,
    checksum,
    open_regular,
    parse_json,
    sync,
    to_plain,
    unreadable,
    write_error,
)
from refseg_bench.types import (
    HeatPoint,
    Inputs,
    MaskTrack,
    Prediction,
    SampleFailure,
    rle_fault,
    sample_id,
)

# Every line starts with these keys in this order, so that an index is made without parsing masks.
_HEAD = re.compile(
    rb'\{"sample": ("(?:[^"\\]|\\.)*"), "clip": ("(?:[^"\\]|\\.)*"), "ok": (true|false)'
    rb'(?:, "turn": (\d{1,9}), "inputs": \["([0-9a-f]{0,32})", "([0-9a-f]{0,32})", "([0-9a-f]{0,32})"'
    rb'(?:, "([0-9a-f]{1,32})")?\])?'
)

# And ends with the checksum of all bytes before.
_TAIL = re.compile(rb', "check": "([0-9a-f]{16})"\}\s*\Z')
#: Most bytes of a line.
_LONGEST = 256 << 20


@dataclass(frozen=True, slots=True)
class StoredLine:
    """Where one stored sample lies.

    Attributes:
        inputs: ``facts``, ``files``, ``state`` and ``truth`` of its
            :class:`~refseg_bench.types.Inputs`; ``None`` = not known.
        turn: as in its :class:`~refseg_bench.types.Prediction`.
    """

    sample: str
    clip: str
    ok: bool
    path: Path
    offset: int
    length: int
    inputs: tuple[str, str, str, str] | None = None
    turn: int = 0


def job_name() -> str:
    """A name no other process has: start time, SLURM job where there is one, host, pid."""
    slurm = os.environ.get("SLURM_JOB_ID")
    parts = [
        time.strftime("%Y%m%d-%H%M%S"),
        *([f"slurm{slurm}"] if slurm else []),
        os.uname().nodename.split(".")[0],
    ]
    return "-".join([*parts, str(os.getpid()), uuid.uuid4().hex[:6]])


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
        text = json.dumps(_record(prediction), ensure_ascii=True)[:-1].encode()
        line = text + f', "check": "{checksum(text)}"}}\n'.encode()
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
            sync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._handle.truncate(self._durable)
                self._handle.seek(self._durable)
            raise write_error(error, self.path) from error
        self._synced, self._durable = now, end


def better(line: StoredLine, known: StoredLine) -> bool:
    """Whether of two lines of one sample the first is the one to go by."""
    if line.turn != known.turn:
        return line.turn > known.turn
    if line.ok != known.ok:
        return line.ok
    # By file and place, whatever order the files grew in: two readers agree on the best line.
    earlier = (line.path, line.offset) < (known.path, known.offset)
    return earlier if line.ok else not earlier


def scan(path: Path, offset: int, damaged: Callable[[int], None]) -> Iterator[StoredLine]:
    """The good lines of a predictions file from an offset on.

    Args:
        path: the file.
        offset: where a line begins.
        damaged: receives the offset of every line that is no whole record.
    """
    try:
        with open_regular(path) as handle:
            handle.seek(offset)
            for raw in iter(lambda: handle.readline(_LONGEST), b""):
                if not raw.endswith(b"\n"):
                    if _sound(raw[:-1], path) is False and len(raw) < _LONGEST:
                        # Still being written, or torn.
                        return
                    # Whole but for its newline, or without an end.
                    damaged(offset)
                    return
                length = len(raw)
                line = _headed(raw, path, offset)
                if line is not None:
                    yield line
                elif not raw.isspace():
                    damaged(offset)
                offset += length
    except OSError as error:
        raise unreadable(path, error) from error


def read_line(line: StoredLine) -> Prediction:
    """Load one stored sample.

    Raises:
        StoreError: the file changed under us.
    """
    try:
        with open_regular(line.path) as handle:
            handle.seek(line.offset)
            raw = handle.read(line.length)
    except OSError as error:
        raise unreadable(line.path, error) from error
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


def _headed(raw: bytes, path: Path, offset: int) -> StoredLine | None:
    """A line by its first keys, if it fits its checksum."""
    head = _HEAD.match(raw)
    if head is None or _sound(raw, path) is False:
        return None
    try:
        line = _line(head, path, offset, len(raw))
    except ValueError:
        return None
    return line if line.sample.startswith(f"{line.clip}/") else None


def _sound(raw: bytes, path: Path) -> bool | None:
    """Whether a line fits the checksum at its end; ``None`` if it ends like a line and has none."""
    tail = _TAIL.search(raw)
    if tail is not None:
        return checksum(raw[: tail.start()]) == tail[1].decode()
    if not raw.rstrip().endswith(b"}"):
        return False
    UNCHECKED.add(path)
    return None


def _line(head: re.Match[bytes], path: Path, offset: int, length: int) -> StoredLine:
    inputs = None
    if head[4] is not None:
        # Samples of one clip share their digests.
        files, state = sys.intern(head[6].decode()), sys.intern(head[7].decode())
        inputs = (head[5].decode(), files, state, (head[8] or b"").decode())
    sample, clip = json.loads(head[1]), sys.intern(json.loads(head[2]))
    return StoredLine(sample, clip, head[3] == b"true", path, offset, length, inputs, int(head[4] or 0))


def _record(p: Prediction) -> dict[str, Any]:
    record: dict[str, Any] = {"sample": p.sample, "clip": p.clip, "ok": p.ok}
    if p.inputs is not None:
        record["turn"] = p.turn
        truth = [p.inputs.truth] if p.inputs.truth else []
        record["inputs"] = [p.inputs.facts, p.inputs.files, p.inputs.state, *truth]
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


def _prediction(r: Any) -> Prediction:
    """Undo :func:`_record`.

    Raises:
        ValueError: a value is not what it has to be.
    """
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
        inputs = Inputs(r["text"], tuple(frames), _size(size), *said)
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
        _expect(all(map(_finite, (frame, y, x))) and isinstance(value, (int, float)), "point")
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

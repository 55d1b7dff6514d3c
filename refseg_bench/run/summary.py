"""What a run's predictions amount to, kept beside them: a hundred runs are told of without being read again.

``summary.json`` counts only as long as all that it comes from is what it was: the state of each file (size,
times, inode), the data set, and the code that reads them. Else the predictions are read, and it is written
anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from refseg_bench.errors import StoreError, some
from refseg_bench.files.store_io import checksum, look, read_bytes, read_record, reading, sealed
from refseg_bench.run import inputs, store
from refseg_bench.run.store import RunStore, StoredLine, record_of
from refseg_bench.types import Clip, Expression, sample_id

#: Name of the file in a run folder.
NAME = "summary.json"
#: Bytes of predictions that are read in no time.
_SMALL = 1 << 18
#: Nanoseconds by which it must be younger than what it comes from: file systems count time in ticks.
_TICK = 100_000_000
#: Failed samples that are named.
FEW = 5


@dataclass
class _Failed:
    sample: str
    why: str
    job: str


@dataclass
class Summary:
    """What there is of a run."""

    #: done, failed: samples.
    done: int
    failed: int
    left: int | None = None  #: samples; ``None`` = unknown
    #: rate, peak: mean seconds and highest MiB of some predicted samples; ``None`` = there are none.
    rate: float | None = None
    peak: float | None = None
    #: Stage → highest MiB of any process that worked on the run.
    stages: dict[str, float] = field(default_factory=dict)
    failures: list[_Failed] = field(default_factory=list)  #: the first failed samples
    notes: list[str] = field(default_factory=list)  #: what else there is to say


Work = Sequence[tuple[Clip, Sequence[Expression]]]


def summarize(run: RunStore, work: Work | None, present: inputs.Present | None, few: int = FEW) -> Summary:
    """The summary that is kept of a run, or a new one, which then is kept; names a few failed samples.

    Raises:
        StoreError: the run can't be read.
    """
    if work is None or present is None:
        return _look(run, None, None, few)
    here = copy(present)
    here.weights = None  # those of the process that started last
    path, files = run.root / NAME, _files(run.root)
    told = repr((_code(), here.mark(work), few, sorted(files.items())))
    key = checksum(told.encode("utf-8", "surrogatepass"))
    with suppress(StoreError, OSError):
        record = read_record(path)
        newest = max(time for state in files.values() for time in state[1:3])
        if record.get("key") == key and path.stat().st_mtime_ns - newest > _TICK:
            return record_of(Summary, record, path)
    found = _look(run, work, here, few)
    large = sum(files[name][0] for name in files if name.endswith(".jsonl")) > _SMALL
    # Faults are told where they lie, and a folder can be moved.
    if large and not run.damage() and _files(run.root) == files:
        with suppress(StoreError):  # a folder of somebody else
            run.keep(sealed({**asdict(found), "key": key}), NAME)
    return found


def _files(root: Path) -> dict[str, tuple[int, ...]]:
    """The files a summary comes from: name → size, times of change and inode."""
    folders = (root / "predictions").glob("*.jsonl"), (root / "env").glob("*.json")
    named = [root / name for name in ("run.json", "config.yaml", inputs.NAME)]
    with reading(root):
        files = sorted(path for path in [*named, *folders[0], *folders[1]] if path.exists())
        return {path.relative_to(root).as_posix(): look(path) for path in files}


@cache
def _code() -> str:
    """Digest of what reads a run: another version may come to another summary."""
    with reading(Path(__file__)):
        return checksum(b"".join(read_bytes(Path(m)) for m in (__file__, inputs.__file__, store.__file__)))


def _look(run: RunStore, work: Work | None, present: inputs.Present | None, few: int) -> Summary:
    notes: list[str] = []
    differing: dict[str, str] = {}
    index: Mapping[str, StoredLine] = run.index()
    expected: int | None = None
    if work is not None and present is not None:
        asked = {sample_id(clip.id, e.id) for clip, expressions in work for e in expressions}
        expected = len(asked)
        if surplus := [sample for sample in index if sample not in asked]:
            told = some(surplus, 3)
            notes.append(f"{len(surplus)} samples are not in the data set and don't count: {told}")
            index = {sample: line for sample, line in index.items() if sample in asked}
        differing = inputs.stale(run, work, present)
    if damage := run.damage():
        notes.append(str(damage))
    if differing:
        told = inputs.told(differing)
        notes.append(
            f"{len(differing)} samples were predicted on other data, weights or code and are left: {told}"
        )
    good = sum(line.ok for line in index.values())
    found = Summary(good - len(differing), len(index) - good, stages=_stages(run), notes=notes)
    if expected is not None:
        found.left = expected - found.done - found.failed
    if seen := run.some(index.values()):
        found.rate = sum(p.seconds.get("total", 0.0) for p in seen) / len(seen)
        found.peak = max(p.peak_mb for p in seen)
    for line in [line for line in index.values() if not line.ok][:few]:
        failure = run.read(line).failure
        assert failure is not None
        why = f"{failure.kind}: {''.join(failure.message.splitlines()[:1])}"
        found.failures.append(_Failed(line.sample, why, line.path.stem))
    return found


def _stages(run: RunStore) -> dict[str, float]:
    """Stage → peak memory of any process that worked on the run."""
    found: dict[str, float] = {}
    with suppress(StoreError):
        for record in run.environments().values():
            measured = record.get("peak_mib")
            for stage, peak in measured.items() if isinstance(measured, Mapping) else ():
                if isinstance(peak, float):
                    found[stage] = max(peak, found.get(stage, 0.0))
    return found

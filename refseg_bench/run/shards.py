"""The work of a run: what there is, what is left, the shards it goes into, and what became of it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench import env
from refseg_bench.config.compose import Cluster, Composed, Config, load
from refseg_bench.config.schema import TARGET
from refseg_bench.datasets.base import Dataset, no_sample
from refseg_bench.datasets.files import files_read
from refseg_bench.errors import DataError, RefsegError, printable
from refseg_bench.run.build import dataset_of, frozen, weights_of
from refseg_bench.run.inputs import Present, keep_record, seen_before, stale, told
from refseg_bench.run.store import RunStore, StoredLine, runs_in
from refseg_bench.run.submissions import Submission
from refseg_bench.types import Clip, Expression, sample_id

if TYPE_CHECKING:
    from refseg_bench.run.progress import Progress

Work = list[tuple[Clip, tuple[Expression, ...]]]


def plan(dataset: Dataset) -> Work:
    """All clips with their expressions.

    Raises:
        DataError: the data set can't be read, or holds names or texts that no record can hold.
    """
    work = ((clip, tuple(dataset.expressions(clip))) for clip in dataset.clips())
    whole = [(clip, expressions) for clip, expressions in work if expressions]
    for clip, expressions in whole:
        try:
            "".join([clip.id, *clip.frame_names, *(t for e in expressions for t in (e.id, e.text))]).encode()
        except UnicodeEncodeError:
            what = f"Names or words of the clip '{printable(clip.id)}' are in another encoding than UTF-8."
            hint = "Rename its file or folder, or convert its texts."
            raise DataError(what, where=dataset.name, hint=hint) from None
    return whole


def share(work: Work, shards: int) -> list[Work]:
    """Split by clip into parts of about equal frames × expressions; the same split every time."""
    if shards == 1:
        return [work]
    parts: list[Work] = [[] for _ in range(shards)]
    loads = [(0, part) for part in range(shards)]
    order = sorted(range(len(work)), key=lambda i: (-len(work[i][0]) * len(work[i][1]), work[i][0].id))
    mine: list[list[int]] = [[] for _ in range(shards)]
    for index in order:
        load, lightest = loads[0]
        heapq.heapreplace(loads, (load + len(work[index][0]) * len(work[index][1]), lightest))
        mine[lightest].append(index)
    for part, indices in zip(parts, mine, strict=True):
        part.extend(work[i] for i in sorted(indices))
    return parts


def queue(parts: Sequence[Work], shard: int) -> Work:
    """A part and then, from their ends on, the others: what their owners will come to last."""
    others = [reversed(parts[(shard + step) % len(parts)]) for step in range(1, len(parts))]
    rounds = itertools.zip_longest(*others)
    return [*parts[shard], *(item for items in rounds for item in items if item is not None)]


def left(work: Work, index: Mapping[str, StoredLine], present: Present) -> Work:
    """The work less the samples that have a prediction on what the data set holds now."""
    open_work = ((clip, present.open(index, clip, expressions)) for clip, expressions in work)
    return [(clip, expressions) for clip, expressions in open_work if expressions]


def wanted(work: Work, index: Mapping[str, StoredLine], cluster: Cluster) -> Work:
    """What a submission takes of some open work: all of it, or the samples that have failed."""
    if not cluster.retry_failed:
        return work
    failed = {sample for sample, line in index.items() if not line.ok}
    kept = ((clip, tuple(e for e in es if sample_id(clip.id, e.id) in failed)) for clip, es in work)
    return [(clip, expressions) for clip, expressions in kept if expressions]


def failed_by(clip: Clip, expressions: Iterable[Expression], index: Mapping[str, StoredLine]) -> str:
    """The process by which all these samples of a clip have failed; empty where there is none."""
    lines = (index.get(sample_id(clip.id, e.id)) for e in expressions)
    names = {"" if line is None or line.ok else line.path.stem for line in lines}
    return names.pop() if len(names) == 1 else ""


def without_outcome(
    clip: Clip, expressions: Iterable[Expression], index: Mapping[str, StoredLine]
) -> tuple[Expression, ...]:
    """Those of a clip that have neither a prediction nor a failure."""
    return tuple(e for e in expressions if sample_id(clip.id, e.id) not in index)


@dataclass
class Tally:
    """What one process did."""

    done: int = 0  #: samples it predicted
    failed: int = 0  #: samples that failed, here or in its part
    elsewhere: int = 0  #: samples of its part that are left; other living processes have them

    def add(self, ok: bool) -> None:
        """Count a sample that was predicted, or failed."""
        self.done += ok
        self.failed += not ok

    def settle(self, part: Work, index: Mapping[str, StoredLine]) -> None:
        """Count what its part still lacks in the end: what failed, and what others have."""
        lines = [index.get(sample_id(clip.id, e.id)) for clip, expressions in part for e in expressions]
        failed = sum(line is not None and not line.ok for line in lines)
        self.failed, self.elsewhere = max(self.failed, failed), len(lines) - failed


@dataclass
class Planned:
    """One run of a submission: what is asked for, and what became of it."""

    store: RunStore  #: its folder
    values: dict[str, Any]  #: what this submission asks for
    config: Config  #: the same, typed
    work: Work  #: what is left of it
    clips: int  #: clips of the whole run
    say: Callable[[str], None]  #: takes lines for the user
    shards: int = 1  #: parts it is split into
    aside: int = 0  #: samples that are left and that this submission doesn't take
    capture: str | None = None  #: digest of the attention capture it shares with other runs of the submission
    #: The record of this submission; ``None`` where nothing was left to predict.
    submission: Submission | None = None
    tally: Tally | None = None  #: what was done here; ``None`` where it was submitted, stood back or failed
    error: RefsegError | None = None  #: why it could not be worked on
    made: bool = False  #: whether its folder was made for this submission
    keep: Callable[[], None] = lambda: None  #: writes what was seen of its data set into its folder

    @property
    def cluster(self) -> Cluster:
        """Where it goes."""
        return self.config.cluster

    @property
    def record(self) -> Submission:
        """The record of this submission, once it is registered."""
        assert self.submission is not None
        return self.submission

    @property
    def log(self) -> Path:
        """The folder of this submission's logs."""
        return self.store.root / "log" / self.record.id

    @property
    def submitted(self) -> bool:
        """True if jobs of a cluster go on with it (and score and report it, where asked)."""
        return self.cluster.kind == "slurm" and self.submission is not None and self.error is None

    @property
    def samples(self) -> int:
        """How many samples are left."""
        return sum(len(es) for _, es in self.work)


def planned(store: RunStore, point: Composed, say: Callable[[str], None]) -> Planned:
    """Look at what is left of a run, whose folder needn't be there, and choose its shards; write nothing.

    Raises:
        RefsegError: the dataset can't be read, or holds no expression.
    """
    config = load(point.values)
    dataset = dataset_of(point.values)
    with files_read() as files:
        whole, present = plan(dataset), Present(dataset, seen_before(store))
    if not whole:
        raise no_sample(dataset)
    if store.index():
        present.weights = weights_of(point.values, dataset)
    open_work = left(whole, store.index(), present)
    work = wanted(open_work, store.index(), config.cluster)
    _tell_of_data(store, whole, present, say)
    run = Planned(store, point.values, config, work, len(whole), say)
    run.keep = lambda: keep_record(store, whole, files, present)
    run.aside = sum(len(es) for _, es in open_work) - run.samples
    run.shards = max(1, min(_wanted(run), run.clips))
    return run


def _tell_of_data(store: RunStore, whole: Work, present: Present, say: Callable[[str], None]) -> None:
    """Say what was predicted on other data, weights or code, or with such as nobody knows."""
    if found := stale(store, whole, present):
        again = f"{len(found)} samples were predicted on other data, weights or code and are predicted again"
        say(f"{store.root}\n  {again}: {told(found)}")
    unknown = sum(line.ok and not (line.inputs and line.inputs[4]) for line in store.index().values())
    if unknown and present.weights:
        say(f"{store.root}\n  {unknown} samples don't tell their weights or code: taken to be of the present")


def tally_of(run: Planned, before: Mapping[str, StoredLine], progress: Progress | None = None) -> Tally:
    """What became of the samples that were left, whoever worked on them; ``progress`` shows it.

    ``before``: the store's index at the time when they were left.
    """
    index = run.store.index()
    asked = [sample_id(clip.id, e.id) for clip, expressions in run.work for e in expressions]
    lines = [line for name in asked if (line := index.get(name)) is not None and line != before.get(name)]
    done = sum(line.ok for line in lines)
    if progress is not None:
        progress.count(str(run.store.root), len(lines), len(lines) - done)
    return Tally(done, len(lines) - done, len(asked) - len(lines))


def _wanted(run: Planned) -> int:
    cluster = run.cluster
    if isinstance(cluster.shards, int):
        return cluster.shards
    at_once = cluster.parallel or (at_once_here(cluster) if cluster.kind == "local" else 1)
    if cluster.shards is None or not run.work:
        return at_once
    measured = seconds_per_frame(run.store) or _siblings(run)
    if measured is None:
        guess = min(len(run.work), cluster.parallel or 8)
        run.say(
            f"{run.store.root.name}: nothing measured yet for cluster.shards=auto, taking {guess}; "
            "a first run with limit.clips=2 measures"
        )
        return guess
    return auto_shards(run.work, measured, cluster.target_minutes)


def at_once_here(cluster: Cluster) -> int:
    """Processes that ``cluster=local`` keeps busy."""
    return cluster.parallel or cluster.gpus or env.cores()


def auto_shards(work: Work, seconds_per_frame: float, target_minutes: float) -> int:
    """As many shards as finish the work within the wall time aimed at, one clip each at most."""
    seconds = seconds_per_frame * sum(len(clip) * len(es) for clip, es in work)
    return max(1, min(len(work), math.ceil(seconds / (60 * target_minutes))))


def seconds_per_frame(store: RunStore) -> float | None:
    """Measured seconds of one expression on one frame, over up to 50 stored samples; ``None`` = none."""
    looks = store.some(store.index().values())
    frames = sum(len(p.track) for p in looks if p.track is not None)
    return sum(p.seconds.get("total", 0.0) for p in looks) / frames if frames else None


def _siblings(run: Planned) -> float | None:
    """The same from another run of the same components (their options may differ)."""

    def parts(values: Mapping[str, Any]) -> list[str | None]:
        return [(values.get(part) or {}).get(TARGET) for part in ("method", "backbone", "segmenter")]

    for other in runs_in(Path(run.config.paths.runs)):
        # A neighbour that can't be read is no reason not to go on here.
        with contextlib.suppress(RefsegError):
            if other.root != run.store.root and parts(frozen(other)) == parts(run.values):
                measured = seconds_per_frame(other)
                if measured is not None:
                    return measured
    return None

"""Where predictions come from: what scoring asks of a source, and the source that a run folder is.

Predictions that other people's code wrote to files are read in :mod:`refseg_bench.scoring.foreign`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from refseg_bench.run.inputs import without
from refseg_bench.run.shards import Work
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.protocols.base import GreyTrack, LabelMaps
from refseg_bench.types import Clip, Expression, Prediction, Status, sample_id


@dataclass(frozen=True)
class State:
    """What is known of one sample's prediction before it is read.

    Attributes:
        status: ``ok``, ``failed`` or ``missing``.
        gaps: names of frames that have no prediction.
        why: the failure, or what is known of the gaps, in words.
    """

    status: Status
    gaps: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Survey:
    """What is known of one clip's predictions before they are read.

    Attributes:
        samples: expression id → state.
        labels: set of merged id maps → state; ``None`` where the predictions are not merged.
    """

    samples: Mapping[str, State] = field(default_factory=dict)
    labels: Mapping[str, State] | None = None


@dataclass(frozen=True)
class Answers:
    """The predictions of one clip.

    Attributes:
        samples: expression id → prediction (a failed one has ``failure`` set); absent = missing.
        greys: expression id → raw grey values, for predictions that came as PNG files.
        labels: merged id maps by set, for predictions that came as such; ``None`` = put them
            together from ``samples`` where a protocol wants them.
        encodings: how the mask files read are stored, in words → number of files.
        clip_missing: True if there is nothing at all for this clip; ``None`` = nothing if no
            sample is ok.
    """

    samples: Mapping[str, Prediction] = field(default_factory=dict)
    greys: Mapping[str, GreyTrack] = field(default_factory=dict)
    labels: Mapping[str, LabelMaps] | None = None
    clip_missing: bool | None = None
    encodings: Mapping[str, int] = field(default_factory=dict)


class PredictionSource(Protocol):
    """Where predictions come from. Must be picklable: workers get a copy."""

    @property
    def name(self) -> str:
        """How messages and tables call it."""

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression of a clip, without reading masks."""

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> Answers:
        """The predictions of a clip; the flags say which kind is wanted."""


def state_of(prediction: Prediction | None, clip: Clip) -> State:
    """The state of a prediction already read."""
    if prediction is None:
        return State("missing")
    if prediction.failure is not None or prediction.track is None:
        why = "" if prediction.failure is None else prediction.failure.message
        return State("failed", why=" ".join(why.split()))
    rles = prediction.track.rles
    return State("ok", tuple(n for n, r in zip(clip.frame_names, rles, strict=False) if r is None))


@dataclass(frozen=True)
class StoreSource:
    """The predictions of a run folder; each process opens its own index.

    Attributes:
        root: the folder.
        stale: samples that were predicted on other data → in which field. They count as failed.
    """

    root: Path
    stale: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression, from the index alone."""
        store = _opened(self.root)
        statuses = store.statuses(clip.id)
        states = {e.id: State(statuses.get(e.id, "missing")) for e in expressions}
        if "failed" in statuses.values():
            found = store.predictions(clip.id)
            states.update({key: state_of(p, clip) for key, p in found.items() if key in states and not p.ok})
        for e in expressions if self.stale else ():
            if why := self.stale.get(sample_id(clip.id, e.id)):
                states[e.id] = State("failed", why=f"predicted on other data: {why}")
        return Survey(states)

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> Answers:
        """The clip's predictions."""
        found = without(_opened(self.root).predictions(clip.id), clip, self.stale)
        return Answers({e.id: found[e.id] for e in expressions if e.id in found})


_stores: dict[Path, RunStore] = {}


def _opened(root: Path) -> RunStore:
    if root not in _stores:
        _stores[root] = RunStore(root)
    return _stores[root]


def refuse_damage(store: RunStore, work: Work) -> None:
    """See to it that no sample is missing because its line was damaged: such a sample is no zero.

    Raises:
        StoreError: samples are missing, and lines are damaged.
    """
    damage, done = store.damage(), store.done()
    if damage is not None and any(sample_id(c.id, e.id) not in done for c, es in work for e in es):
        raise damage

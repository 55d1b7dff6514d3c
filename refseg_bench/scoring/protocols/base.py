"""What a protocol is: a named, versioned rule set that turns predictions and targets into numbers.

A protocol is a component (a dataclass with options). It scores one clip at a time, so that memory
stays flat and clips spread over processes; and it aggregates columns of values through sums, so
that a million units aggregate in seconds and an interval costs one matrix product.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from refseg_bench.config.schema import Component
from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import ScoreError
from refseg_bench.scoring.counts import CountBook
from refseg_bench.scoring.labels import GreyMasks, LabelMaps
from refseg_bench.types import Clip, Expression, MaskTrack, Prediction, Score, Status, Target, sample_id

#: What a sample without a prediction does: refuse to score, count as zero, or leave it out.
MissingRule = Literal["error", "zero", "drop"]
Frames = Literal["all", "inner", "annotated", "predicted"]
Column = NDArray[np.float64]
#: The ``side`` of a protocol that compares at the predictions' own sizes.
ANY_SIZE = 0


@dataclass(frozen=True)
class Policy:
    """The choices in which evaluators differ (one row of the table in ``docs/protocols.md``)."""

    unit: Literal["expression", "object"] = "expression"  #: what one averaged value belongs to
    #: ``all`` of the clip, ``inner`` (without the first and last), those ``annotated`` or ``predicted``.
    frames: Frames = "all"
    #: How predicted objects find annotated ones.
    match: Literal["none", "id", "hungarian_j", "hungarian_jf"] = "none"
    #: What happens at pixels marked 255 in the truth.
    void: Literal["none", "ignore", "background", "object"] = "none"
    missing: MissingRule = "error"  #: what a missing expression or frame does
    missing_clip: MissingRule = "error"  #: what a clip without any prediction does
    missing_why: str = "refuses to score"  #: the tool's own behaviour, in words
    #: ``unit`` = every unit's values are rounded before averaging; ``final`` = only what is printed is.
    rounding: Literal["none", "unit", "final"] = "none"
    digits: int | None = None  #: decimals of that rounding
    scale: float = 1.0  #: 1 where the tool prints fractions, 100 where percent
    fractions: tuple[str, ...] = ()  #: metrics and units' values that are fractions whatever ``scale`` is
    #: Pixels covered twice by the polygon parts of one annotation: foreground (``union``), ``background``, or
    #: what pycocotools' ``encode`` makes of the parts' sum (``encode``).
    overlap: Literal["union", "background", "encode"] = "union"

    def percent(self, metric: str) -> float:
        """What a metric is multiplied with to be in percent."""
        return 100.0 if metric in self.fractions else 100.0 / self.scale


@dataclass(frozen=True)
class Item:
    """One sample as a protocol sees it."""

    expression: Expression
    target: Target  #: the truth
    prediction: Prediction | None  #: ``None`` when missing
    status: Status  #: ``ok``, ``failed`` (the method raised, a file can't be read) or ``missing``
    union: MaskTrack  #: all objects of the target as one track
    clip_missing: bool = False  #: True if no sample of the clip has a prediction (some tools ask that first)
    grey: GreyMasks | None = None  #: raw grey values, where the prediction came as files

    @property
    def track(self) -> MaskTrack | None:
        """The predicted masks, where the sample has some."""
        return None if self.prediction is None else self.prediction.track


#: A sample with a whole prediction: the item, its masks, and the frames that count.
Present = tuple[Item, MaskTrack, Sequence[int]]


@dataclass
class Case:
    """One clip with everything a protocol may compare."""

    clip: Clip
    items: Sequence[Item]  #: its samples, in the dataset's order
    book: CountBook  #: counts of mask pairs, shared by all protocols and runs of this clip
    truth: LabelMaps | None = (
        None  #: id maps of *all* its annotated objects, 255 = void; ``None`` = there are none
    )
    #: Its merged id maps, by set (``""``, or ``anno_0`` … ``anno_3``).
    predicted: Mapping[str, LabelMaps] = field(default_factory=dict)
    foreground: MaskTrack | None = None  #: union of all annotated instances of the clip (ReVOS), or ``None``
    detail: bool = False  #: True if scores should carry their per-frame values
    partial: bool = False  #: True if what is missing is left out under every protocol
    instances_known: bool = True  #: False if ``foreground`` had to be made from the targets
    #: Clip or sample in which the protocol counts nothing → why; filled while scoring.
    left_out: dict[str, str] = field(default_factory=dict)
    #: What turned out unusable only while it was scored (with ``partial``) → why.
    failed: dict[str, str] = field(default_factory=dict)
    #: Predicted ids that a protocol ignored because the truth lacks them.
    ignored: set[int] = field(default_factory=set)


class ScoringProtocol(Component):
    """Base of every protocol: a dataclass with the class attributes below.

    Subclasses give ``score_clip`` and, where metrics are not plain means, ``terms`` and ``combine``.
    """

    kind: ClassVar[str] = "protocol"

    id: ClassVar[str]
    version: ClassVar[int] = 1
    #: the tool whose rules these are, and where they were published.
    imitates: ClassVar[str]
    citation: ClassVar[str] = ""
    policy: ClassVar[Policy]
    #: metric names, the headline first.
    metrics: ClassVar[tuple[str, ...]]
    #: what the protocol compares: masks per expression, id maps per clip, or heat-map peaks.
    compares: ClassVar[Literal["expressions", "labels", "points"]] = "expressions"
    #: options whose value the publication leaves open: tables say how they were set.
    unsettled: ClassVar[tuple[str, ...]] = ()
    #: True if it knows the answer "absent" (a tool that sees masks only doesn't).
    knows_absent: ClassVar[bool] = False
    #: sets of merged id maps a label protocol scores.
    sets: ClassVar[tuple[str, ...]] = ("",)

    @property
    def name(self) -> str:
        """``id@version``."""
        return f"{self.id}@{self.version}"

    @property
    def side(self) -> int | None:
        """Side of the square at which masks of images are compared; ``None`` = original size.

        :data:`ANY_SIZE` = any size that a prediction has, also of videos.
        """
        return None

    @property
    def matching(self) -> str:
        """How predicted objects find annotated ones: a word of ``Policy.match``."""
        return self.policy.match

    @property
    def full_name(self) -> str:
        """``id@version``, with the options that differ from their defaults as the command line takes them."""
        changed: list[str] = []
        for f in dataclasses.fields(cast("Any", self)):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.init and value != default:
                changed.append(f":{f.name}={value if isinstance(value, str) else json.dumps(value)}")
        return self.name + "".join(changed)

    def wants(self, expression: Expression) -> bool:
        """True if the protocol scores this sample at all."""
        return True

    def unfit(self, dataset: Dataset) -> str | None:
        """Why the protocol can't be applied to a dataset, or ``None`` if it can.

        Asked before anything is read; no clip of the set would give a number.
        """
        clips = dataset.clips()
        if self.compares != "labels" and not any(dataset.expressions(clip) for clip in clips):
            return "it scores expressions, and there are none"
        return None

    def fault(self, item: Item) -> str | None:
        """Why this protocol can't use a prediction that is there, or ``None`` if it can."""
        return None

    def units(self, case: Case) -> int:
        """How many units of a clip would be scored if nothing lacked."""
        return sum(self.wants(item.expression) for item in case.items) - len(case.left_out)

    def needs(self, clip: Clip) -> Sequence[int] | None:
        """Frames that must be predicted whatever the truth is; ``None`` where the truth decides."""
        frames = self.policy.frames
        if frames in ("annotated", "predicted"):
            return None if frames == "annotated" else ()
        return range(1, len(clip) - 1) if frames == "inner" else range(len(clip))

    def scored_frames(self, clip: Clip, item: Item) -> Sequence[int]:
        """Indices of the frames that count for a sample."""
        if self.policy.frames not in ("annotated", "predicted"):
            return self.needs(clip) or ()
        track = item.union if self.policy.frames == "annotated" else item.track
        return [] if track is None else [t for t, counts in enumerate(track.rles) if counts is not None]

    def present(self, case: Case, zero: Mapping[str, float]) -> Iterator[Present | Score]:
        """The samples of a clip after the rule for what is missing.

        Yields:
            A sample to score, or the score of one that counts as ``zero``; nothing for one left out.

        Raises:
            ScoreError: the protocol refuses what is missing (and the caller did not allow it).
        """
        for item in case.items:
            if not self.wants(item.expression):
                continue
            unit = sample_id(case.clip.id, item.expression.id)
            frames = self.scored_frames(case.clip, item)
            if not len(frames) and self.policy.frames != "predicted":
                case.left_out[unit] = f"no frame of {len(case.clip)} counts ({self.policy.frames})"
                continue
            track = item.track
            if track is not None and len(frames) and all(track.rles[t] is not None for t in frames):
                yield item, track, frames
                continue
            rule = self.policy.missing_clip if item.clip_missing else self.policy.missing
            if case.partial or rule == "drop":
                continue
            if rule == "error":
                raise ScoreError(
                    f"'{unit}' has no complete prediction ({item.status}); {self.name} refuses incomplete "
                    "work.",
                    hint="Finish the run, or score what there is with --partial.",
                )
            yield Score(unit, case.clip.id, dict(zero), {"counted_as": "zero"})

    def notes(self, case: Case) -> dict[str, Any]:
        """Facts of a clip worth printing beside the result (equal ones are merged)."""
        return {}

    @abstractmethod
    def score_clip(self, case: Case) -> list[Score]:
        """Score all samples of one clip. Pure: no file is written, nothing is remembered."""

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """Per-unit summands whose sums determine all metrics (see :meth:`combine`).

        Columns are those of values and of attributes, by name, units in list order.
        """
        return {**values, "n": np.ones(len(next(iter(values.values()), ())))}

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Metrics from sums of the terms; works on scalars and on rows of resampled sums alike."""
        out = {name: ratio(sums[name], sums["n"]) for name in self.metrics if name in sums}
        if "J&F" in out:
            out["J&F"] = (out["J"] + out["F"]) / 2
        return out

    def no_value(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, str]:
        """Metrics of a table of units that have no value, and why."""
        terms = self.terms(values, attrs)
        metrics = self.combine({name: np.asarray(column.sum()) for name, column in terms.items()})
        groups = [name for name, column in terms.items() if name.startswith("n/") and not column.any()]
        out: dict[str, str] = {}
        for name in (name for name, value in metrics.items() if value != value):
            without = int(np.isnan(terms[name]).sum()) if name in terms else 0
            if without:
                out[name] = f"{without} of the {len(terms[name])} units have none"
            elif groups:
                out[name] = f"there is no unit of {', '.join(g.removeprefix('n/') for g in groups)}"
            else:
                out[name] = "there is nothing to divide by"
        return out

    def printed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics as the imitated tool prints them (rounded where it rounds)."""
        digits = self.policy.digits if self.policy.rounding == "final" else None
        return dict(metrics) if digits is None else {k: round(v, digits) for k, v in metrics.items()}


def grouped_terms(
    values: Mapping[str, Column], names: Sequence[str], kinds: NDArray[Any], groups: Mapping[int, str]
) -> dict[str, Column]:
    """Summands of means per group of units: ``NAME/GROUP``, 0 outside of the group, and ``n/GROUP``.

    ``groups``: kind of unit → name of its group.
    """
    out: dict[str, Column] = {}
    for kind, group in groups.items():
        here = kinds == kind
        out |= {f"{name}/{group}": np.where(here, values[name], 0.0) for name in names}
        out[f"n/{group}"] = here.astype(np.float64)
    return out


def ratio(top: Column, bottom: Column) -> Column:
    """``top / bottom``, NaN where there is nothing to average."""
    out: Column = np.full(np.broadcast(top, bottom).shape, np.nan)
    return np.divide(top, bottom, out=out, where=np.asarray(bottom) != 0)

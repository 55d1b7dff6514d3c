"""Image protocols: intersection and union per expression, in the ways the field averages them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refseg_bench.metrics.masks import overlap_rle, subtract_rle
from refseg_bench.metrics.protocols.base import Case, Column, Item, Policy, ScoringProtocol, present, ratio
from refseg_bench.types import Score, sample_id

#: Thresholds of Pr@X.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def precision_names(thresholds: Sequence[float] = THRESHOLDS) -> tuple[str, ...]:
    """``Pr@0.5`` …"""
    return tuple(f"Pr@{x:.1f}" for x in thresholds)


@dataclass
class ImageProtocol(ScoringProtocol):
    """Base of the image protocols: I and U of every sample at the policy's resolution.

    Not a protocol by itself.
    """

    def score_clip(self, case: Case) -> list[Score]:
        """One score per expression, from I and U of its single frame."""
        scores: list[Score] = []
        zero = {"IoU": 0.0, "I": 0.0, "U": 0.0}
        for item, frames, made in present(self, case, zero):
            if frames is None:
                if made is not None:
                    scores.append(made)
                continue
            inter, union = self.overlap(item)
            attrs = self.facts(item)
            if case.detail:
                attrs["frames"] = {case.clip.frame_names[0]: {"I": inter, "U": union}}
            unit = sample_id(case.clip.id, item.expression.id)
            scores.append(Score(unit, case.clip.id, self.unit_values(item, inter, union), attrs))
        return scores

    def facts(self, item: Item) -> dict[str, Any]:
        """Attributes of a sample that ``terms`` needs."""
        return {"frames_counted": 1}

    def overlap(self, item: Item) -> tuple[int, int]:
        """Intersection and union in pixels after the rules for void and doubly covered pixels."""
        if item.prediction is None or item.prediction.track is None:
            return 0, 0
        size = item.target.size
        truth = item.target.union().rles[0]
        answer = item.prediction.track.rles[0]
        if truth is None or answer is None:
            return 0, 0
        double = item.target.overlap
        if self.policy.overlap == "background" and double is not None and double.rles[0]:
            truth = subtract_rle(truth, double.rles[0], size)
        void = item.target.void
        if self.policy.void == "ignore" and void is not None and void.rles[0]:
            truth = subtract_rle(truth, void.rles[0], size)
            answer = subtract_rle(answer, void.rles[0], size)
        return overlap_rle(truth, answer, size)

    def unit_values(self, item: Item, inter: int, union: int) -> dict[str, float]:
        """A unit's values from its I and U."""
        return {"IoU": inter / union if union else 0.0, "I": float(inter), "U": float(union)}


@dataclass
class RefcocoOverall(ImageProtocol):
    """The harness' default for images: oIoU = ΣI / ΣU at the original size.

    mIoU is the mean of I/U with 0 where U = 0; Pr@X is the share of expressions with IoU >= X.
    Polygon parts of one annotation are united. Incomplete work is refused.
    """

    id: ClassVar[str] = "refcoco-oiou"
    aliases: ClassVar[tuple[str, ...]] = ("ref_image.ciou",)
    imitates: ClassVar[str] = "none (harness default)"
    policy: ClassVar[Policy] = Policy()
    metrics: ClassVar[tuple[str, ...]] = ("oIoU", "mIoU", *precision_names())
    #: how a sample's IoU is held against X in Pr@X.
    strictly_above: ClassVar[bool] = False

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """I, U, IoU and one indicator per threshold."""
        iou = values.get("IoU", np.zeros(0))
        out = {"I": values.get("I", np.zeros(0)), "U": values.get("U", np.zeros(0)), "IoU": iou}
        for name, threshold in zip(precision_names(), THRESHOLDS, strict=True):
            reached = iou > threshold if self.strictly_above else iou >= threshold
            out[name] = reached.astype(np.float64)
        out["n"] = np.ones(len(iou))
        return out

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Ratios of the sums."""
        out = {"oIoU": ratio(sums["I"], sums["U"]), "mIoU": ratio(sums["IoU"], sums["n"])}
        return {**out, **{name: ratio(sums[name], sums["n"]) for name in precision_names()}}

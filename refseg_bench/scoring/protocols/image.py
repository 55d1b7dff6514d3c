"""Image protocols: intersection and union per expression, in the ways the field averages them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pycocotools import mask as coco_mask

from refseg_bench.datasets.base import Dataset
from refseg_bench.scoring.counts import overlap_rle, resized_rle, subtract_rle
from refseg_bench.scoring.protocols.base import Case, Column, Item, Policy, ScoringProtocol, ratio
from refseg_bench.types import Clip, Expression, MaskTrack, Score, decode_rle, sample_id

#: Metrics Pr@X with their thresholds.
PRECISIONS = {f"Pr@{x}": x for x in (0.5, 0.6, 0.7, 0.8, 0.9)}


def encoded_sum(union: bytes, deeper: Sequence[MaskTrack], size: tuple[int, int]) -> bytes:
    """What pycocotools' ``encode`` makes of the uint8 sum of overlapping polygon parts.

    It starts a new run at every change of *value*, so that from a step between 1 and 2 on, foreground and
    background are swapped, column after column, until the next such step. ``deeper``: pixels that two or
    more, three or more … parts cover.
    """
    covered = decode_rle(union, size).astype(np.uint8)
    for track in deeper:
        mask = track.mask(0)
        if mask is not None:
            covered += mask
    return bytes(coco_mask.encode(np.asfortranarray(covered))["counts"])


@dataclass
class ImageProtocol(ScoringProtocol):
    """Base of the image protocols: I and U of every sample at the policy's resolution.

    Not a protocol by itself.
    """

    def unfit(self, dataset: Dataset) -> str | None:
        """Videos: only their first frame would count."""
        if any(len(clip) > 1 for clip in dataset.clips()):
            return "it scores images, and there are clips of several frames"
        return super().unfit(dataset)

    def score_clip(self, case: Case) -> list[Score]:
        """One score per expression, from I and U of its single frame."""
        scores: list[Score] = []
        for entry in self.present(case, {"IoU": 0.0, "I": 0.0, "U": 0.0}):
            if isinstance(entry, Score):
                scores.append(entry)
                continue
            item, track, _ = entry
            inter, union = self.overlap(item, track)
            attrs: dict[str, Any] = {"frames_counted": 1}
            if case.detail:
                attrs["frames"] = {case.clip.frame_names[0]: {"I": inter, "U": union}}
            unit = sample_id(case.clip.id, item.expression.id)
            scores.append(Score(unit, case.clip.id, self.unit_values(item, inter, union), attrs))
        return scores

    def overlap(self, item: Item, predicted: MaskTrack) -> tuple[int, int]:
        """Intersection and union in pixels after the rules for void and doubly covered pixels."""
        size = item.target.size
        truth, answer = item.union.rles[0], predicted.rles[0]
        if truth is None or answer is None:
            return 0, 0
        double = item.target.overlap
        if self.policy.overlap == "background" and double is not None and double.rles[0]:
            truth = subtract_rle(truth, double.rles[0], size)
        elif self.policy.overlap == "encode" and double is not None:
            truth = encoded_sum(truth, (double, *item.target.deeper), size)
        void = item.target.void
        if self.policy.void == "ignore" and void is not None and void.rles[0]:
            truth = subtract_rle(truth, void.rles[0], size)
            answer = subtract_rle(answer, void.rles[0], size)
        if self.side is not None:
            truth, size = resized_rle(truth, size, (self.side, self.side)), (self.side, self.side)
            # A model's own output may come at that size already.
            if predicted.size != size:
                answer = resized_rle(answer, predicted.size, size)
        return overlap_rle(truth, answer, size)

    def unit_values(self, item: Item, inter: int, union: int) -> dict[str, float]:
        """A unit's values from its I and U."""
        return {"IoU": self.iou(inter, union), "I": float(inter), "U": float(union)}

    def iou(self, inter: int, union: int) -> float:
        """What a unit adds to the mean IoU."""
        return inter / union if union else 0.0


class RefcocoOverall(ImageProtocol):
    """The harness' default for images: oIoU = ΣI / ΣU at the original size.

    mIoU is the mean of I/U with 0 where U = 0; Pr@X is the share of expressions with IoU >= X.
    Polygon parts of one annotation are united. Incomplete work is refused.
    """

    id: ClassVar[str] = "refcoco-oiou"
    imitates: ClassVar[str] = "none (harness default)"
    policy: ClassVar[Policy] = Policy()
    metrics: ClassVar[tuple[str, ...]] = ("oIoU", "mIoU", *PRECISIONS)
    #: how a sample's IoU is held against X in Pr@X: >= X, or > X in float32.
    strictly_above: ClassVar[bool] = False

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """I, U, IoU and one indicator per threshold."""
        iou = values["IoU"]
        out = {"I": values["I"], "U": values["U"], "IoU": iou}
        for name, threshold in PRECISIONS.items():
            reached = iou > np.float64(np.float32(threshold)) if self.strictly_above else iou >= threshold
            out[name] = reached.astype(np.float64)
        return {**out, "n": np.ones(len(iou))}

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Ratios of the sums."""
        out = {"oIoU": ratio(sums["I"], sums["U"]), "mIoU": ratio(sums["IoU"], sums["n"])}
        out |= {name: ratio(sums[name], sums["n"]) for name in PRECISIONS}
        return {name: out[name] for name in self.metrics}


@dataclass
class RefcocoLavt(RefcocoOverall):
    """LAVT: oIoU, mIoU (0 where U = 0) and Pr@X with >=; doubly covered pixels are background.

    The published numbers are at 480x480, where both masks are resized (nearest); the default here
    is the original size, which is another quantity.

    Attributes:
        resolution: side of the square masks are resized to; ``None`` = original size.
    """

    resolution: int | None = None

    id: ClassVar[str] = "refcoco-lavt"
    imitates: ClassVar[str] = "LAVT"
    citation: ClassVar[str] = "Yang et al., CVPR 2022; yz93/LAVT-RIS @ 1da0af9"
    policy: ClassVar[Policy] = Policy(overlap="background")

    @property
    def side(self) -> int | None:
        """See ``resolution``."""
        return self.resolution


class RefcocoCris(RefcocoOverall):
    """CRIS: mean of I / (U + 1e-6) and Pr@X with >, at the original size; polygon parts are united.

    X is a float32 in the tool (0.9 is 0.89999998 there), so that an IoU of exactly 0.9 passes Pr@0.9
    and one of exactly 0.6 does not pass Pr@0.6.
    """

    id: ClassVar[str] = "refcoco-cris"
    version: ClassVar[int] = 2
    imitates: ClassVar[str] = "CRIS"
    citation: ClassVar[str] = "Wang et al., CVPR 2022; DerrickWang005/CRIS.pytorch @ e596332"
    policy: ClassVar[Policy] = Policy()
    metrics: ClassVar[tuple[str, ...]] = ("mIoU", *PRECISIONS, "oIoU")
    strictly_above: ClassVar[bool] = True

    def iou(self, inter: int, union: int) -> float:
        """With 1e-6 under the union."""
        return inter / (union + 1e-6)


class RefcocoLisa(ImageProtocol):
    """LISA: gIoU and cIoU at the original size; doubly covered pixels are background, 255 is void.

    gIoU sums I / (U + 1e-5), plus 1 where U = 0, and divides by the count + 1e-5; cIoU is
    ΣI / (ΣU + 1e-10). The tool sums in float32 (compare with 1e-4), and its distributed sampler
    repeats samples to fill the last batch, which is not imitated.
    """

    id: ClassVar[str] = "refcoco-lisa"
    imitates: ClassVar[str] = "LISA"
    citation: ClassVar[str] = "Lai et al., CVPR 2024; dvlab-research/LISA @ 3cb2d43"
    policy: ClassVar[Policy] = Policy(void="ignore", overlap="background")
    metrics: ClassVar[tuple[str, ...]] = ("gIoU", "cIoU")
    #: added to the number of samples under gIoU.
    count_epsilon: ClassVar[float] = 1e-5

    def iou(self, inter: int, union: int) -> float:
        """The summand of gIoU."""
        return inter / (union + 1e-5) + (1.0 if union == 0 else 0.0)

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Ratios with LISA's epsilons."""
        return {
            "gIoU": ratio(sums["IoU"], sums["n"] + self.count_epsilon),
            "cIoU": ratio(sums["I"], sums["U"] + 1e-10),
        }


class ReasonSegLisa(RefcocoLisa):
    """LISA on ReasonSeg: as ``refcoco-lisa``; only the first text of an image is scored."""

    id: ClassVar[str] = "reasonseg-lisa"
    imitates: ClassVar[str] = "LISA on ReasonSeg"

    def unfit(self, dataset: Dataset) -> str | None:
        """RefCOCO's sentences are not numbered texts of one image."""
        if any("sent_id" in e.attrs for clip in dataset.clips()[:1] for e in dataset.expressions(clip)):
            return "it scores the first text of each image, and the sentences here have ids of their own"
        return super().unfit(dataset)

    def wants(self, expression: Expression) -> bool:
        """True for the first text."""
        index = str(expression.attrs.get("text_index", expression.id))
        return not index.isdecimal() or int(index) == 0


class RefcocoSa2va(RefcocoLisa):
    """Sa2VA: as ``refcoco-lisa`` with the plain count under gIoU, and with other doubly covered pixels.

    A missing prediction adds nothing to I and U (cIoU ignores the miss) but counts under gIoU.
    Overlapping polygon parts are summed as uint8 and the sum goes through pycocotools' ``encode``, which
    starts a new run at every change of value (0, 1, 2): a column with doubly covered pixels is inverted
    from there on (``overlap=encode``).
    """

    id: ClassVar[str] = "refcoco-sa2va"
    version: ClassVar[int] = 2
    imitates: ClassVar[str] = "Sa2VA on RefCOCO"
    citation: ClassVar[str] = "Yuan et al., 2025; magic-research/Sa2VA @ d01bf3f"
    policy: ClassVar[Policy] = Policy(
        missing="zero",
        missing_clip="zero",
        missing_why="0 in gIoU, left out of cIoU",
        void="ignore",
        overlap="encode",
    )
    count_epsilon: ClassVar[float] = 0.0


@dataclass
class GrefcocoGres(ImageProtocol):
    """ReLA (GRES): samples may have no target, and a model *flags* that it sees none.

    gIoU is the mean over samples: a no-target sample gives 1 if flagged, else 0, whatever its
    mask; a target sample gives I/U (0 where U = 0), with I := 0 if flagged. cIoU is 100 ΣI/ΣU: a
    flagged no-target sample adds 0/0, an unflagged one 0/U, a flagged target sample 0/U. N-acc and
    T-acc are fractions, both 0 if the split has no no-target sample. Pr@X (>=) is over target
    samples only. gIoU, cIoU and Pr@X are in percent, as the tool prints them. I and U of every
    sample are kept raw. Published numbers are at 480x480 (``resolution: 480``).

    Attributes:
        resolution: side of the square masks are resized to; ``None`` = original size.
        flag: ``explicit`` = what the prediction says (no word = not flagged); ``empty`` = an empty
            mask counts as the flag, for models that have none.
    """

    resolution: int | None = None
    flag: Literal["explicit", "empty"] = "explicit"

    knows_absent: ClassVar[bool] = True

    id: ClassVar[str] = "grefcoco-gres"
    imitates: ClassVar[str] = "ReLA (GRES)"
    citation: ClassVar[str] = "Liu et al., CVPR 2023; henghuiding/ReLA @ 3ca9551"
    policy: ClassVar[Policy] = Policy(scale=100.0, fractions=("N-acc", "T-acc", "IoU"))
    precisions: ClassVar[tuple[str, ...]] = ("Pr@0.7", "Pr@0.8", "Pr@0.9")
    metrics: ClassVar[tuple[str, ...]] = ("gIoU", "cIoU", "N-acc", "T-acc", *precisions)

    @property
    def side(self) -> int | None:
        """See ``resolution``."""
        return self.resolution

    def unit_values(self, item: Item, inter: int, union: int) -> dict[str, float]:
        """Raw I and U, the two flags, and the sample's IoU after the rules."""
        nothing, flagged = no_target(item), self.flagged(item)
        iou = float(flagged) if nothing else 0.0 if flagged else self.iou(inter, union)
        raw = {"I": float(inter), "U": float(union)}
        return {"IoU": iou, **raw, "no_target": float(nothing), "flagged": float(flagged)}

    def flagged(self, item: Item) -> bool:
        """True if the prediction says that nothing is meant."""
        prediction = item.prediction
        if prediction is None or prediction.track is None:
            return False
        if self.flag == "empty" and prediction.no_target is None:
            return prediction.track.area()[0] == 0
        return bool(prediction.no_target)

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """Sums behind all metrics."""
        names = ("IoU", "I", "U", "no_target", "flagged")
        iou, inter, union, nothing, flagged = (values[name] for name in names)
        target, named = 1 - nothing, 1 - flagged
        out = {
            "IoU": iou,
            "I": inter * target * named,
            "U": union * (1 - nothing * flagged),
            "TP": nothing * flagged,
            "FN": nothing * named,
            "TN": target * named,
            "FP": target * flagged,
            "n": np.ones(len(iou)),
            "n_target": target,
        }
        return {**out, **{name: (iou >= PRECISIONS[name]) * target for name in self.precisions}}

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Metrics in the tool's order and units."""
        none = sums["TP"] + sums["FN"] == 0
        out = {
            "gIoU": 100 * ratio(sums["IoU"], sums["n"]),
            "cIoU": 100 * ratio(sums["I"], sums["U"]),
            "N-acc": np.where(none, 0.0, ratio(sums["TP"], sums["TP"] + sums["FN"])),
            "T-acc": np.where(none, 0.0, ratio(sums["TN"], sums["TN"] + sums["FP"])),
        }
        return {**out, **{name: 100 * ratio(sums[name], sums["n_target"]) for name in self.precisions}}


@dataclass
class Pointing(ScoringProtocol):
    """PA, point accuracy: share of samples whose heat-map peak lies inside the target's mask.

    Needs the peak, not the mask. The peak is held against the mask of its own frame: RefAM looks at
    the first frame only, so that this is its rule; a method whose map spans the clip (DecAF) is not
    forced to the frame where its target may be hidden. A target that is absent there can't be hit, and
    an answer that flags "no target" hits nothing. An answer without a peak and without that flag comes
    from a method that has no heat map: it is refused.
    """

    id: ClassVar[str] = "pointing"
    imitates: ClassVar[str] = "RefAM"
    citation: ClassVar[str] = "RefAM"
    policy: ClassVar[Policy] = Policy(frames="all")
    metrics: ClassVar[tuple[str, ...]] = ("PA",)
    compares: ClassVar[Literal["expressions", "labels", "points"]] = "points"

    def needs(self, clip: Clip) -> Sequence[int]:
        """No frame: masks are not read, so that runs without them (or on few frames) can be scored."""
        return ()

    def fault(self, item: Item) -> str | None:
        """An answer without a peak that flags no target either."""
        prediction = item.prediction
        if prediction is None or prediction.point is not None or prediction.no_target:
            return None
        return "it has no heat-map peak (PA needs a method that makes heat maps)"

    def score_clip(self, case: Case) -> list[Score]:
        """1 for a hit, 0 for a miss."""
        scores: list[Score] = []
        for item in case.items:
            unit = sample_id(case.clip.id, item.expression.id)
            if item.status != "ok" or item.prediction is None or self.fault(item) is not None:
                # Refused before, or left out with --partial.
                continue
            point, hit = item.prediction.point, False
            if point is not None and (mask := item.union.mask(point.frame)) is not None:
                height, width = item.target.size
                row, column = min(int(point.y * height), height - 1), min(int(point.x * width), width - 1)
                hit = bool(mask[row, column])
            attrs = {"frames_counted": int(point is not None)}
            scores.append(Score(unit, case.clip.id, {"PA": float(hit)}, attrs))
        return scores


def no_target(item: Item) -> bool:
    """True if the expression means nothing in the image."""
    said = item.expression.attrs.get("no_target")
    return not item.target.objects if said is None else bool(said)

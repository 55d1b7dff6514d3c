"""ReVOS: J, F, and the accuracy A and robustness R whose value depends on how the PNG was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.datasets.base import Dataset
from refseg_bench.scoring.boundary import jf_values, mean_of
from refseg_bench.scoring.protocols.base import Case, Column, Item, Policy, grouped_terms, ratio
from refseg_bench.scoring.protocols.rvos import RvosExpression, percent
from refseg_bench.types import Expression, MaskTrack, Score, sample_id, union_rle

#: ``type_id`` of an expression → its column.
TYPES = {0: "referring", 1: "reasoning", 2: "absent"}
_COLUMNS = ("J", "F", "A", "R")
METRICS = (
    "J&F", *_COLUMNS,
    *(f"{name}/{column}" for column in ("referring", "reasoning") for name in ("J&F", *_COLUMNS)),
    "R/absent",
)  # fmt: skip


def accuracy(truth_HW: NDArray[np.uint8], answer_HW: NDArray[np.uint8]) -> float:
    """Share of pixels where the two *values* are equal (A of one frame)."""
    return float(np.count_nonzero(truth_HW == answer_HW)) / truth_HW.size


def robustness(truth_HW: NDArray[np.uint8], answer_HW: NDArray[np.uint8], foreground: int) -> float:
    """R of one frame: ``max(0, 1 - N / (foreground + 1e-6))``.

    N sums ``(1 - g) * p`` in 8-bit arithmetic, as the tool does: with 0/1 predictions and g <= 1 it
    counts false positives; with 0/255 files each of them weighs 255; g = 2 wraps to 255.

    Args:
        truth_HW: uint8 *sum* of the target's masks.
        answer_HW: uint8 grey values of the prediction.
        foreground: pixels of all annotated instances of the frame.
    """
    wrong = (np.uint8(1) - truth_HW) * answer_HW
    return max(0.0, 1.0 - float(wrong.sum(dtype=np.int64)) / (foreground + 1e-6))


@dataclass
class RevosVisa(RvosExpression):
    """VISA's ReVOS evaluator, bug-compatible: A and R are computed from raw 8-bit grey values.

    Truth is the uint8 sum of the target's masks (0, 1, 2 …), the prediction its PNG's grey value as
    OpenCV reads it. With 0/255 files A is the share of correct background only and R is close to
    zero; J and F don't depend on it. The encoding found is reported. Per expression each of J, F,
    A, R is a mean over all frames, rounded to 2 decimals of a percentage (J&F from the unrounded
    (J + F) / 2); then the mean over type 0 (referring) and over type 1 (reasoning), whose J&F are
    (J + F) / 2 of the columns; overall is the plain mean of the two columns. Absent targets
    (type 2) enter only ``R/absent``, which the tool doesn't print; what has no type is left out. Any error
    scores 0 in all four.

    Attributes:
        encoding: how a prediction that did *not* come as a PNG is taken to be written.
    """

    encoding: Literal["0/255", "0/1"] = "0/255"

    id: ClassVar[str] = "revos-visa"
    imitates: ClassVar[str] = "VISA, DecAF on ReVOS"
    citation: ClassVar[str] = "Yan et al., ECCV 2024; cilinyan/VISA @ ec158fd"
    policy: ClassVar[Policy] = Policy(
        missing="zero",
        missing_clip="zero",
        missing_why="any error: 0 in all four metrics",
        rounding="unit",
        digits=2,
        scale=100.0,
    )
    metrics: ClassVar[tuple[str, ...]] = METRICS

    def unfit(self, dataset: Dataset) -> str | None:
        """A set whose expressions are neither referring nor reasoning has no column."""
        kinds = (expression_type(e) for clip in dataset.clips() for e in dataset.expressions(clip))
        if not any(kind in (0, 1) for kind in kinds):
            return "it averages by type_id (0 referring, 1 reasoning), which its expressions don't have"
        return None

    def score_clip(self, case: Case) -> list[Score]:
        """J and F from counts, A and R from values; the expression's type beside them."""
        types = {sample_id(case.clip.id, i.expression.id): expression_type(i.expression) for i in case.items}
        zero = dict.fromkeys(("J&F", *_COLUMNS), 0.0)
        out: list[Score] = []
        for s in super().score_clip(case):
            if types[s.unit] not in TYPES:
                case.left_out[s.unit] = "it has no type_id, by which the columns average"
                continue
            values = zero if s.attrs.get("counted_as") == "zero" else s.values
            out.append(Score(s.unit, s.cluster, values, {**s.attrs, "type_id": types[s.unit]}))
        return out

    def score_item(self, case: Case, item: Item, frames: Sequence[int], counts: NDArray[np.int64]) -> Score:
        """The rounded values of one complete sample."""
        base = super().score_item(case, item, frames, counts)
        areas = foreground_areas(case)
        a_T, r_T = np.zeros(len(frames)), np.zeros(len(frames))
        for index, t in enumerate(frames):
            truth, answer = self.values_at(item, t)
            a_T[index] = accuracy(truth, answer)
            r_T[index] = robustness(truth, answer, areas[t])
        j, f, a, r = base.values["J"], base.values["F"], mean_of(a_T), mean_of(r_T)
        values = {n: percent(v) for n, v in {**jf_values(j, f), "A": a, "R": r}.items()}
        attrs = {**base.attrs, "encoding": self.encoding_of(item)}
        if case.detail:
            rows = zip(base.attrs["frames"].items(), a_T.tolist(), r_T.tolist(), strict=True)
            attrs["frames"] = {name: {**row, "A": x, "R": y} for (name, row), x, y in rows}
        return Score(base.unit, base.cluster, values, attrs)

    def notes(self, case: Case) -> dict[str, Any]:
        """The encoding found, and where the foreground came from."""
        found = {self.encoding_of(i) for i in case.items if i.status == "ok"}
        notes = {"encoding": found.pop() if len(found) == 1 else "mixed"} if found else {}
        where = "the dataset's" if case.instances_known else "union of the targets"
        return {**super().notes(case), **notes, "foreground": where}

    def values_at(self, item: Item, frame: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Truth and prediction of a frame as the 8-bit values the tool compares."""
        truth = np.zeros(item.target.size, np.uint8)
        for track in item.target.objects:
            mask = track.mask(frame)
            if mask is not None:
                truth += mask
        if item.grey is not None:
            return truth, item.grey.frame(frame)
        foreground = np.uint8(255 if self.encoding == "0/255" else 1)
        return truth, _mask(item, frame) * foreground

    def encoding_of(self, item: Item) -> str:
        """How the prediction is written."""
        return self.encoding if item.grey is None else item.grey.encoding()

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """The four columns split by type."""
        return grouped_terms(values, _COLUMNS, np.asarray(attrs["type_id"]), TYPES)

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Columns of the two types, then their plain mean."""
        out: dict[str, Column] = {}
        for column in ("referring", "reasoning"):
            for name in _COLUMNS:
                out[f"{name}/{column}"] = ratio(sums[f"{name}/{column}"], sums[f"n/{column}"])
            out[f"J&F/{column}"] = (out[f"J/{column}"] + out[f"F/{column}"]) / 2
        for name in ("J&F", *_COLUMNS):
            out[name] = (out[f"{name}/referring"] + out[f"{name}/reasoning"]) / 2
        out["R/absent"] = ratio(sums["R/absent"], sums["n/absent"])
        return {name: out[name] for name in METRICS}


@dataclass
class RevosBinary(RevosVisa):
    """ReVOS with 0/1 masks: truth is the union, so A is pixel accuracy and R counts false positives.

    Otherwise as ``revos-visa``; its A and R don't depend on the encoding of files.
    """

    encoding: Literal["0/1"] = "0/1"

    id: ClassVar[str] = "revos-binary"
    imitates: ClassVar[str] = "VISA on ReVOS, without its 8-bit quirks"

    def values_at(self, item: Item, frame: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Union and mask as 0 and 1."""
        truth = item.union.mask(frame)
        plain = np.zeros(item.target.size, np.bool_) if truth is None else truth
        return plain.astype(np.uint8), _mask(item, frame)

    def encoding_of(self, item: Item) -> str:
        """Always 0/1."""
        return "0/1"


class RevosCoarse(RevosVisa):
    """DecAF's evaluator on ReVOS for coarse masks: only the frames that have a prediction count (Table 1)."""

    id: ClassVar[str] = "revos-coarse"
    imitates: ClassVar[str] = "DecAF on ReVOS, coarse masks"
    citation: ClassVar[str] = "HYUNJS/DecAF @ 6c9766c"
    policy: ClassVar[Policy] = replace(
        RevosVisa.policy,
        frames="predicted",
        missing_why="frame missing: not counted; any other error: 0 in all four metrics",
    )


@dataclass
class Sa2vaRevos(RevosVisa):
    """Sa2VA on ReVOS: VISA's arithmetic on 0/1 masks from one JSON; none may be missing."""

    encoding: Literal["0/255", "0/1"] = "0/1"

    id: ClassVar[str] = "sa2va-revos"
    imitates: ClassVar[str] = "Sa2VA on ReVOS"
    citation: ClassVar[str] = "Yuan et al., 2025; magic-research/Sa2VA @ d01bf3f"
    policy: ClassVar[Policy] = Policy(missing_why="KeyError, crash", rounding="unit", digits=2, scale=100.0)


def expression_type(expression: Expression) -> int:
    """0 referring, 1 reasoning, 2 absent; −1 where the dataset has no types."""
    attrs = expression.attrs
    found = attrs.get("type_id", attrs.get("type", -1))
    return found if isinstance(found, int) else -1


def foreground_areas(case: Case) -> list[int]:
    """Pixels of all annotated instances per frame; without such a map, of all targets of the clip."""
    track = case.foreground
    if track is None:
        unions = [item.union.rles for item in case.items]
        rles = [
            union_rle([c for c in counts if c is not None], case.clip.size)
            for counts in zip(*unions, strict=True)
        ]
        track = case.foreground = MaskTrack(case.clip.size, tuple(rles))
        case.instances_known = False
    return [area or 0 for area in track.area()]


def _mask(item: Item, frame: int) -> NDArray[np.uint8]:
    mask = None if item.track is None else item.track.mask(frame)
    return np.zeros(item.target.size, np.uint8) if mask is None else mask.astype(np.uint8)

"""Video protocols whose unit is the expression: each sentence alone, no matching, no void."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import ConfigError
from refseg_bench.scoring.boundary import JF, boundary_f, jaccard, jf_values, mean_of
from refseg_bench.scoring.counts import CountBook, resized_rle
from refseg_bench.scoring.protocols.base import (
    ANY_SIZE,
    Case,
    Column,
    Item,
    Policy,
    Present,
    ScoringProtocol,
    grouped_terms,
    ratio,
)
from refseg_bench.types import Clip, MaskTrack, Score, sample_id


@dataclass
class RvosExpression(ScoringProtocol):
    """MeViS' evaluator: J and F of each expression over all frames of the list, mean over expressions.

    The target is the union of the expression's objects; a frame without annotation counts as empty.
    J = 1 where both masks are empty, and F = 1 where both boundaries are. A video without any
    prediction scores 0 in every expression; an expression with a missing or wrongly sized frame is
    dropped, because the tool's worker dies on it. J&F = (mean J + mean F) / 2.
    """

    id: ClassVar[str] = "rvos-expr"
    imitates: ClassVar[str] = "MeViS"
    citation: ClassVar[str] = "Ding et al., ICCV 2023; henghuiding/MeViS @ 7c0620b"
    policy: ClassVar[Policy] = Policy(
        missing="drop",
        missing_clip="zero",
        missing_why="video missing: 0; expression or frame missing: dropped (its worker dies)",
    )
    metrics: ClassVar[tuple[str, ...]] = JF

    def score_clip(self, case: Case) -> list[Score]:
        """One score per expression, from the counts of its frames."""
        asked = list(self.present(case, dict.fromkeys(self.metrics, 0.0)))
        # All are entered before the first is counted, so that a truth is prepared once.
        tickets = {id(a[0]): case.book.enter(a[0].union, a[1]) for a in asked if not isinstance(a, Score)}
        scores: list[Score] = []
        for entry in asked:
            if not isinstance(entry, Score):
                item, _, frames = entry
                counts = case.book.counts(tickets[id(item)])[list(frames)]
                entry = self.score_item(case, item, frames, counts)
            scores.append(entry)
        return scores

    def score_item(self, case: Case, item: Item, frames: Sequence[int], counts: NDArray[np.int64]) -> Score:
        """The score of one complete sample from its counts ``(frames, 7)``."""
        j, f = jaccard(counts), boundary_f(counts)
        attrs: dict[str, Any] = {"frames_counted": len(frames)}
        if case.detail:
            names = [case.clip.frame_names[t] for t in frames]
            attrs["frames"] = {
                n: {"J": a, "F": b} for n, a, b in zip(names, j.tolist(), f.tolist(), strict=True)
            }
        unit = sample_id(case.clip.id, item.expression.id)
        return Score(unit, case.clip.id, self.finish(mean_of(j), mean_of(f)), attrs)

    def notes(self, case: Case) -> dict[str, Any]:
        """How many of the frames that count nobody annotated."""
        gaps = sum(
            item.union.rles[t] is None
            for item in case.items
            if self.wants(item.expression)
            for t in self.scored_frames(case.clip, item)
        )
        return {"counted_as_empty": {"frame without annotation": gaps}} if gaps else {}

    def finish(self, j: float, f: float) -> dict[str, float]:
        """A unit's values from its mean J and F (fractions)."""
        return jf_values(j, f)


class ExpressionStrict(RvosExpression):
    """``rvos-expr`` that refuses incomplete work instead of dropping it."""

    id: ClassVar[str] = "expression"
    imitates: ClassVar[str] = "none (harness default)"
    policy: ClassVar[Policy] = Policy()


class MevisVideoLisa(RvosExpression):
    """VideoLISA's copy of the MeViS evaluator: a video without predictions is dropped, not zero."""

    id: ClassVar[str] = "mevis-vlisa"
    imitates: ClassVar[str] = "VideoLISA's copy of MeViS"
    citation: ClassVar[str] = "Bai et al., NeurIPS 2024; showlab/VideoLISA @ 146f2bc"
    policy: ClassVar[Policy] = Policy(
        missing="drop", missing_clip="drop", missing_why="video, expression or frame missing: dropped"
    )


@dataclass
class MevisV2(RvosExpression):
    """MeViS v2: J and F as in MeViS, and whether what isn't there is answered as absent.

    A target is absent if no frame shows any of it. An answer is absent if it is flagged so or no mask has a
    pixel; a flagged answer counts with empty masks. N-acc is the share of absent targets that are answered
    as absent, T-acc the share of the others that are not; Final = (J&F + N-acc + T-acc) / 3. Without an
    absent target (or without any other) N-acc (or T-acc) and Final have no value.

    The server's code is not public. The names are read as in GRES, missing work is refused, and whether J&F
    averages over absent targets, where an empty frame scores 1, is not known: both means are always given,
    as ``J&F/all`` and ``J&F/targets``.

    Attributes:
        jf_over: what J, F, J&F and Final average over: ``all`` expressions, or those with a target.
    """

    jf_over: Literal["all", "targets"] = "all"

    id: ClassVar[str] = "mevis-v2"
    imitates: ClassVar[str] = "MeViS v2"
    citation: ClassVar[str] = "Ding et al., arXiv 2512.10945"
    policy: ClassVar[Policy] = Policy()
    metrics: ClassVar[tuple[str, ...]] = ("Final", *JF, "N-acc", "T-acc", "J&F/all", "J&F/targets")
    unsettled: ClassVar[tuple[str, ...]] = ("jf_over",)
    knows_absent: ClassVar[bool] = True

    def present(self, case: Case, zero: Mapping[str, float]) -> Iterator[Present | Score]:
        """See :meth:`ScoringProtocol.present`; what is flagged as absent has empty masks."""
        for entry in super().present(case, zero):
            if not isinstance(entry, Score) and entry[0].prediction and entry[0].prediction.no_target:
                entry = (entry[0], MaskTrack.empty(case.clip.size, len(case.clip)), entry[2])
            yield entry

    def score_item(self, case: Case, item: Item, frames: Sequence[int], counts: NDArray[np.int64]) -> Score:
        """J and F, and whether target and answer are absent."""
        score = super().score_item(case, item, frames, counts)
        said = item.prediction is not None and item.prediction.answer != "masks"
        kinds = {"absent": float(item.union.empty_throughout), "said_absent": float(said)}
        return replace(score, values={**score.values, **kinds})

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """J, F and the answers, split by whether the target is absent."""
        return grouped_terms(
            values, ("J", "F", "said_absent"), values["absent"], {0: "targets", 1: "absent targets"}
        )

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Means over all expressions and over those with a target, accuracies, and Final."""
        both = {n: sums[f"{n}/targets"] + sums[f"{n}/absent targets"] for n in ("J", "F", "n")}
        found = {
            "all": {n: ratio(both[n], both["n"]) for n in ("J", "F")},
            "targets": {n: ratio(sums[f"{n}/targets"], sums["n/targets"]) for n in ("J", "F")},
        }
        out = {f"J&F/{over}": (jf["J"] + jf["F"]) / 2 for over, jf in found.items()}
        out |= {**found[self.jf_over], "J&F": out[f"J&F/{self.jf_over}"]}
        out["N-acc"] = ratio(sums["said_absent/absent targets"], sums["n/absent targets"])
        out["T-acc"] = 1 - ratio(sums["said_absent/targets"], sums["n/targets"])
        out["Final"] = (out["J&F"] + out["N-acc"] + out["T-acc"]) / 3
        return {name: out[name] for name in self.metrics}


class MevisVisa(RvosExpression):
    """VISA's copy of the MeViS evaluator: in percent, printed with 2 decimals after averaging."""

    id: ClassVar[str] = "mevis-visa"
    imitates: ClassVar[str] = "VISA's copy of MeViS"
    citation: ClassVar[str] = "Yan et al., ECCV 2024; cilinyan/VISA @ ec158fd"
    policy: ClassVar[Policy] = replace(RvosExpression.policy, rounding="final", digits=2, scale=100.0)

    def finish(self, j: float, f: float) -> dict[str, float]:
        """Percent, unrounded."""
        return jf_values(100 * j, 100 * f)


class RefDavisVisa(MevisVisa):
    """VISA's evaluator on Ref-DAVIS17: each expression alone, no void, no matching, all frames.

    Not comparable with ``refdavis-anno``. The four annotators' expressions are pooled.
    """

    id: ClassVar[str] = "refdavis-visa"
    imitates: ClassVar[str] = "VISA on Ref-DAVIS17"


class Decaf(RvosExpression):
    """DecAF's evaluator: in percent, every expression rounded to 2 decimals before averaging.

    The J&F of an expression is rounded from the unrounded (J + F) / 2; the table's J&F is
    (mean J + mean F) / 2. Whatever goes wrong with an expression (missing folder or frame, another
    size) scores 0.
    """

    id: ClassVar[str] = "decaf"
    imitates: ClassVar[str] = "DecAF"
    citation: ClassVar[str] = "HYUNJS/DecAF @ 6c9766c"
    policy: ClassVar[Policy] = Policy(
        missing="zero",
        missing_clip="zero",
        missing_why="any error: 0",
        rounding="unit",
        digits=2,
        scale=100.0,
    )

    def finish(self, j: float, f: float) -> dict[str, float]:
        """Percent, rounded to 2 decimals each."""
        return {name: percent(value) for name, value in jf_values(j, f).items()}


class DecafCoarse(Decaf):
    """DecAF's evaluator for coarse masks: only the frames that have a prediction count (Table 1)."""

    id: ClassVar[str] = "decaf-coarse"
    imitates: ClassVar[str] = "DecAF, coarse masks"
    policy: ClassVar[Policy] = replace(
        Decaf.policy, frames="predicted", missing_why="frame missing: not counted; any other error: 0"
    )


class Sa2vaMevis(MevisVisa):
    """Sa2VA on MeViS: VISA's arithmetic, predictions from one JSON of run lengths, none may be missing."""

    id: ClassVar[str] = "sa2va-mevis"
    imitates: ClassVar[str] = "Sa2VA on MeViS"
    citation: ClassVar[str] = "Yuan et al., 2025; magic-research/Sa2VA @ d01bf3f"
    policy: ClassVar[Policy] = Policy(missing_why="KeyError, crash", rounding="final", digits=2, scale=100.0)


class Sa2vaRefDavis(Sa2vaMevis):
    """Sa2VA on Ref-DAVIS17: as ``refdavis-visa``, predictions from one JSON, none may be missing."""

    id: ClassVar[str] = "sa2va-refdavis"
    imitates: ClassVar[str] = "Sa2VA on Ref-DAVIS17"


class ReasonVosVideoLisa(RvosExpression):
    """VideoLISA's ReasonVOS evaluator: frames are the PNG files of the truth's folder.

    Frames of the clip that nobody annotated don't count. What is missing is left out of the mean,
    which can raise it; the size is the truth's.
    """

    id: ClassVar[str] = "reasonvos"
    imitates: ClassVar[str] = "VideoLISA on ReasonVOS"
    citation: ClassVar[str] = "Bai et al., NeurIPS 2024; showlab/VideoLISA @ 146f2bc"
    policy: ClassVar[Policy] = Policy(
        frames="annotated", missing="drop", missing_clip="drop", missing_why="dropped"
    )


@dataclass
class LongRvos(RvosExpression):
    """Long-RVOS' evaluator: J and F over all frames, tIoU and vIoU of the frames in which a mask shows.

    With t frames in which truth and prediction both show something and u frames in which either does,
    tIoU = t / u and vIoU = (sum of J over the t frames) / u; both are 1 where u = 0. Everything is a mean
    over expressions, all types pooled. A frame without a prediction counts as empty; a video without any
    scores 0 in all; an expression without any, or with an unreadable mask, is refused (the tool's worker
    dies). The tool takes a video's size from the first predicted mask and dies where the truth has another.

    Attributes:
        size: `truth` = a prediction of another size is refused; `prediction` = sizes are those of the
            predicted PNGs, to which the truth is brought (nearest neighbour).
    """

    size: Literal["truth", "prediction"] = "truth"

    id: ClassVar[str] = "long-rvos"
    imitates: ClassVar[str] = "Long-RVOS"
    citation: ClassVar[str] = "CVPR 2026; iSEE-Laboratory/Long_RVOS @ 4620011"
    policy: ClassVar[Policy] = Policy(
        missing_clip="zero",
        missing_why="frame missing: empty; video missing: 0 in all; expression missing: refuses to score",
    )
    metrics: ClassVar[tuple[str, ...]] = (*JF, "tIoU", "vIoU")

    @property
    def side(self) -> int | None:
        """Any size may be right."""
        return ANY_SIZE if self.size == "prediction" else None

    def needs(self, clip: Clip) -> Sequence[int]:
        """None: what is missing is empty."""
        return ()

    def scored_frames(self, clip: Clip, item: Item) -> Sequence[int]:
        """All."""
        return range(len(clip))

    def notes(self, case: Case) -> dict[str, Any]:
        """How many frames had no prediction."""
        gaps = sum(item.track.rles.count(None) for item in case.items if item.track is not None)
        return {"counted_as_empty": {"frame without a prediction": gaps}} if gaps else {}

    def score_clip(self, case: Case) -> list[Score]:
        """The samples by the size of their masks, in the order of the clip."""
        sizes = {item.track.size if item.track else case.clip.size for item in case.items}
        found: dict[str, Score] = {}
        for size in sizes:
            items = [
                _filled(item, size) for item in case.items
                if size == (item.track.size if item.track else case.clip.size)
            ]  # fmt: skip
            book = case.book if size == case.clip.size else CountBook(size, len(case.clip))
            found |= {s.unit: s for s in super().score_clip(replace(case, items=items, book=book))}
        units = (sample_id(case.clip.id, item.expression.id) for item in case.items)
        return [found[unit] for unit in units if unit in found]

    def score_item(self, case: Case, item: Item, frames: Sequence[int], counts: NDArray[np.int64]) -> Score:
        """J and F, and what the frames in which something shows say."""
        score = super().score_item(case, item, frames, counts)
        shown, either = (counts[:, 1:3] > 0).all(axis=1), int((counts[:, 1:3] > 0).any(axis=1).sum())
        tiou = float(shown.sum()) / either if either else 1.0
        viou = float(jaccard(counts)[shown].sum()) / either if either else 1.0
        return replace(score, values={**score.values, "tIoU": tiou, "vIoU": viou})


def _filled(item: Item, size: tuple[int, int]) -> Item:
    """A sample with empty masks where frames have no prediction, and the truth at the prediction's size."""
    if item.track is None or item.prediction is None:
        return item
    empty = MaskTrack.empty(size, 1).rles[0]
    track = MaskTrack(size, tuple(empty if counts is None else counts for counts in item.track.rles))
    union = item.union
    if union.size != size:
        rles = (counts and resized_rle(counts, union.size, size) for counts in union.rles)
        union = MaskTrack(size, tuple(rles))
    return replace(item, prediction=replace(item.prediction, track=track), union=union)


@dataclass
class GroundMore(RvosExpression):
    """GroundMoRe's script: J and F of each question, mean over questions.

    The truth is empty outside of the question's action (the data set's `clock`, `action_end` and `fps` say
    when that is), and empty against empty scores 1. The authors' script predicts and scores 20 frames of a
    clip; their paper doesn't say so.

    Attributes:
        sampled: how many frames of a clip count, evenly spread (rounded down) from the first to the last;
            0 = all; the script has 20.
    """

    sampled: int = 0

    id: ClassVar[str] = "groundmore"
    imitates: ClassVar[str] = "GroundMoRe"
    citation: ClassVar[str] = "Deng et al., CVPR 2025; dengandong/GroundMoRe @ 290613e"
    policy: ClassVar[Policy] = Policy()
    unsettled: ClassVar[tuple[str, ...]] = ("sampled",)

    def __post_init__(self) -> None:
        if self.sampled < 0:
            what = f"{self.sampled} frames of a clip can't be scored."
            raise ConfigError(what, where="groundmore:sampled", allowed=["0 = all", "1, 2, 3 …"])

    def needs(self, clip: Clip) -> Sequence[int]:
        """The frames that count, one of them more than once where a clip has fewer."""
        if not self.sampled:
            return range(len(clip))
        return [int(t) for t in np.linspace(0, len(clip) - 1, self.sampled, dtype=int)]


def percent(fraction: float) -> float:
    """A fraction in percent, rounded to 2 decimals as numpy rounds."""
    return float(np.round(np.float64(100 * fraction), 2))

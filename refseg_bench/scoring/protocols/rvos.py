"""Video protocols whose unit is the expression: each sentence alone, no matching, no void."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.scoring.boundary import boundary_f, jaccard
from refseg_bench.scoring.protocols.base import Case, Item, Policy, ScoringProtocol
from refseg_bench.types import Score, sample_id

JF = ("J&F", "J", "F")


def jf_values(j: float, f: float) -> dict[str, float]:
    """The three values every video protocol reports of a unit."""
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def mean_of(values: NDArray[np.float64]) -> float:
    """Mean over frames; NaN where no frame counts."""
    return float(values.mean()) if len(values) else float("nan")


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

    def finish(self, j: float, f: float) -> dict[str, float]:
        """A unit's values from its mean J and F (fractions)."""
        return jf_values(j, f)


@dataclass
class ExpressionStrict(RvosExpression):
    """``rvos-expr`` that refuses incomplete work instead of dropping it."""

    id: ClassVar[str] = "expression"
    imitates: ClassVar[str] = "none (harness default)"
    policy: ClassVar[Policy] = Policy()


@dataclass
class MevisVideoLisa(RvosExpression):
    """VideoLISA's copy of the MeViS evaluator: a video without predictions is dropped, not zero."""

    id: ClassVar[str] = "mevis-vlisa"
    imitates: ClassVar[str] = "VideoLISA's copy of MeViS"
    citation: ClassVar[str] = "Bai et al., NeurIPS 2024; showlab/VideoLISA @ 146f2bc"
    policy: ClassVar[Policy] = Policy(
        missing="drop", missing_clip="drop", missing_why="video, expression or frame missing: dropped"
    )


@dataclass
class MevisVisa(RvosExpression):
    """VISA's copy of the MeViS evaluator: in percent, printed with 2 decimals after averaging."""

    id: ClassVar[str] = "mevis-visa"
    imitates: ClassVar[str] = "VISA's copy of MeViS"
    citation: ClassVar[str] = "Yan et al., ECCV 2024; cilinyan/VISA @ ec158fd"
    policy: ClassVar[Policy] = replace(RvosExpression.policy, rounding="final", digits=2, scale=100.0)

    def finish(self, j: float, f: float) -> dict[str, float]:
        """Percent, unrounded."""
        return jf_values(100 * j, 100 * f)


@dataclass
class RefDavisVisa(MevisVisa):
    """VISA's evaluator on Ref-DAVIS17: each expression alone, no void, no matching, all frames.

    Not comparable with ``refdavis-anno``. The four annotators' expressions are pooled.
    """

    id: ClassVar[str] = "refdavis-visa"
    imitates: ClassVar[str] = "VISA on Ref-DAVIS17"


@dataclass
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


@dataclass
class DecafCoarse(Decaf):
    """DecAF's evaluator for coarse masks: only the frames that have a prediction count (Table 1)."""

    id: ClassVar[str] = "decaf-coarse"
    imitates: ClassVar[str] = "DecAF, coarse masks"
    policy: ClassVar[Policy] = replace(
        Decaf.policy, frames="predicted", missing_why="frame missing: not counted; any other error: 0"
    )


@dataclass
class Sa2vaMevis(MevisVisa):
    """Sa2VA on MeViS: VISA's arithmetic, predictions from one JSON of run lengths, none may be missing."""

    id: ClassVar[str] = "sa2va-mevis"
    imitates: ClassVar[str] = "Sa2VA on MeViS"
    citation: ClassVar[str] = "Yuan et al., 2025; magic-research/Sa2VA @ d01bf3f"
    policy: ClassVar[Policy] = Policy(missing_why="KeyError, crash", rounding="final", digits=2, scale=100.0)


@dataclass
class Sa2vaRefDavis(Sa2vaMevis):
    """Sa2VA on Ref-DAVIS17: as ``refdavis-visa``, predictions from one JSON, none may be missing."""

    id: ClassVar[str] = "sa2va-refdavis"
    imitates: ClassVar[str] = "Sa2VA on Ref-DAVIS17"


@dataclass
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


def percent(fraction: float) -> float:
    """A fraction in percent, rounded to 2 decimals as numpy rounds."""
    return float(np.round(np.float64(100 * fraction), 2))

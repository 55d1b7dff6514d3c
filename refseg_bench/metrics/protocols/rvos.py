"""Video protocols whose unit is the expression: each sentence alone, no matching, no void."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.metrics.boundary import boundary_f, jaccard
from refseg_bench.metrics.protocols.base import Case, Item, Policy, ScoringProtocol, present
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
    aliases: ClassVar[tuple[str, ...]] = ("mevis", "ytvos")
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
        zero = dict.fromkeys(self.metrics, 0.0)
        tickets: list[tuple[Item, Sequence[int], int] | Score] = []
        for item, frames, made in present(self, case, zero):
            if frames is None or item.prediction is None or item.prediction.track is None:
                if made is not None:
                    tickets.append(made)
                continue
            tickets.append((item, frames, case.book.enter(item.target.union(), item.prediction.track)))
        scores: list[Score] = []
        for entry in tickets:
            if isinstance(entry, Score):
                scores.append(entry)
                continue
            item, frames, ticket = entry
            counts = case.book.counts(ticket)[list(frames)]
            scores.append(self.score_item(case, item, frames, counts))
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

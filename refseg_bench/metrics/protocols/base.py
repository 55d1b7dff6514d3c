"""What a protocol is: a named, versioned rule set that turns predictions and targets into numbers.

A protocol is a component (a dataclass with knobs). It scores one clip at a time, so that memory
stays flat and clips spread over processes, and aggregates columns of values, so that a million
units aggregate in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import Clip, Expression, Prediction, Score, Status, Target


@dataclass(frozen=True)
class Item:
    """One sample as a protocol sees it.

    Attributes:
        expression: the expression.
        target: the truth.
        prediction: the answer; ``None`` when missing or failed (see ``status``).
        status: ``ok``, ``failed`` (the method raised) or ``missing`` (never run).
    """

    expression: Expression
    target: Target
    prediction: Prediction | None
    status: Status


class ScoringProtocol(Protocol):
    """The interface of every protocol class."""

    id: ClassVar[str]
    version: ClassVar[int]
    #: 1.0 where the tool prints fractions, 100.0 where percent.
    scale: ClassVar[float]
    #: what a missing or failed sample does: refuse, count as zero, or leave out.
    missing: ClassVar[str]
    #: metric names, the headline first.
    metrics: ClassVar[tuple[str, ...]]

    def score_clip(self, clip: Clip, items: Sequence[Item]) -> list[Score]:
        """Score all samples of one clip. Pure: no file is written, nothing is remembered."""

    def aggregate(
        self, values: Mapping[str, NDArray[np.float64]], attrs: Mapping[str, Sequence[Any]]
    ) -> dict[str, float]:
        """Combine the columns of per-unit values into the protocol's metrics, in list order."""

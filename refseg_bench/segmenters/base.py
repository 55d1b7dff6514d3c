"""The promptable-segmenter interface: open a clip once, prompt it as often as you like.

A session belongs to one clip. It computes the image features of a frame at most once, whatever
the number of expressions, objects and passes. Positions are relative: x and y in [0, 1] of the
frame's width and height, measured at pixel centres, so that no method has to know a model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import BoolHW, Clip

Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What points at one object on one frame.

    Attributes:
        points: (x, y) pairs in [0, 1].
        labels: 1 = on the object, 0 = off it; one per point.
        box: (x0, y0, x1, y1) in [0, 1].
        mask: boolean mask at the clip's size.
        text: a concept in words; only segmenters that say so accept it.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: BoolHW | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """The masks a segmenter offers for one prompt, in the model's own order.

    Attributes:
        masks_KHW: boolean masks at the clip's size.
        ious_K: the model's predicted IoU of each, float32.
    """

    masks_KHW: NDArray[np.bool_]
    ious_K: NDArray[np.float32]

    def best(self) -> tuple[BoolHW, float]:
        """The candidate with the highest predicted IoU (the first on ties)."""
        index = int(np.argmax(self.ious_K))
        return self.masks_KHW[index], float(self.ious_K[index])


@dataclass
class SegmenterCounters:
    """What a session has done so far; goes into the run record."""

    frame_encodings: int = 0
    decoder_calls: int = 0
    propagated_frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class SegmenterSession(Protocol):
    """A clip opened by a segmenter."""

    clip: Clip
    counters: SegmenterCounters

    def segment(self, frame: int, prompts: Sequence[Prompt], *, multimask: bool = True) -> list[Candidates]:
        """Mask candidates on one frame, one :class:`Candidates` per prompt, computed in one batch.

        Args:
            frame: index into the clip's frames.
            prompts: one per object; objects don't see each other.
            multimask: ask for several candidates per prompt where the model offers them.
        """

    def propagate(
        self,
        frame: int,
        prompts: Sequence[Prompt],
        *,
        frames: Sequence[int] | None = None,
        direction: Direction = "both",
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Track the prompted objects through the clip, starting from nothing but the prompts.

        Args:
            frame: index of the prompted frame; must be among ``frames``.
            prompts: one per object.
            frames: ascending subset of the clip to treat as the video (all frames by default).
            direction: ``forward`` yields ``frame`` and what follows; ``backward`` yields ``frame`` and
                what precedes, descending; ``both`` is forward, then *without a reset* what precedes.

        Yields:
            (frame index, boolean masks (n_objects, H, W)). Each frame once.
        """

    def close(self) -> None:
        """Free what the session holds."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Segmenter(Protocol):
    """Opens clips. A component: its fields are knobs, its model loads at the first ``open``."""

    def open(self, clip: Clip) -> SegmenterSession:
        """Start a session on a clip."""

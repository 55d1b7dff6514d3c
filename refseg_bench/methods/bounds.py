"""Bounds: answers that need no grounding, to read every other number against.

``oracle`` and ``oracle_point`` look at the truth, which no other method can: a class that says
``sees_targets = True`` has its ``targets`` set to the dataset's ``target`` before the run. The others
are floors: what a protocol pays for an empty mask, the whole frame, the centre, a random click. What is
a bound says so by ``bound = True`` on its class; the run record keeps it for reports.
"""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.methods.base import Method, PerExpression, click, peak, track_prompts
from refseg_bench.segmenters.base import Segmenter
from refseg_bench.types import (
    Clip,
    Expression,
    Grounding,
    HeatPoint,
    MaskTrack,
    Target,
    encode_rle,
    sample_id,
)


def innermost(track: MaskTrack) -> HeatPoint | None:
    """The object's pixel farthest from its border, on the first frame where it is largest.

    The frame's border counts as the object's. ``None`` if it never shows.
    """
    from scipy.ndimage import distance_transform_edt

    areas = [area or 0 for area in track.area()]
    frame = int(np.argmax(areas))
    mask_HW = track.mask(frame)
    if areas[frame] == 0 or mask_HW is None:
        return None
    return peak(distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1], frame)


class _SeesTargets(PerExpression):
    """The lookup into the truth, handed in by the run loop."""

    sees_targets: ClassVar[bool] = True
    bound: ClassVar[bool] = True

    def truth(self, clip: Clip, expression: Expression) -> Target:
        """The sample's target.

        Raises:
            ConfigError: nobody set ``targets``.
            DataError: the dataset keeps this target hidden.
        """
        if self.targets is None:
            raise ConfigError(
                f"{type(self).__name__} has no targets.", hint="Set its `targets` to the dataset's `target`."
            )
        target = self.targets(clip, expression)
        if target is None:
            raise DataError(
                f"{type(self).__name__} needs the masks of '{sample_id(clip.id, expression.id)}', "
                "which are hidden on a server.",
                hint="Choose a split with public masks; `refseg data list` shows them.",
            )
        return target


class Oracle(_SeesTargets):
    """The truth itself: the upper bound of every protocol.

    Frames without annotation are answered as absent, since a prediction covers every frame.
    """

    knows: ClassVar[str] = "the truth"

    def ground(self, clip: Clip, expression: Expression) -> Grounding:
        """The union of the sample's objects, and a point inside it."""
        target = self.truth(clip, expression)
        union = target.union()
        blank = encode_rle(np.zeros(clip.size, np.uint8))
        track = MaskTrack(clip.size, tuple(blank if rle is None else rle for rle in union.rles))
        point = innermost(track)
        return Grounding(expression, track, point=point, no_target=point is None)


@dataclass
class OraclePoint(_SeesTargets):
    """The best click there is, through the segmenter: what is lost after the pointing.

    Each target object is prompted with its innermost pixel on the frame where it is largest.
    """

    knows: ClassVar[str] = "one click on the truth, through the segmenter"
    segmenter: Segmenter

    def ground(self, clip: Clip, expression: Expression) -> Grounding:
        """Union of the objects' tracks."""
        target = self.truth(clip, expression)
        points = [point for track in target.objects if (point := innermost(track)) is not None]
        started = time.perf_counter()
        tracks: list[MaskTrack] = []
        with self.segmenter.open(clip) as session:
            for frame in sorted({point.frame for point in points}):
                clicks = [click(point) for point in points if point.frame == frame]
                tracks.append(track_prompts(session, frame, clicks))
        return Grounding(
            expression,
            MaskTrack.union(tracks, clip.size, len(clip)),
            point=max(points, key=lambda point: point.value, default=None),
            no_target=not points,
            details={"points": [[point.frame, point.x, point.y] for point in points]},
            seconds={"segment": time.perf_counter() - started},
        )


class Empty(PerExpression):
    """Always "absent"."""

    knows: ClassVar[str] = "nothing: always absent"
    bound: ClassVar[bool] = True

    def ground(self, clip: Clip, expression: Expression) -> Grounding:
        """An empty mask in every frame."""
        return Grounding(expression, MaskTrack.empty(clip.size, len(clip)), no_target=True)


class FullFrame(PerExpression):
    """Always "everything"."""

    knows: ClassVar[str] = "nothing: always every pixel"
    bound: ClassVar[bool] = True

    def ground(self, clip: Clip, expression: Expression) -> Grounding:
        """Every pixel of every frame."""
        full = encode_rle(np.ones(clip.size, np.uint8))
        return Grounding(expression, MaskTrack(clip.size, (full,) * len(clip)), no_target=False)


@dataclass
class _OnePoint(Method):
    """One click that doesn't look at the picture, through the segmenter."""

    bound: ClassVar[bool] = True

    segmenter: Segmenter
    prompt_frame: Literal["first", "middle"] = "first"

    @abstractmethod
    def place(self, clip: Clip, expression: Expression) -> tuple[float, float]:
        """Where to click: (x, y) in [0, 1]."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """Click once per expression; equal clicks are tracked once."""
        frame = 0 if self.prompt_frame == "first" else len(clip) // 2
        tracks: dict[tuple[float, float], MaskTrack] = {}
        with self.segmenter.open(clip) as session:
            for expression in expressions:
                started = time.perf_counter()
                x, y = self.place(clip, expression)
                point = HeatPoint(frame, y, x)
                if (x, y) not in tracks:
                    tracks[x, y] = track_prompts(session, frame, [click(point)])
                seconds = {"segment": time.perf_counter() - started}
                yield Grounding(expression, tracks[x, y], point=point, seconds=seconds)


class CentrePoint(_OnePoint):
    """Click the middle of the frame."""

    knows: ClassVar[str] = "nothing: a click in the middle"

    def place(self, clip: Clip, expression: Expression) -> tuple[float, float]:
        """Always the centre."""
        return 0.5, 0.5


@dataclass
class RandomPoint(_OnePoint):
    """Click anywhere, uniformly; the click depends on the seed and the sample's id alone.

    So neither the order of the samples nor the number of shards changes it.
    """

    knows: ClassVar[str] = "nothing: a click anywhere"
    seed: int = 0  #: another seed, another set of clicks

    def place(self, clip: Clip, expression: Expression) -> tuple[float, float]:
        """Two uniform numbers from a hash of the seed and the sample id."""
        key = f"{self.seed}:{sample_id(clip.id, expression.id)}".encode()
        words = np.frombuffer(hashlib.blake2b(key, digest_size=16).digest(), dtype="<u8")
        # 53 bits: the most a float64 holds without rounding up to 1.
        x, y = (int(word >> np.uint64(11)) / 2**53 for word in words)
        return x, y

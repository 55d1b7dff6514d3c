"""Segmentation by one threshold: no model, no prompt needed; the simplest control there is.

A heat map is cut by Otsu's threshold (1979). Without one the frame's brightness is: its two classes'
connected parts are the regions a point, a box or a mask chooses from, and a tracked object is made of
the parts that overlap it most in the frame before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench.segmenters import classic
from refseg_bench.segmenters.base import (
    Candidates,
    ContextSession,
    Prompt,
    PromptKind,
    SegmenterCounters,
    TrackingDirection,
    check_frames,
    check_prompts,
)
from refseg_bench.types import BoolHW, Clip

ACCEPTED: tuple[PromptKind, ...] = ("points", "box", "mask", "heat")


@dataclass
class Otsu:
    """Thresholds a heat map, or a frame's brightness.

    Attributes:
        blur: Gaussian smoothing of the brightness before the cut, in pixels (0 = none).
    """

    blur: float = 1.0

    def open(self, clip: Clip) -> OtsuSession:
        """Start a session; frames are read when first needed."""
        return OtsuSession(clip, self)


def otsu_cut(grey_HW: NDArray[np.uint8]) -> tuple[BoolHW, float]:
    """Foreground (strictly above Otsu's threshold) and how well it separates.

    Returns:
        The mask, and the share of the variance that lies between the two classes (Otsu's eta), 0 to 1.
    """
    level, _ = cv2.threshold(grey_HW, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = np.asarray(grey_HW > level)
    share, total = float(mask.mean()), float(grey_HW.var())
    if total == 0 or share in (0.0, 1.0):
        return mask, 0.0
    gap = float(grey_HW[mask].mean()) - float(grey_HW[~mask].mean())
    return mask, min(share * (1 - share) * gap**2 / total, 1.0)


def cut_heat(heat_hw: NDArray[np.floating], size: tuple[int, int]) -> tuple[BoolHW, float]:
    """Otsu's cut of a map in [0, 1] after bilinear upsampling and truncation to 8 bits."""
    full = cv2.resize(heat_hw.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return otsu_cut((np.clip(full, 0, 1) * 255).astype(np.uint8))


@dataclass(eq=False)
class OtsuSession(ContextSession):
    """One clip; every frame is cut at most once."""

    clip: Clip
    knobs: Otsu
    counters: SegmenterCounters = field(default_factory=SegmenterCounters)
    _cuts: dict[int, tuple[BoolHW, float]] = field(default_factory=dict, init=False)

    def cut(self, frame: int) -> tuple[BoolHW, float]:
        """The bright class of a frame, and how well it separates."""
        if frame not in self._cuts:
            started = time.perf_counter()
            grey = cv2.cvtColor(self.clip.load([frame])[0], cv2.COLOR_RGB2GRAY)
            if self.knobs.blur > 0:
                grey = cv2.GaussianBlur(grey, (0, 0), self.knobs.blur)
            self._cuts[frame] = otsu_cut(np.asarray(grey, np.uint8))
            self.counters.frame_encodings += 1
            spent = self.counters.seconds
            spent["encode"] = spent.get("encode", 0.0) + time.perf_counter() - started
        return self._cuts[frame]

    def segment(self, frame: int, prompts: Sequence[Prompt], *, multimask: bool = True) -> list[Candidates]:
        """Candidates per prompt: the part that is pointed at, then the whole class it belongs to.

        A heat map has one candidate. The predicted IoU is Otsu's separability of the cut, halved for
        the whole class, since a class is rarely one object.
        """
        check_prompts(prompts, self.clip.size, ACCEPTED, "otsu")
        found = [self._candidates(frame, prompt) for prompt in prompts]
        count = None if multimask else 1
        return [
            Candidates(np.stack(masks[:count]), np.array(ious[:count], np.float32)) for masks, ious in found
        ]

    def _candidates(self, frame: int, prompt: Prompt) -> tuple[list[BoolHW], list[float]]:
        self.counters.decoder_calls += 1
        if prompt.heat is not None:
            mask, separates = cut_heat(prompt.heat, self.clip.size)
            return [mask], [separates]
        bright, separates = self.cut(frame)
        if prompt.mask is not None:
            part = self._follow(frame, prompt.mask)
            side = bright if (bright & part).any() else ~bright
            return [part, side], [separates, separates / 2]
        if prompt.box is not None:
            return self._boxed(prompt.box, bright), [separates, separates / 2]
        height, width = bright.shape
        pixels = [
            (min(int(y * height), height - 1), min(int(x * width), width - 1)) for x, y in prompt.points
        ]
        on = [pixel for pixel, label in zip(pixels, prompt.labels, strict=True) if label]
        side = bright if sum(bool(bright[pixel]) for pixel in on) * 2 >= len(on) else ~bright
        parts = [part for part in classic.components(side) if any(part[pixel] for pixel in on)]
        blank = np.zeros(bright.shape, bool)
        return [np.asarray(np.logical_or.reduce([blank, *parts])), side], [separates, separates / 2]

    def _boxed(self, box: tuple[float, float, float, float], bright: BoolHW) -> list[BoolHW]:
        """The class that keeps away from the box's outline, inside the box, and everywhere."""
        (height, width), (x0, y0, x1, y1) = bright.shape, box
        top, bottom = int(y0 * height), max(round(y1 * height), int(y0 * height) + 1)
        left, right = int(x0 * width), max(round(x1 * width), int(x0 * width) + 1)
        crop = bright[top:bottom, left:right]
        outline = np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]])
        side = bright if outline.mean() <= 0.5 else ~bright
        inside = np.zeros_like(bright)
        inside[top:bottom, left:right] = side[top:bottom, left:right]
        return [inside, side]

    def propagate(
        self,
        frame: int,
        prompts: Sequence[Prompt],
        *,
        frames: Sequence[int] | None = None,
        direction: TrackingDirection = "both",
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Follow each prompted region by overlap; a mask prompt is taken as the truth of its frame."""
        check_prompts(prompts, self.clip.size, ACCEPTED, "otsu")
        order = check_frames(self.clip, frame, frames)
        at = order.index(frame)
        begun = [p.mask if p.mask is not None else self._candidates(frame, p)[0][0] for p in prompts]
        if direction != "backward":
            yield from self._walk(order[at:], begun)
        if direction != "forward":
            backward = self._walk(order[at::-1], begun)
            if direction == "both":
                next(backward)
            yield from backward

    def _walk(self, order: Sequence[int], begun: Sequence[BoolHW]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        masks = list(begun)
        for step, index in enumerate(order):
            if step:
                masks = [self._follow(index, mask) for mask in masks]
                self.counters.propagated_frames += 1
            yield index, np.stack(masks)

    def _follow(self, frame: int, mask: BoolHW) -> BoolHW:
        """The part of a frame with the highest IoU with a mask; nothing where there is nothing."""
        if not mask.any():
            return mask
        bright, _ = self.cut(frame)
        parts = classic.components(bright) + classic.components(~bright)
        return max(parts, key=lambda part: classic.mask_iou(part, mask))

    def close(self) -> None:
        """Forget the frames' cuts."""
        self._cuts.clear()

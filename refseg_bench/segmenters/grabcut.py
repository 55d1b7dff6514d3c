"""A promptable segmenter without weights: GrabCut on a frame, optical flow through the clip.

A click grows a region of like colour at several tolerances; GrabCut (Rother et al. 2004) moves each
region's edge to where the colours change. Through a clip the mask is carried by dense optical flow,
its edge cut again on every frame. An object whose colours vanish is absent, and is looked for by its
colours until it comes back. It is a floor, not a rival of learned segmenters: it sees colours only.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench import env
from refseg_bench.config.schema import refuse_outside
from refseg_bench.errors import ConfigError
from refseg_bench.segmenters import classic
from refseg_bench.segmenters.base import (
    Candidates,
    Prompt,
    Segmenter,
    SegmenterSession,
    TrackedMasks,
    TrackingDirection,
)
from refseg_bench.types import BoolHW, Clip

#: Cuts a session remembers, 10 KB each at the default working size.
_MOST_CUTS = 4096


@dataclass
class GrabCut(Segmenter):
    """Segments by colour, edges and optical flow."""

    working_size: int = 320  #: longest side, in pixels, frames are shrunk to; masks come back at full size
    #: Blur (pixels at working size) before a click's region is grown, one per candidate.
    smoothing: tuple[float, ...] = (1.0, 1.0, 4.0)
    #: Largest Lab distance (8-bit units) from the clicked colour, one per candidate.
    tolerances: tuple[float, ...] = (14.0, 32.0, 40.0)
    iterations: int = 3  #: GrabCut rounds on a prompted frame (one on every tracked frame)
    margin: float = 0.3  #: how far beyond its region an object may reach, as a share of the region's extent
    band: int = 4  #: pixels (working size) on either side of a tracked edge that are cut again
    lost_area: float = 0.12  #: below this share of its usual area a tracked object is absent
    found_area: float = 0.35  #: an absent object is back where its colours fill this share of its usual area
    likely: float = 0.5  #: share of object over object-plus-background colours that a pixel of it must have
    #: Larger areas are cut at a coarser scale: GrabCut's time grows faster than its area.
    cut_pixels: int = 16000
    seed: int = 0  #: GrabCut starts its colour models from a random clustering; this fixes it

    def __post_init__(self) -> None:
        if len(self.smoothing) != len(self.tolerances) or not self.tolerances:
            raise ConfigError(
                f"grabcut has {len(self.smoothing)} smoothing and {len(self.tolerances)} tolerances values.",
                hint="Give as many of one as of the other, at least one: a pair per candidate.",
            )
        refuse_outside(self, 16, math.inf, "working_size")
        refuse_outside(self, 1, math.inf, "iterations", "cut_pixels")
        refuse_outside(self, 0, math.inf, "margin", "band")
        refuse_outside(self, 0, 1, "lost_area", "found_area", "likely")

    def open(self, clip: Clip) -> _GrabCutSession:
        """Start a session; frames are read when first needed."""
        return _GrabCutSession(clip, self)


@dataclass(eq=False)
class _Track:
    """What is remembered of a tracked object: its mask, its colours against the rest, its usual area."""

    mask: BoolHW
    odds: classic.Float
    usual: int


class _GrabCutSession(SegmenterSession):
    """One clip; every frame is read, every flow computed and (within limits) every cut made once.

    Expressions of a clip mean the same few objects: their clicks and tracks repeat each other.
    """

    name = "grabcut"

    def __init__(self, clip: Clip, options: GrabCut) -> None:
        super().__init__(clip)
        self.options = options
        self.shape = classic.working_shape(clip.size, options.working_size)
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._flows: dict[tuple[int, int], NDArray[np.float16]] = {}
        self._smooth: dict[tuple[int, float], NDArray[np.float32]] = {}
        self._codes: dict[int, NDArray[np.int32]] = {}
        self._cuts = OrderedDict[tuple[int, int, int, bytes], NDArray[np.uint8]]()

    # ── features, once per frame ─────────────────────────────────────────────

    def frame(self, index: int) -> NDArray[np.uint8]:
        """A frame at working size, BGR."""
        if index not in self._frames:
            with self.counters.timed("encode"):
                rgb = self.clip.load([index])[0]
                small = cv2.resize(rgb, self.shape[::-1], interpolation=cv2.INTER_AREA)
                self._frames[index] = np.ascontiguousarray(small[..., ::-1])
            self.counters.frame_encodings += 1
        return self._frames[index]

    def flow(self, start: int, end: int) -> NDArray[np.float16]:
        """Dense flow between two frames at working size (half precision: a tenth of a pixel is enough)."""
        if (start, end) not in self._flows:
            pair = (cv2.cvtColor(self.frame(index), cv2.COLOR_BGR2GRAY) for index in (start, end))
            with self.counters.timed("flow"):
                self._flows[start, end] = classic.dense_flow(*pair).astype(np.float16)
        return self._flows[start, end]

    def smooth(self, index: int, blur: float) -> NDArray[np.float32]:
        """A blurred frame in Lab (8-bit units), kept until another frame is asked for."""
        if (index, blur) not in self._smooth:
            for key in [key for key in self._smooth if key[0] != index]:
                del self._smooth[key]
            lab = cv2.cvtColor(self.frame(index), cv2.COLOR_BGR2LAB)
            self._smooth[index, blur] = cv2.GaussianBlur(lab, (0, 0), blur).astype(np.float32)
        return self._smooth[index, blur]

    def codes(self, index: int) -> NDArray[np.int32]:
        """The colour bins of a frame (:func:`classic.lab_codes`), kept until another frame is asked for."""
        if index not in self._codes:
            self._codes.clear()
            self._codes[index] = classic.lab_codes(self.frame(index))
        return self._codes[index]

    def cut(self, index: int, trimap: NDArray[np.uint8], pad: int, rounds: int) -> BoolHW:
        """:func:`_grabcut` of a frame, from memory if it was just made."""
        key = (index, pad, rounds, hashlib.blake2b(trimap.tobytes(), digest_size=16).digest())
        if key in self._cuts:
            self._cuts.move_to_end(key)
        else:
            found = _grabcut(self.frame(index), trimap, pad, rounds, self.options)
            self._cuts[key] = np.packbits(found)
            if len(self._cuts) > _MOST_CUTS:
                self._cuts.popitem(last=False)
        return np.unpackbits(self._cuts[key], count=trimap.size).view(bool).reshape(trimap.shape)

    # ── one frame ────────────────────────────────────────────────────────────

    def _segment(self, frame: int, prompts: Sequence[Prompt], multimask: bool) -> list[Candidates]:
        """A mask prompt is answered by the mask itself and its re-cut edge.

        The predicted IoU is an estimate from the picture: how much the cut agrees with the region it
        started from, times how little the object's colours occur just outside it, times the share of
        its outline that is not the frame's border.
        """
        found = [self._candidates(frame, prompt) for prompt in prompts]
        if not multimask:
            found = [[max(pairs, key=lambda pair: pair[1])] for pairs in found]
        return [
            Candidates(
                np.stack([classic.resize_mask(mask, self.clip.size) for mask, _ in pairs]),
                np.array([iou for _, iou in pairs], np.float32),
            )
            for pairs in found
        ]

    def _candidates(self, frame: int, prompt: Prompt) -> list[tuple[BoolHW, float]]:
        """(mask at working size, predicted IoU) pairs."""
        self.counters.decoder_calls += 1
        starts: list[BoolHW] = []
        if prompt.mask is not None:
            starts.append(classic.resize_mask(prompt.mask, self.shape))
        elif prompt.box is not None:
            starts.append(_box_mask(prompt.box, self.shape))
        else:
            for blur, tolerance in zip(self.options.smoothing, self.options.tolerances, strict=True):
                starts.append(_grow(self.smooth(frame, blur), prompt, tolerance))
        out: list[tuple[BoolHW, float]] = []
        codes = self.codes(frame)
        with self.counters.timed("cut"):
            for start in starts:
                refined = self._cut(frame, start, prompt)
                out.append((refined, _believed_iou(codes, start, refined)))
        if prompt.mask is not None:
            out.insert(0, (starts[0], _believed_iou(codes, out[0][0], starts[0])))
        return out

    def _cut(self, frame: int, start: BoolHW, prompt: Prompt) -> BoolHW:
        """GrabCut from a region: its core is object, what is far outside is background."""
        if not start.any():
            return start
        top, left, bottom, right = classic.bounding_box(start)
        reach = max(round(self.options.margin * min(bottom - top, right - left)), 2)
        inner = max(reach // 2, 1)
        outer = 0 if prompt.box is not None else reach  # a box promises that nothing reaches beyond it
        near = classic.dilate(start, outer) if outer else start
        trimap = np.where(start, cv2.GC_PR_FGD, np.where(near, cv2.GC_PR_BGD, cv2.GC_BGD)).astype(np.uint8)
        if prompt.box is None:
            trimap[classic.erode(start, inner)] = cv2.GC_FGD
        for (row, column), label in _pixels(prompt, start.shape):
            trimap[row, column] = cv2.GC_FGD if label else cv2.GC_BGD
        refined = self.cut(frame, trimap, reach + 4, self.options.iterations)
        return _keep_clicked(refined, start, prompt)

    # ── through the clip ─────────────────────────────────────────────────────

    def _propagate(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        """Each object is tracked on its own. A mask prompt is taken as the truth of its frame."""
        at = video.index(frame)
        begun = [self._begin(frame, prompt) for prompt in prompts]
        if direction != "backward":
            yield from self._walk(video[at:], begun)
        if direction != "forward":
            # Tracking here keeps no memory, so both directions start from the prompted frame.
            backward = self._walk(video[at::-1], begun)
            if direction == "both":
                next(backward)
            yield from backward

    def _begin(self, frame: int, prompt: Prompt) -> _Track:
        if prompt.mask is not None:
            mask = classic.resize_mask(prompt.mask, self.shape)
        else:
            mask = max(self._candidates(frame, prompt), key=lambda pair: pair[1])[0]
        codes = self.codes(frame)
        inside, outside = classic.colour_model(codes, mask), classic.colour_model(codes, ~mask)
        # A bin seen nowhere belongs to the background: half a pixel's worth of doubt.
        doubt = 0.5 / mask.size
        return _Track(mask, inside / (inside + outside + doubt), int(mask.sum()))

    def _walk(self, order: Sequence[int], begun: Sequence[_Track]) -> TrackedMasks:
        tracks = [replace(track) for track in begun]
        for step, index in enumerate(order):
            if step:
                previous = order[step - 1]
                for track in tracks:
                    track.mask = self._step(track, previous, index)
                self.counters.propagated_frames += 1
            yield index, np.stack([classic.resize_mask(track.mask, self.clip.size) for track in tracks])

    def _step(self, track: _Track, previous: int, index: int) -> BoolHW:
        """The object's mask on the next frame."""
        if track.usual == 0:
            return track.mask
        odds = cv2.GaussianBlur(track.odds[self.codes(index)], (0, 0), 2.0)
        if not track.mask.any():
            return self._search(track, odds)
        warped = classic.warp_mask(track.mask, self.flow(index, previous))
        with self.counters.timed("cut"):
            cut = self._recut(index, warped, odds)
        return cut if cut.sum() >= self.options.lost_area * track.usual else np.zeros_like(cut)

    def _recut(self, index: int, warped: BoolHW, odds: classic.Float) -> BoolHW:
        core = classic.erode(warped, self.options.band)
        near = classic.dilate(warped, self.options.band)
        likely = odds >= self.options.likely
        if not (warped & likely).any():
            return np.zeros_like(warped)
        trimap = np.where(near, np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD), cv2.GC_BGD).astype(np.uint8)
        trimap[core & likely] = cv2.GC_FGD
        return self.cut(index, trimap, 2 * self.options.band, 1)

    def _search(self, track: _Track, odds: classic.Float) -> BoolHW:
        """The likeliest region of the object's colours and about its size, or nothing."""
        wanted = max(round(self.options.found_area * track.usual), 1)
        regions = classic.components(np.asarray(odds >= self.options.likely), wanted)
        regions = [region for region in regions if region.sum() * self.options.found_area <= track.usual]
        best = max(regions, key=lambda region: float(odds[region].mean()), default=None)
        return np.zeros(self.shape, bool) if best is None else classic.fill_holes(best)

    def close(self) -> None:
        """Forget frames, flows and cuts."""
        for kept in (self._frames, self._flows, self._smooth, self._codes, self._cuts):
            kept.clear()


# ── pure parts ───────────────────────────────────────────────────────────────


def _pixels(prompt: Prompt, shape: tuple[int, ...]) -> list[tuple[tuple[int, int], int]]:
    """The prompt's points as ((row, column), label) at working size."""
    labels = prompt.labels or (1,) * len(prompt.points)
    return [
        ((min(int(y * shape[0]), shape[0] - 1), min(int(x * shape[1]), shape[1] - 1)), label)
        for (x, y), label in zip(prompt.points, labels, strict=True)
    ]


def _box_mask(box: tuple[float, float, float, float], shape: tuple[int, int]) -> BoolHW:
    (x0, y0, x1, y1), (height, width) = box, shape
    mask = np.zeros(shape, bool)
    mask[int(y0 * height) : max(round(y1 * height), 1), int(x0 * width) : max(round(x1 * width), 1)] = True
    return mask


def _grow(smooth: NDArray[np.float32], prompt: Prompt, tolerance: float) -> BoolHW:
    """The connected region around the positive points whose smoothed colour is like theirs."""
    shape = smooth.shape[:2]
    on, off = np.full(shape, np.inf, np.float32), np.full(shape, np.inf, np.float32)
    clicked = np.zeros(shape, bool)
    for (row, column), label in _pixels(prompt, shape):
        distance = np.linalg.norm(smooth - smooth[row, column], axis=-1)
        target = on if label else off
        np.minimum(target, distance, out=target)
        clicked[row, column] |= bool(label)
    like = ((on <= tolerance) & (on <= off)) | clicked
    return classic.fill_holes(classic.parts_at(like, clicked)) if clicked.any() else clicked


def _grabcut(
    bgr: NDArray[np.uint8], trimap: NDArray[np.uint8], pad: int, rounds: int, options: GrabCut
) -> BoolHW:
    """GrabCut within the padded box of what may be object; without a choice the trimap is the answer."""
    possible = trimap != cv2.GC_BGD
    out = np.zeros(trimap.shape, bool)
    if not possible.any():
        return out
    top, left, bottom, right = classic.bounding_box(possible)
    view = np.s_[max(top - pad, 0) : bottom + pad, max(left - pad, 0) : right + pad]
    part, picture = np.ascontiguousarray(trimap[view]), np.ascontiguousarray(bgr[view])
    sure, never = part == cv2.GC_FGD, part == cv2.GC_BGD
    scale = min(1.0, (options.cut_pixels / part.size) ** 0.5)
    if scale < 1:
        small = tuple(max(round(side * scale), 1) for side in part.shape[::-1])
        part = cv2.resize(part, small, interpolation=cv2.INTER_NEAREST)
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    found = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    if found.any() and not found.all():
        env.opencv_seed(options.seed)  # the result must not depend on what was cut before
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(picture, part, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
        found = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    out[view] = (classic.resize_mask(found, sure.shape) | sure) & ~never
    return out


def _keep_clicked(mask: BoolHW, start: BoolHW, prompt: Prompt) -> BoolHW:
    """Drop parts that neither hold a positive point nor overlap the start by half of themselves."""
    on = [pixel for pixel, label in _pixels(prompt, mask.shape) if label]
    if on:
        clicked = np.zeros(mask.shape, bool)
        clicked[tuple(np.transpose(on))] = True
        kept = classic.parts_at(mask, clicked)
    else:
        parts = [part for part in classic.components(mask) if (part & start).sum() * 2 >= part.sum()]
        kept = np.logical_or.reduce(parts) if parts else np.zeros_like(mask)
    return classic.fill_holes(kept) if kept.any() else mask


def _believed_iou(codes: NDArray[np.int32], start: BoolHW, mask: BoolHW) -> float:
    if not mask.any() or mask.all():
        return 0.0
    top, left, bottom, right = classic.bounding_box(mask)
    ring = classic.dilate(mask, max((bottom - top + right - left) // 8, 2)) & ~mask
    shared = classic.overlap(classic.colour_model(codes, mask), classic.colour_model(codes, ring))
    apart = max(0.0, 1.0 - shared) ** 0.5
    outline = mask & ~classic.erode(np.pad(mask, 1), 1)[1:-1, 1:-1]
    border = np.zeros_like(mask)
    border[[0, -1]] = border[:, [0, -1]] = True
    free = 1.0 - int((outline & border).sum()) / max(int(outline.sum()), 1)
    return float(classic.mask_iou(start, mask) * apart * free)

"""From token maps to a heat map, its peak's mask and a track: the same steps for every attention source.

A method that grounds by a heat map hands in its point and the map; the segmenter, the choice among
its candidates and the propagation are the same for all of them, so that sources compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.methods.base import click
from refseg_bench.segmenters.base import Candidates, Prompt, SegmenterSession, TrackingDirection
from refseg_bench.types import BoolHW, HeatPoint, MaskTrack

Aggregate = Literal["mean", "sum", "max"]
Upsample = Literal["bilinear", "nearest", "none"]
Multimask = Literal["best_iou", "index", "heat"]
FloatHW = NDArray[np.float32]


def aggregate(maps_TN: NDArray[np.float32], kept: Sequence[int], how: Aggregate) -> NDArray[np.float32]:
    """One map from the kept tokens' maps, equal weights: H[p] = mean, sum or max over K of A[i, p]."""
    chosen_KN = maps_TN[list(kept)]
    if how == "max":
        return np.asarray(chosen_KN.max(0), np.float32)
    return np.asarray(chosen_KN.sum(0) if how == "sum" else chosen_KN.mean(0), np.float32)


def resized(
    grid_hw: FloatHW, size: tuple[int, int], how: Literal["bilinear", "nearest"], content: tuple[float, float]
) -> FloatHW:
    """A grid map at pixel resolution.

    Pixel centres and cell centres are aligned ((x + 0.5) / W), edges are repeated; with
    ``content=(1, 1)`` bilinear equals ``F.interpolate(align_corners=False)``.

    Args:
        grid_hw: map on the model's canvas.
        size: (height, width) wanted.
        how: interpolation.
        content: share of the canvas that the image covers, from the top left corner.
    """
    weights = [_weights(size[axis], grid_hw.shape[axis], content[axis], how) for axis in (0, 1)]
    return np.asarray(weights[0] @ grid_hw @ weights[1].T, np.float32)


def _weights(pixels: int, cells: int, content: float, how: str) -> NDArray[np.float32]:
    """Row r holds the weights of the cells at pixel r."""
    position = (np.arange(pixels) + 0.5) / pixels * content * cells - 0.5
    if how == "nearest":
        position = np.floor(position + 0.5)
    position = np.clip(position, 0, cells - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, cells - 1)
    out = np.zeros((pixels, cells), np.float32)
    np.add.at(out, (np.arange(pixels), low), 1 - (position - low))
    np.add.at(out, (np.arange(pixels), high), position - low)
    return out


def content_cells(grid_hw: FloatHW, content: tuple[float, float]) -> FloatHW:
    """The cells of a canvas map whose centre lies on the image (at least one)."""
    rows, columns = (
        max(1, int(np.count_nonzero((np.arange(n) + 0.5) / n < share)))
        for n, share in zip(grid_hw.shape, content, strict=True)
    )
    return grid_hw[:rows, :columns]


def place(grid_hw: FloatHW, size: tuple[int, int], how: Upsample, content: tuple[float, float]) -> FloatHW:
    """The map the peak is looked for on: at image size, or the cells themselves for ``none``."""
    if how == "none":
        return content_cells(grid_hw, content)
    return resized(grid_hw, size, how, content)


def unit_range(values: FloatHW) -> FloatHW:
    """Shifted and scaled to [0, 1]; a constant map is 0.

    >>> import numpy as np
    >>> unit_range(np.float32([[2, 4]])).tolist()
    [[0.0, 1.0]]
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros_like(values)
    return np.asarray((values - low) / (high - low), np.float32)


def choose(candidates: Candidates, how: Multimask, index: int, heat_HW: FloatHW) -> tuple[int | None, BoolHW]:
    """Which of a segmenter's candidates to take; ``None`` and an empty mask where it has none.

    Args:
        candidates: masks with predicted IoU.
        how: highest predicted IoU; a fixed ``index`` (SAM's 2 is the whole object); or the mask with
            the greatest mean of the heat map inside minus outside.
        index: for ``index``; the last one where a segmenter offers fewer.
        heat_HW: heat map at the masks' size.
    """
    if not len(candidates):
        return None, candidates.best()[0]
    masks_KHW = candidates.masks_KHW
    if how == "index":
        chosen = min(index, len(masks_KHW) - 1)
    elif how == "heat":
        chosen = int(np.argmax([contrast(mask, heat_HW) for mask in masks_KHW]))
    else:
        chosen = int(np.argmax(candidates.ious_K))
    return chosen, masks_KHW[chosen]


def contrast(mask_HW: BoolHW, heat_HW: FloatHW) -> float:
    """Mean heat inside a mask minus outside; −∞ for an empty mask, 0 outside a full one."""
    if not mask_HW.any():
        return float("-inf")
    outside = float(heat_HW[~mask_HW].mean()) if not mask_HW.all() else 0.0
    return float(heat_HW[mask_HW].mean()) - outside


@dataclass(frozen=True)
class PointOptions:
    """How a point becomes masks."""

    #: Which candidate to take on the prompted frame. ``best_iou`` leaves it to the segmenter's own tracking
    #: in a video; the others prompt the video with the mask chosen.
    multimask: Multimask = "best_iou"
    index: int = 2  #: for ``multimask=index``
    both_ways: bool = False  #: propagate backwards from the prompted frame, too


def track_point(
    session: SegmenterSession, point: HeatPoint, heat_HW: FloatHW, options: PointOptions
) -> tuple[MaskTrack, int | None]:
    """Segment the object under a point and follow it.

    Args:
        session: the open clip.
        point: one positive click.
        heat_HW: the heat map at the clip's size (for ``multimask=heat``).
        options: see there.

    Returns:
        The track (frames that propagation does not reach are absent), and the candidate's index
        where one was chosen here.
    """
    clip = session.clip
    prompt, chosen = click(point), None
    track = MaskTrack.empty(clip.size, len(clip))
    if len(clip) == 1 or options.multimask != "best_iou":
        candidates = session.segment(point.frame, [prompt])[0]
        chosen, mask_HW = choose(candidates, options.multimask, options.index, heat_HW)
        track = MaskTrack.gather([(point.frame, mask_HW)], clip.size, track.rles)
        # An empty mask points at nothing; then the click still does.
        prompt = Prompt(mask=np.asarray(mask_HW, bool)) if mask_HW.any() else prompt
    if len(clip) > 1:
        direction: TrackingDirection = "both" if options.both_ways else "forward"
        moved = session.propagate(point.frame, [prompt], direction=direction)
        track = MaskTrack.gather(((t, found_NHW[0]) for t, found_NHW in moved), clip.size, track.rles)
    return track, chosen


def threshold(heat_HW: NDArray[np.float32], level: float) -> BoolHW:
    """Where a map, brought to [0, 1], is at least ``level``; nowhere for a constant map."""
    return np.asarray((unit_range(heat_HW) >= level) & (heat_HW.max() > heat_HW.min()))

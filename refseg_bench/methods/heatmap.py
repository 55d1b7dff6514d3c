"""From token maps to a heat map at image size, its peak, and the mask that suits it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.segmenters.base import Candidates
from refseg_bench.types import BoolHW

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


def choose(candidates: Candidates, how: Multimask, index: int, heat_HW: FloatHW) -> tuple[int, BoolHW]:
    """Which of a segmenter's candidates to take.

    Args:
        candidates: masks with predicted IoU.
        how: highest predicted IoU; a fixed ``index`` (SAM's 2 is the whole object); or the mask with
            the greatest mean of the heat map inside minus outside.
        index: for ``index``; the last one where a segmenter offers fewer.
        heat_HW: heat map at the masks' size.
    """
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

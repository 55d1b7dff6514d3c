"""Image features and mask algebra without a model: resizing, optical flow, components, colour models.

Pure functions over arrays (OpenCV inside); what the weight-free segmenters and ``lexical`` share.
Axes: ``H`` rows, ``W`` columns, ``C`` channels, ``K`` components. Colours are 8-bit BGR or OpenCV's
8-bit Lab (every channel 0-255).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import BoolHW

Float = NDArray[np.float32]
#: Bins of the joint Lab histogram: lightness coarsely, since shading changes it most.
LAB_BINS = (8, 16, 16)


def working_shape(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) with the longer side at most ``longest``; never enlarged, never below 1."""
    scale = min(1.0, longest / max(size))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def resize_mask(mask_HW: NDArray[Any], size: tuple[int, int]) -> BoolHW:
    """A boolean mask at another size: a pixel is set if at least half of its area is covered."""
    if mask_HW.shape == size:
        return mask_HW.astype(bool)
    shrinks = size[0] < mask_HW.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    soft = cv2.resize(mask_HW.astype(np.float32), (size[1], size[0]), interpolation=how)
    return np.asarray(soft >= 0.5)


def dense_flow(from_gray_HW: NDArray[np.uint8], to_gray_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """DIS optical flow (H, W, 2): the pixel at (y, x) moves to (y + flow[..., 1], x + flow[..., 0]).

    A side under 32 pixels is padded: of low pictures OpenCV gives no number, or the process dies.
    """
    height, width = from_gray_HW.shape
    border = (0, max(32 - height, 0), 0, max(32 - width, 0), cv2.BORDER_REPLICATE)
    one, two = (cv2.copyMakeBorder(gray_HW, *border) for gray_HW in (from_gray_HW, to_gray_HW))
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.asarray(method.calc(one, two, None), np.float32)[:height, :width]


def warp_mask(mask_HW: BoolHW, back_flow_HW2: NDArray[Any]) -> BoolHW:
    """Carry a mask to the next frame with the flow *from that frame back* to the mask's."""
    rows, columns = np.indices(mask_HW.shape, np.float32)
    moved = cv2.remap(
        mask_HW.astype(np.float32),
        columns + back_flow_HW2[..., 0].astype(np.float32),
        rows + back_flow_HW2[..., 1].astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return np.asarray(moved >= 0.5)


def disc(radius: int) -> NDArray[np.uint8]:
    """A round structuring element of ``2 * radius + 1`` pixels."""
    side = 2 * radius + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def dilate(mask_HW: BoolHW, radius: int) -> BoolHW:
    """Grow a mask by ``radius`` pixels."""
    return np.asarray(cv2.dilate(mask_HW.view(np.uint8), disc(radius)) > 0)


def erode(mask_HW: BoolHW, radius: int) -> BoolHW:
    """Shrink a mask by ``radius`` pixels; the frame's border doesn't shrink it."""
    return np.asarray(cv2.erode(mask_HW.view(np.uint8), disc(radius)) > 0)


def closed(mask_HW: BoolHW, radius: int) -> BoolHW:
    """Close gaps up to twice ``radius`` pixels, and fill what is enclosed."""
    padded = np.pad(mask_HW.view(np.uint8), radius)
    out = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc(radius))
    return fill_holes(np.asarray(out[radius:-radius, radius:-radius] > 0) if radius else mask_HW)


def fill_holes(mask_HW: BoolHW) -> BoolHW:
    """Fill background that doesn't reach the frame's border."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask_HW).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    out = np.zeros(mask_HW.shape, np.uint8)
    cv2.drawContours(out, contours, -1, 1, thickness=cv2.FILLED)
    return np.asarray(out > 0)


def components(mask_HW: BoolHW, min_area: int = 1) -> list[BoolHW]:
    """Connected parts (8-neighbours) of at least ``min_area`` pixels, largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW.view(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = sorted((k for k in range(len(areas)) if areas[k] >= min_area), key=lambda k: -int(areas[k]))
    return [np.asarray(labels == k + 1) for k in order]


def parts_at(mask_HW: BoolHW, pixels_HW: BoolHW) -> BoolHW:
    """The connected parts (8-neighbours) of a mask that hold any of the pixels."""
    _, labels = cv2.connectedComponents(mask_HW.view(np.uint8), connectivity=8)
    kept = np.zeros(int(labels.max()) + 1, bool)
    kept[labels[pixels_HW]] = True
    kept[0] = False
    return np.asarray(kept[labels])


def bounding_box(mask_HW: BoolHW) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), ends exclusive, of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def mask_iou(one_HW: BoolHW, other_HW: BoolHW) -> float:
    """Intersection over union; 1.0 if both are empty."""
    union = int(np.count_nonzero(one_HW | other_HW))
    return 1.0 if union == 0 else int(np.count_nonzero(one_HW & other_HW)) / union


def lab_codes(bgr_HWC: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The joint Lab histogram bin of every pixel."""
    lab = cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2LAB).astype(np.int32)
    light, a, b = (lab[..., c] * LAB_BINS[c] // 256 for c in range(3))
    return np.asarray((light * LAB_BINS[1] + a) * LAB_BINS[2] + b)


def colour_model(codes_HW: NDArray[np.int32], mask_HW: BoolHW) -> Float:
    """Share of the masked pixels in each Lab bin (zeros for an empty mask)."""
    counts = np.bincount(codes_HW[mask_HW], minlength=int(np.prod(LAB_BINS)))
    return (counts / max(int(counts.sum()), 1)).astype(np.float32)


def overlap(model: Float, other: Float) -> float:
    """Bhattacharyya coefficient of two colour models: 0 nothing shared, 1 equal."""
    return float(np.sqrt(model * other).sum())

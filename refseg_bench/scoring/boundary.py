"""J and F from integer counts: the definitions, and an exact kernel on numpy and OpenCV.

Every video tool shares this arithmetic (region similarity J and boundary accuracy F of the DAVIS
benchmark, Perazzi et al., CVPR 2016, section 4). Only integers enter it, so a fast kernel can and
must be exact; :mod:`refseg_bench.scoring.kernel` chooses between this one and the compiled one.

Not for: which frames or objects count, what is averaged (``metrics.protocols``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import BoolHW, decode_rle

Uint8HW = NDArray[np.uint8]
#: Boundary tolerance as a share of the frame's diagonal.
TOLERANCE = 0.008
#: Columns of a count row, in this order.
COUNTS = ("intersection", "area_truth", "area_answer", "edge_truth", "edge_answer", "hit_truth", "hit_answer")


def boundary_radius(size: tuple[int, int], tolerance: float = TOLERANCE) -> int:
    """Matching radius in pixels: ``ceil(0.008 * diagonal)`` of the mask *as given*.

    Args:
        size: (height, width).
        tolerance: share of the diagonal, or pixels where it is at least 1.
    """
    if tolerance >= 1:
        return math.ceil(tolerance)
    return math.ceil(tolerance * math.sqrt(size[0] * size[0] + size[1] * size[1]))


def boundary_map(mask_HW: BoolHW) -> BoolHW:
    """Boundary pixels of a binary mask.

    A pixel is boundary iff the 2x2 block it opens (itself, right, below, below right) is not
    constant, with rows and columns past the bottom and right edge replicated. Boundary pixels
    therefore sit up and left of the edge, an object cut by the frame has no boundary along the
    frame, and a full mask has none at all.

    Args:
        mask_HW: boolean mask.

    Returns:
        Boolean map of the same shape.
    """
    right = mask_HW.copy()
    right[:, :-1] = mask_HW[:, 1:]
    edge = mask_HW ^ right
    below = edge.copy()
    below[:-1] = edge[1:]
    vertical = np.zeros_like(mask_HW)
    vertical[:-1] = mask_HW[:-1] ^ mask_HW[1:]
    found: BoolHW = edge | below | vertical
    return found


def jaccard(counts_NC: NDArray[np.int64]) -> NDArray[np.float64]:
    """J per row of counts: intersection over union, 1 where the union is empty.

    Args:
        counts_NC: integer rows with the columns of :data:`COUNTS`.
    """
    inter = counts_NC[:, 0].astype(np.float64)
    union = (counts_NC[:, 1] + counts_NC[:, 2] - counts_NC[:, 0]).astype(np.float64)
    out: NDArray[np.float64] = np.ones(len(counts_NC))
    np.divide(inter, union, out=out, where=union > 0)
    return out


def boundary_f(counts_NC: NDArray[np.int64]) -> NDArray[np.float64]:
    """F per row of counts: harmonic mean of boundary precision and recall.

    Exactly one empty boundary gives 0, two give 1; ``2 p r / (p + r)`` is evaluated in this order.

    Args:
        counts_NC: integer rows with the columns of :data:`COUNTS`.
    """
    edge_g, edge_p, hit_g, hit_p = (counts_NC[:, i].astype(np.float64) for i in range(3, 7))
    both = (edge_g > 0) & (edge_p > 0)
    precision = np.divide(hit_p, edge_p, out=np.zeros(len(counts_NC)), where=both)
    recall = np.divide(hit_g, edge_g, out=np.zeros(len(counts_NC)), where=both)
    total = precision + recall
    out: NDArray[np.float64] = np.zeros(len(counts_NC))
    np.divide(2 * precision * recall, total, out=out, where=total > 0)
    out[(edge_g == 0) & (edge_p == 0)] = 1.0
    return out


@dataclass(frozen=True, slots=True)
class PlainRegion:
    """One mask made ready for comparison: its box, its pixels there, its boundary.

    Attributes:
        size: (rows, columns) of the full frame.
        area: foreground pixels.
        box: (top, left, bottom, right) of ``pixels_HW`` and ``edge_HW``, half open: the
            foreground's bounding box grown by one pixel up and left, where boundary may lie.
        pixels_HW, edge_HW: mask and boundary in that box, uint8 of 0 and 1.
        edge: flat positions of the boundary pixels in the box.
    """

    size: tuple[int, int]
    area: int
    box: tuple[int, int, int, int]
    pixels_HW: Uint8HW
    edge_HW: Uint8HW
    edge: NDArray[np.intp]


_NOTHING = np.zeros((0, 0), np.uint8)
_NOWHERE = np.zeros(0, np.intp)


def prepare(mask_HW: NDArray[Any]) -> PlainRegion:
    """Make a mask ready to be compared with any number of others.

    Args:
        mask_HW: boolean or 0/1 uint8 mask of the full frame, C-contiguous.
    """
    import cv2

    plain = mask_HW.view(np.uint8)
    left, top, width, height = cv2.boundingRect(plain)
    if width == 0:
        return PlainRegion((plain.shape[0], plain.shape[1]), 0, (0, 0, 0, 0), _NOTHING, _NOTHING, _NOWHERE)
    return _region(plain, 1, (top, left, top + height, left + width))


def _region(labels_HW: Uint8HW, number: int, tight: tuple[int, int, int, int]) -> PlainRegion:
    """The region of one id with its tight bounding box."""
    size = (labels_HW.shape[0], labels_HW.shape[1])
    bottom, right = tight[2:]
    top, left = max(tight[0] - 1, 0), max(tight[1] - 1, 0)
    # One more row and column below and right, so that the replicated edge is the frame's own.
    wide = labels_HW[top : min(bottom + 1, size[0]), left : min(right + 1, size[1])] == number
    edge = np.ascontiguousarray(boundary_map(wide)[: bottom - top, : right - left])
    pixels = np.ascontiguousarray(wide[: bottom - top, : right - left])
    return PlainRegion(
        size,
        int(np.count_nonzero(pixels)),
        (top, left, bottom, right),
        pixels.view(np.uint8),
        edge.view(np.uint8),
        np.flatnonzero(edge),
    )


def prepare_labels(labels_HW: Uint8HW) -> dict[int, PlainRegion]:
    """:func:`prepare` for every nonzero id of an id map, by id in ascending order."""
    labels_HW = np.ascontiguousarray(labels_HW)
    flat, width = labels_HW.ravel(), labels_HW.shape[1]
    if not len(flat):
        return {}
    # Ids change at few places; the runs between those give every id's bounding box.
    starts = np.concatenate([[0], _few_nonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [len(flat)]]) - 1
    owners = flat[starts]
    top, bottom = starts // width, ends // width
    left, right = starts - top * width, ends - bottom * width
    wraps = top != bottom
    left[wraps], right[wraps] = 0, width - 1
    out: dict[int, PlainRegion] = {}
    for number in np.flatnonzero(np.bincount(owners)).tolist():
        if number:
            mine = np.flatnonzero(owners == number)
            box = top[mine[0]], left[mine].min(), bottom[mine[-1]] + 1, right[mine].max() + 1
            out[number] = _region(labels_HW, number, (int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    return out


def _few_nonzero(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """``np.flatnonzero`` of a long array with few ones: eight elements at a time."""
    whole = len(flags) // 8 * 8
    words = flags[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[some].view(np.bool_))
    found = some[inside >> 3] * 8 + (inside & 7)
    return np.concatenate([found, whole + np.flatnonzero(flags[whole:])])


def prepare_rle(counts: bytes, size: tuple[int, int]) -> PlainRegion:
    """:func:`prepare` for COCO run lengths, in the *transposed* frame.

    J and F don't change when both masks are transposed, and COCO masks are stored by columns.
    """
    return prepare(np.ascontiguousarray(decode_rle(counts, size).T))


def compare(truth: PlainRegion, answer: PlainRegion, radius: int) -> tuple[int, ...]:
    """Integer counts of one pair of masks, in the order of :data:`COUNTS`."""
    hit_truth = hit_answer = 0
    if len(truth.edge) and len(answer.edge):
        hit_truth = _hits(truth, answer, radius)
        hit_answer = _hits(answer, truth, radius)
    return (
        _intersection(truth, answer),
        truth.area,
        answer.area,
        len(truth.edge),
        len(answer.edge),
        hit_truth,
        hit_answer,
    )


def _intersection(a: PlainRegion, b: PlainRegion) -> int:
    top, left = max(a.box[0], b.box[0]), max(a.box[1], b.box[1])
    bottom, right = min(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    if top >= bottom or left >= right:
        return 0
    part_a = a.pixels_HW[top - a.box[0] : bottom - a.box[0], left - a.box[1] : right - a.box[1]]
    part_b = b.pixels_HW[top - b.box[0] : bottom - b.box[0], left - b.box[1] : right - b.box[1]]
    return int(np.count_nonzero(part_a & part_b))


@lru_cache(maxsize=64)
def _disk(radius: int) -> tuple[int, NDArray[np.intp]]:
    """Half side of the square inscribed in the disk, and the disk's (dy, dx) outside that square."""
    inner = int(radius / math.sqrt(2.0))
    span = np.arange(-radius, radius + 1)
    dy, dx = np.meshgrid(span, span, indexing="ij")
    ring = (dy * dy + dx * dx <= radius * radius) & ((abs(dy) > inner) | (abs(dx) > inner))
    return inner, np.stack([dy[ring], dx[ring]])


def _hits(points: PlainRegion, other: PlainRegion, radius: int) -> int:
    """Boundary pixels of ``points`` with a boundary pixel of ``other`` within ``radius``.

    A pixel inside the dilation by the disk's inscribed square matches, one outside the dilation
    by its circumscribed square doesn't; the few between are tested singly.
    """
    import cv2

    inner, ring = _disk(radius)
    margin = 2 * radius
    rows, columns = other.edge_HW.shape
    canvas = np.zeros((rows + 2 * margin, columns + 2 * margin), np.uint8)
    canvas[margin : margin + rows, margin : margin + columns] = other.edge_HW
    width = points.edge_HW.shape[1]
    y = points.edge // width + (points.box[0] - other.box[0] + margin)
    x = points.edge % width + (points.box[1] - other.box[1] + margin)
    near = (y >= radius) & (y < rows + 3 * radius) & (x >= radius) & (x < columns + 3 * radius)
    flat = (y * canvas.shape[1] + x)[near]
    if not len(flat):
        return 0
    sure = cv2.dilate(canvas, np.ones((2 * inner + 1, 2 * inner + 1), np.uint8)).ravel()[flat] != 0
    flat = flat[~sure]
    found = int(np.count_nonzero(sure))
    if not len(flat):
        return found
    if len(flat) * ring.shape[1] > 100_000:
        maybe = cv2.dilate(canvas, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)).ravel()[flat] != 0
        flat = flat[maybe]
    offsets = ring[0] * canvas.shape[1] + ring[1]
    pixels = canvas.ravel()
    # In pieces, so that a noisy mask with a hundred thousand boundary pixels stays small in memory;
    # offsets down and points across, which is how numpy reduces fastest.
    for start in range(0, len(flat), 4096):
        around = np.take(pixels, offsets[:, None] + flat[None, start : start + 4096])
        found += int(np.count_nonzero(np.bitwise_or.reduce(around, axis=0)))
    return found

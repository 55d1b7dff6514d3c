"""J and F from integer counts: the definitions, and an exact kernel on numpy and OpenCV.

Every video tool shares this arithmetic (region similarity J and boundary accuracy F of the DAVIS
benchmark, Perazzi et al., CVPR 2016, section 4). Only integers enter it, so a fast kernel can and
must be exact; :mod:`refseg_bench.scoring.counts` chooses between this one and the compiled one.

Not for: which frames or objects count, what is averaged (``scoring.protocols``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import BoolHW, decode_rle

#: Boundary tolerance as a share of the frame's diagonal.
TOLERANCE = 0.008
#: Columns of a count row, in this order.
COUNTS = (
    "intersection",
    "area_truth",
    "area_prediction",
    "edge_truth",
    "edge_prediction",
    "hit_truth",
    "hit_prediction",
)
#: A mask made ready for comparison: it, and its boundary.
PlainRegion = tuple[BoolHW, BoolHW]
#: What every video protocol reports, the headline first.
JF = ("J&F", "J", "F")


def boundary_radius(size: tuple[int, int]) -> int:
    """Matching radius in pixels: ``ceil(0.008 * diagonal)`` of the (height, width) of a mask *as given*.

    >>> boundary_radius((480, 854))
    8
    """
    return math.ceil(TOLERANCE * math.sqrt(size[0] * size[0] + size[1] * size[1]))


def boundary_map(mask_HW: BoolHW) -> BoolHW:
    """Boundary pixels of a binary mask.

    A pixel is boundary iff the 2x2 block it opens (itself, right, below, below right) is not
    constant, with rows and columns past the bottom and right edge replicated. Boundary pixels
    therefore sit up and left of the edge, an object cut by the frame has no boundary along the
    frame, and a full mask has none at all.
    """
    more = np.pad(mask_HW, ((0, 1), (0, 1)), "edge")
    return (mask_HW ^ more[:-1, 1:]) | (mask_HW ^ more[1:, :-1]) | (mask_HW ^ more[1:, 1:])


def jaccard(counts_NC: NDArray[np.int64]) -> NDArray[np.float64]:
    """J per row of :data:`COUNTS`: intersection over union, 1 where the union is empty."""
    inter = counts_NC[:, 0].astype(np.float64)
    union = (counts_NC[:, 1] + counts_NC[:, 2] - counts_NC[:, 0]).astype(np.float64)
    out: NDArray[np.float64] = np.ones(len(counts_NC))
    np.divide(inter, union, out=out, where=union > 0)
    return out


def boundary_f(counts_NC: NDArray[np.int64]) -> NDArray[np.float64]:
    """F per row of :data:`COUNTS`: harmonic mean of boundary precision and recall.

    Exactly one empty boundary gives 0, two give 1; ``2 p r / (p + r)`` is evaluated in this order.
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


def jf_values(j: float, f: float) -> dict[str, float]:
    """The three values every video protocol reports of a unit."""
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def mean_of(values: NDArray[np.float64]) -> float:
    """Mean over frames; NaN where no frame counts."""
    return float(values.mean()) if len(values) else float("nan")


def from_mask(mask_HW: NDArray[np.uint8]) -> PlainRegion:
    """A mask of the full frame (0 and 1) made ready to be compared with any number of others."""
    plain = mask_HW.view(np.bool_)
    return plain, boundary_map(plain)


def from_labels(labels_HW: NDArray[np.uint8]) -> dict[int, PlainRegion]:
    """:func:`from_mask` for every nonzero id of an id map, by id in ascending order."""
    ids = np.flatnonzero(np.bincount(labels_HW.ravel())).tolist()
    return {number: from_mask(labels_HW == number) for number in ids if number}


def from_rle(counts: bytes, width: int, height: int) -> PlainRegion:
    """:func:`from_mask` for COCO run lengths, in the *transposed* frame."""
    return from_mask(np.ascontiguousarray(decode_rle(counts, (height, width)).T))


def compare(truth: PlainRegion, prediction: PlainRegion, radius: int) -> tuple[int, ...]:
    """Integer counts of one pair of masks, in the order of :data:`COUNTS`."""
    import cv2

    left, top, width, height = cv2.boundingRect((truth[0] | prediction[0]).view(np.uint8))
    # Boundary lies up to one pixel above and left of its mask.
    window = np.s_[max(top - 1, 0) : top + height, max(left - 1, 0) : left + width]
    mask_g, mask_p, edge_g, edge_p = (
        np.ascontiguousarray(map_HW[window]).view(np.uint8)
        for map_HW in (truth[0], prediction[0], truth[1], prediction[1])
    )
    counted = [mask_g & mask_p, mask_g, mask_p, edge_g, edge_p]
    if edge_g.any() and edge_p.any():
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        disk = (x * x + y * y <= radius * radius).astype(np.uint8)
        counted += [edge_g & cv2.dilate(edge_p, disk), edge_p & cv2.dilate(edge_g, disk)]
    counts = [int(np.count_nonzero(map_HW)) for map_HW in counted]
    return (*counts, *[0] * (len(COUNTS) - len(counts)))

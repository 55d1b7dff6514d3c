"""Counting mask pairs: with the compiled kernel where it was built, else with numpy and OpenCV.

Both give the same integers (a property test holds them together); ``REFSEG_KERNEL`` forces one, see
:mod:`refseg_bench.files.compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.files import compiled
from refseg_bench.scoring import boundary

#: A mask made ready for comparison; opaque outside the kernel that made it.
Region = Any


def name() -> str:
    """``"compiled"`` or ``"plain"``: which kernel this process counts with."""
    return "plain" if compiled.KERNEL is None else "compiled"


def region(mask_HW: NDArray[Any]) -> Region:
    """Make a boolean mask of the full frame ready for :func:`compare`."""
    plain = np.ascontiguousarray(mask_HW != 0 if mask_HW.dtype != np.bool_ else mask_HW)
    if compiled.KERNEL is None:
        return boundary.prepare(plain)
    return compiled.KERNEL.from_mask(plain.view(np.uint8))


def region_rle(counts: bytes, size: tuple[int, int]) -> Region:
    """Make COCO run lengths ready for :func:`compare`; compare such regions only with each other.

    The region lives in the transposed frame: COCO masks run down the columns, and neither J nor F
    changes when both masks are transposed.
    """
    if compiled.KERNEL is None:
        return boundary.prepare_rle(counts, size)
    return compiled.KERNEL.from_rle(counts, size[1], size[0])


def label_regions(labels_HW: NDArray[np.uint8]) -> dict[int, Region]:
    """Regions of all nonzero ids of an id map, by id in ascending order."""
    if compiled.KERNEL is None:
        return boundary.prepare_labels(labels_HW)
    return compiled.KERNEL.from_labels(labels_HW)  # type: ignore[no-any-return]


def empty_region(size: tuple[int, int]) -> Region:
    """The region of an object that is not there."""
    return region(np.zeros(size, np.bool_))


def compare(truth: Region, answer: Region, radius: int) -> tuple[int, ...]:
    """Integer counts of one pair, in the order of :data:`refseg_bench.scoring.boundary.COUNTS`."""
    if compiled.KERNEL is None:
        return boundary.compare(truth, answer, radius)
    return compiled.KERNEL.compare(truth, answer, radius)  # type: ignore[no-any-return]


def keep_pages() -> None:
    """Tell glibc to keep freed memory of this process (no effect elsewhere).

    A decoded frame is larger than the size from which malloc maps fresh pages for every block;
    mapping and unmapping them would cost more than half of the scoring time.
    """
    import ctypes
    import sys

    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 64 << 20)
    mallopt(trim_threshold, 128 << 20)

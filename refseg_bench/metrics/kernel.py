"""The choice of the counting kernel: the compiled one where it was built, else numpy and OpenCV.

Both give the same integers (a property test holds them together); ``REFSEG_KERNEL=plain`` or
``REFSEG_KERNEL=compiled`` forces one.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import ConfigError
from refseg_bench.metrics import boundary
from refseg_bench.types import encode_rle

#: A mask made ready for comparison; opaque outside the kernel that made it.
Region = Any


def _compiled() -> ModuleType | None:
    try:
        return importlib.import_module("refseg_bench.metrics._kernel")
    except ImportError:
        return None


def _choose() -> ModuleType | None:
    wanted = os.environ.get("REFSEG_KERNEL", "auto")
    if wanted not in ("auto", "plain", "compiled"):
        raise ConfigError(f"REFSEG_KERNEL is '{wanted}'.", allowed=("auto", "plain", "compiled"))
    found = None if wanted == "plain" else _compiled()
    if found is None and wanted == "compiled":
        raise ConfigError(
            "REFSEG_KERNEL=compiled, but the extension was not built.",
            cure="Install refseg-bench again where a C compiler is present, or unset REFSEG_KERNEL.",
        )
    return found


_KERNEL = _choose()


def name() -> str:
    """``"compiled"`` or ``"plain"``: which kernel this process counts with."""
    return "plain" if _KERNEL is None else "compiled"


def region(mask_HW: NDArray[Any]) -> Region:
    """Make a boolean mask of the full frame ready for :func:`compare`."""
    plain = np.ascontiguousarray(mask_HW != 0 if mask_HW.dtype != np.bool_ else mask_HW)
    if _KERNEL is None:
        return boundary.prepare(plain)
    return _KERNEL.from_mask(plain.view(np.uint8))


def region_rle(counts: bytes, size: tuple[int, int]) -> Region:
    """Make COCO run lengths ready for :func:`compare`; compare such regions only with each other.

    The region lives in the transposed frame: COCO masks run down the columns, and neither J nor F
    changes when both masks are transposed.
    """
    if _KERNEL is None:
        return boundary.prepare_rle(counts, size)
    return _KERNEL.from_rle(counts, size[1], size[0])


def label_regions(labels_HW: NDArray[np.uint8]) -> dict[int, Region]:
    """Regions of all nonzero ids of an id map, by id in ascending order."""
    if _KERNEL is None:
        return boundary.prepare_labels(labels_HW)
    return _KERNEL.from_labels(labels_HW)  # type: ignore[no-any-return]


def empty_region(size: tuple[int, int]) -> Region:
    """The region of an object that is not there."""
    return region(np.zeros(size, np.bool_))


def encode_mask(mask_HW: NDArray[np.bool_]) -> bytes:
    """COCO run lengths of a mask, as :func:`refseg_bench.types.encode_rle` gives them, only faster."""
    if _KERNEL is not None:
        return _KERNEL.encode(np.ascontiguousarray(mask_HW).view(np.uint8))  # type: ignore[no-any-return]
    return encode_rle(mask_HW)


def split(values_HW: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int, bool]:
    """Where values are not 0; the only other value (0 if there is none, -1 for several); is there a 0?"""
    # An extension built before this function existed counts on.
    if _KERNEL is not None and hasattr(_KERNEL, "split"):
        out = np.empty(values_HW.shape, np.bool_)
        return (out, *_KERNEL.split(np.ascontiguousarray(values_HW), out.view(np.uint8)))
    mask = values_HW != 0
    top, covered = int(values_HW.max()), int(np.count_nonzero(mask))
    several = top and covered != np.count_nonzero(values_HW == top)
    return mask, -1 if several else top, covered < mask.size


def unfilter(raw: bytes, height: int, width: int) -> NDArray[np.uint8] | None:
    """Pixels ``(height, width)`` of inflated 8-bit one-channel PNG rows.

    Args:
        raw: ``height`` rows of one filter byte and ``width`` filtered bytes.
        height: rows of the image.
        width: its columns.

    Returns:
        The pixels, or ``None`` where this kernel doesn't undo a filter that was used.
    """
    if _KERNEL is not None:
        out = np.empty((height, width), np.uint8)
        return out if _KERNEL.unfilter(raw, out) else None
    rows = np.frombuffer(raw, np.uint8).reshape(height, width + 1)
    filters = rows[:, 0]
    if not filters.any():
        return np.ascontiguousarray(rows[:, 1:])
    if filters.max() > 2:
        return None
    pixels = rows[:, 1:].copy()
    for y in np.flatnonzero(filters).tolist():
        if filters[y] == 1:
            np.cumsum(pixels[y], dtype=np.uint8, out=pixels[y])
        elif y:
            pixels[y] += pixels[y - 1]
    return pixels


def compare(truth: Region, answer: Region, radius: int) -> tuple[int, ...]:
    """Integer counts of one pair, in the order of :data:`refseg_bench.metrics.boundary.COUNTS`."""
    if _KERNEL is None:
        return boundary.compare(truth, answer, radius)
    return _KERNEL.compare(truth, answer, radius)  # type: ignore[no-any-return]


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

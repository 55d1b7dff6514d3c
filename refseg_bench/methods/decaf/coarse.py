"""Coarse masks straight from the fused attention volume: upsample, 8 bits, Otsu per frame (DecAF, §3.2).

Pure functions. Only the sampled frames get a mask; nothing is interpolated to the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refseg_bench.methods.decaf.fusion import resize
from refseg_bench.types import BoolHW, FloatTHW


def otsu(volume_hw: FloatTHW) -> BoolHW:
    """Foreground of one map in [0, 1]: 8 bits by truncation, strictly above OpenCV's Otsu threshold."""
    import cv2

    # A product of float32 can exceed 255 by one unit in the last place; uint8 would wrap.
    grey = np.clip(volume_hw * np.float32(255), 0, 255).astype(np.uint8)
    _, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(binary > 0)


def coarse_masks(volume_Thw: FloatTHW, size: tuple[int, int]) -> Iterator[BoolHW]:
    """One mask per sampled frame, at the clip's size.

    Args:
        volume_Thw: V, in [0, 1].
        size: (height, width) in pixels.

    Yields:
        Boolean masks, frame by frame (the full-size volume is never held).
    """
    for frame_hw in volume_Thw:
        yield otsu(resize(frame_hw[None], size)[0])

"""PP@K: do the K strongest keypoints fall near the target, as DecAF's official scorer asks it?

A pure function of keypoints and masks; its windows leave out the last row and column, as the
official scorer's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import BoolHW

COUNTS = (1, 5, 10, 50, 100)


def pointing_precision(
    points_N4: NDArray[np.floating],
    masks: Mapping[int, BoolHW | None],
    size: tuple[int, int],
    counts: Sequence[int] = COUNTS,
    offset: int = 14,
) -> dict[int, float]:
    """PP@K for each K: hits among the K highest-valued points, divided by K.

    A point hits if its window holds any pixel of the target: rows ``max(py-offset, 0)`` to
    ``min(py+offset, H-1)``, columns likewise, upper bounds exclusive, so that the last row and
    column never count.

    Args:
        points_N4: frame index, y and x in [0, 1], value.
        masks: union of the targets by frame index; ``None`` or absent where there is none.
        size: (height, width) in pixels.
        counts: the K.
        offset: half the window in pixels; 14 in the paper's experiments, 25 by the tool's default.

    Returns:
        K → share in [0, 1]. With fewer than K points the divisor stays K.
    """
    height, width = size
    order = np.argsort(-points_N4[:, 3], kind="stable")
    hits = np.zeros(len(points_N4), np.bool_)
    for rank, index in enumerate(order):
        frame, y, x = int(points_N4[index, 0]), float(points_N4[index, 1]), float(points_N4[index, 2])
        mask_HW = masks.get(frame)
        if mask_HW is None:
            continue
        py, px = min(int(y * height), height - 1), min(int(x * width), width - 1)
        window = mask_HW[
            max(py - offset, 0) : min(py + offset, height - 1),
            max(px - offset, 0) : min(px + offset, width - 1),
        ]
        hits[rank] = bool(window.any())
    return {count: float(hits[:count].sum()) / count for count in counts}

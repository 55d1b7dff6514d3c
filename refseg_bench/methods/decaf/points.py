"""Points of the fused attention volume: a segmenter's prompts, keypoints, the one peak (DecAF, §3.3).

Pure functions. Positions are relative, measured at cell centres: ``((x + 0.5)/w, (y + 0.5)/h)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import FloatTHW, HeatPoint


@dataclass(frozen=True, slots=True)
class PromptPoint:
    """A cell of V that prompts the segmenter.

    Attributes:
        t: index of the sampled frame.
        x: position in [0, 1] of the width.
        y: position in [0, 1] of the height.
        value: V there.
    """

    t: int
    x: float
    y: float
    value: float


def candidate_points(volume_Thw: FloatTHW, tau_pq: float = 0.8) -> list[PromptPoint]:
    """All cells with ``V ≥ tau_pq``: frames in order, cells of a frame row-major (Eq. 6).

    A constant volume (its largest value is 0) has none, unless ``tau_pq`` is 0.
    """
    _, height, width = volume_Thw.shape
    return [
        PromptPoint(int(t), (int(x) + 0.5) / width, (int(y) + 0.5) / height, float(volume_Thw[t, y, x]))
        for t, y, x in np.argwhere(volume_Thw >= np.float32(tau_pq))
    ]


def keypoints(volume_Thw: FloatTHW, frames: tuple[int, ...], count: int = 100) -> NDArray[np.float64]:
    """The ``count`` highest cells of the volume, highest first (ties in row-major order).

    Args:
        volume_Thw: V.
        frames: clip frame index of each slice.
        count: how many; all cells of a smaller volume.

    Returns:
        ``(count, 4)``: clip frame index, ``(y + 0.5)/h``, ``(x + 0.5)/w``, value.
    """
    _, height, width = volume_Thw.shape
    flat = volume_Thw.ravel()
    order = np.argsort(-flat, kind="stable")[:count]
    t, y, x = np.unravel_index(order, volume_Thw.shape)
    return np.stack(
        [np.asarray(frames, np.float64)[t], (y + 0.5) / height, (x + 0.5) / width, flat[order]], axis=1
    )


def highest(volume_Thw: FloatTHW, frames: tuple[int, ...]) -> HeatPoint | None:
    """The peak of V as a click, or ``None`` where the volume is constant and points nowhere."""
    if float(volume_Thw.max()) == float(volume_Thw.min()):
        return None
    frame, y, x, value = keypoints(volume_Thw, frames, 1)[0]
    return HeatPoint(int(frame), float(y), float(x), float(value))

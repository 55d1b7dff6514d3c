"""Decomposed attention fusion: from four raw attention maps to one volume V and its points (DecAF, §3.1–3.3).

Pure functions on arrays, named by the paper's symbols. Where the paper and the official code differ
the code is followed, because it made the numbers: the second min–max after averaging is one case.
Not here: where the maps come from (``backbones``) and what becomes of points (``tracklets``).

Axes: ``T`` sampled frames (or temporal cells of the video grid), ``h w`` cells of a token grid,
``H W`` pixels. Convolution and resizing are torch's, in float32, as in the official code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import BoolHW, FloatTHW, HeatPoint

Contrast = Literal["obj_minus_bg", "obj_only"]
Branch = Literal["both", "video", "frame"]


@dataclass
class Fusion:
    """How attention maps become one volume."""

    #: Subtract the background map, or use the object map alone (Table 4a).
    contrast: Contrast = "obj_minus_bg"
    branch: Branch = "both"  #: which branches count (Table 4b)
    video_kernel: int = 3  #: smoothing of video maps, in cells (odd; 1 = off)
    frame_kernel: int = 7  #: smoothing of frame maps, in cells (odd; 1 = off)
    sigma: float = 1.0  #: of the Gaussian, in cells
    final_minmax: bool = True  #: the official code's last min–max, absent from the paper

    def __post_init__(self) -> None:
        for name, size in (("video", self.video_kernel), ("frame", self.frame_kernel)):
            if size < 1 or size % 2 == 0:
                raise ConfigError(f"Option 'method.fusion.{name}_kernel' is {size}.", allowed=["1, 3, 5 …"])


@dataclass(frozen=True, eq=False)
class Maps:
    """Raw attention of one prompt: video ``(Tv, hv, wv)`` and frames ``(T, hf, wf)``."""

    video: FloatTHW
    frame: FloatTHW


def sample_frames(length: int, count: int = 16) -> tuple[int, ...]:
    """Uniform frame indices, ascending: all frames of a short clip, else ``count`` with both ends.

    Positions between frames are cut off, not rounded.

    >>> sample_frames(9, 3)
    (0, 4, 8)
    """
    if length <= count:
        return tuple(range(length))
    return tuple(int(i) for i in np.linspace(0, length - 1, count).astype(int))


def gaussian_kernel(size: int, sigma: float = 1.0) -> NDArray[np.float32]:
    """G_k: ``exp(-(x²+y²)/(2σ²))`` on a size×size grid, normalised to sum 1."""
    offset = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    line = np.exp(-(offset**2) / np.float32(2.0 * sigma**2))
    kernel = np.outer(line, line)
    normalised: NDArray[np.float32] = (kernel / kernel.sum()).astype(np.float32)
    return normalised


def smooth(attn_Thw: FloatTHW, size: int, sigma: float = 1.0) -> FloatTHW:
    """s: each time slice convolved with G_k, zero padding, so that borders are attenuated.

    Args:
        attn_Thw: raw attention on the native token grid.
        size: odd kernel size k: 3 for video maps, 7 for frame maps. 1 leaves the map as it is.
        sigma: of the Gaussian, in cells.
    """
    if size == 1:
        return attn_Thw
    kernel = torch.from_numpy(gaussian_kernel(size, sigma))[None, None]
    maps = torch.from_numpy(np.ascontiguousarray(attn_Thw, np.float32))[:, None]
    out: FloatTHW = torch.nn.functional.conv2d(maps, kernel, padding=size // 2)[:, 0].numpy()
    return out


def contrast(obj_Thw: FloatTHW, bg_Thw: FloatTHW | None) -> FloatTHW:
    """C: smoothed object map minus smoothed background map, clamped to [0, 1] (Eq. 4).

    The raw maps are subtracted, before any normalisation. Without a background map (Table 4a,
    object only) the object map alone is clamped.

    >>> import numpy as np
    >>> contrast(np.float32([[[0.75, 0.25]]]), np.float32([[[0.25, 0.5]]])).tolist()
    [[[0.5, 0.0]]]
    """
    if bg_Thw is None:
        return np.clip(obj_Thw, 0.0, 1.0)
    if obj_Thw.shape != bg_Thw.shape:
        raise DataError(f"Object map {obj_Thw.shape} and background map {bg_Thw.shape} differ in size.")
    difference: FloatTHW = np.clip(obj_Thw - bg_Thw, 0.0, 1.0)
    return difference


def minmax(attn_Thw: FloatTHW, *, per_frame: bool = False) -> FloatTHW:
    """``(x - min)/(max - min)``, over the volume or frame by frame. A constant map becomes 0.

    >>> import numpy as np
    >>> minmax(np.array([[[1.0, 2.0, 5.0]]], np.float32)).tolist()
    [[[0.0, 0.25, 1.0]]]
    """
    axes = (1, 2) if per_frame else (0, 1, 2)
    low = attn_Thw.min(axis=axes, keepdims=True)
    span = attn_Thw.max(axis=axes, keepdims=True) - low
    out: FloatTHW = (attn_Thw - low) / np.where(span == 0, np.float32(1), span)
    return out


def repeat_in_time(video_Thw: FloatTHW, frames: int) -> FloatTHW:
    """The video map with one slice per sampled frame.

    A model that merges frames in pairs has half the slices: each is repeated; with an odd number of
    frames the last repetition is dropped.

    Raises:
        DataError: the number of slices doesn't come from that number of frames.
    """
    if len(video_Thw) == frames:
        return video_Thw
    if len(video_Thw) != -(-frames // 2):
        raise DataError(f"A video map of {len(video_Thw)} slices can't belong to {frames} frames.")
    return np.repeat(video_Thw, 2, axis=0)[:frames]


def resize(attn_Thw: FloatTHW, size: tuple[int, int]) -> FloatTHW:
    """Bilinear resize of each slice, ``align_corners=False``, no antialiasing."""
    if attn_Thw.shape[1:] == size:
        return np.asarray(attn_Thw, np.float32)
    # Slices as channels of one batch: torch rounds differently when a batch has a single channel.
    maps_1Thw = torch.from_numpy(np.ascontiguousarray(attn_Thw, np.float32))[None]
    resized = torch.nn.functional.interpolate(maps_1Thw, size=size, mode="bilinear", align_corners=False)
    out: FloatTHW = resized[0].numpy()
    return out


def fuse(
    video_Thw: FloatTHW, frame_Thw: FloatTHW, branch: Branch = "both", *, final_minmax: bool = True
) -> FloatTHW:
    """V: mean of the video map and the frame map, then one more min–max over the volume (Eq. 5).

    Args:
        video_Thw: normalised contrast map of the video branch, on its own grid.
        frame_Thw: normalised contrast map of the frame branch, one slice per sampled frame.
        branch: ``both``, or one branch alone (Table 4b).
        final_minmax: the official code's second min–max, absent from the paper.

    Returns:
        ``(T, h, w)`` on the frame grid, float32 in [0, 1]; the largest value is exactly 1 unless the
        volume is constant.
    """
    frame = np.asarray(frame_Thw, np.float32)
    if branch == "frame":
        mixed = frame
    else:
        video = resize(repeat_in_time(np.asarray(video_Thw, np.float32), len(frame)), frame.shape[1:])
        mixed = video if branch == "video" else (video + frame) / np.float32(2)
    return minmax(mixed) if final_minmax else mixed


def attention_volume(obj: Maps, bg: Maps | None, options: Fusion) -> FloatTHW:
    """V from the raw maps, all stages in the official order.

    ``bg``: on the same grids; not needed where it isn't subtracted.
    """
    obj = smoothed(obj, options)
    bg = None if bg is None or options.contrast == "obj_only" else smoothed(bg, options)
    video = contrast(obj.video, None if bg is None else bg.video)
    frame = contrast(obj.frame, None if bg is None else bg.frame)
    return fuse(
        minmax(video), minmax(frame, per_frame=True), options.branch, final_minmax=options.final_minmax
    )


def smoothed(maps: Maps, options: Fusion) -> Maps:
    """Both maps, each with its own kernel (see :func:`smooth`)."""
    return Maps(
        smooth(maps.video, options.video_kernel, options.sigma),
        smooth(maps.frame, options.frame_kernel, options.sigma),
    )


# ── coarse masks straight from the volume (§3.2) ─────────────────────────────


def otsu(volume_hw: FloatTHW) -> BoolHW:
    """Foreground of one map in [0, 1]: 8 bits by truncation, strictly above OpenCV's Otsu threshold."""
    import cv2

    # A product of float32 can exceed 255 by one unit in the last place; uint8 would wrap.
    grey = np.clip(volume_hw * np.float32(255), 0, 255).astype(np.uint8)
    _, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(binary > 0)


def coarse_masks(volume_Thw: FloatTHW, size: tuple[int, int]) -> Iterator[BoolHW]:
    """One mask per slice of V (in [0, 1]), at the clip's (height, width), one by one."""
    for frame_hw in volume_Thw:
        yield otsu(resize(frame_hw[None], size)[0])


# ── points (§3.3); positions are measured at cell centres ────────────────────


def candidate_points(volume_Thw: FloatTHW, frames: Sequence[int], tau_pq: float = 0.8) -> list[HeatPoint]:
    """All cells with ``V ≥ tau_pq``: frames in order, cells of a frame row-major (Eq. 6).

    A constant volume (its largest value is 0) has none, unless ``tau_pq`` is 0. ``frames``: the clip's frame
    of each slice.
    """
    _, height, width = volume_Thw.shape
    return [
        HeatPoint(frames[t], (int(y) + 0.5) / height, (int(x) + 0.5) / width, float(volume_Thw[t, y, x]))
        for t, y, x in np.argwhere(volume_Thw >= np.float32(tau_pq))
    ]


def keypoints(volume_Thw: FloatTHW, frames: Sequence[int], count: int = 100) -> NDArray[np.float64]:
    """The ``count`` highest cells of V (all of a smaller one), highest first (ties in row-major order).

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

"""Frames to the pixels a vision tower expects: sizes, tilings, patches. Pure functions.

Sizes follow the tools the reference runs used (qwen-vl-utils, the GOT-OCR2 and LLaVA-OneVision image
processors); the token grids that follow from them are a test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refseg_bench.backbones.lazy_torch import Tensor, torch
from refseg_bench.errors import DataError

#: Longest side over shortest side beyond which the reference resizing refuses.
_MOST_ELONGATED = 200


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size nearest to an image's whose sides are multiples of ``factor`` and whose area fits.

    Sides round half to even; where the rounded area is too large (small), both sides shrink (grow)
    by one ratio and are cut down (up) to multiples.

    Raises:
        DataError: one side is more than 200 times the other.
    """
    if max(height, width) > _MOST_ELONGATED * min(height, width):
        raise DataError(
            f"A frame of {height}x{width} pixels is too elongated.", allowed=["ratio of the sides up to 200"]
        )
    high = max(factor, round(height / factor) * factor)
    wide = max(factor, round(width / factor) * factor)
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def resize_pil(frame_HWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bicubic resize by Pillow (antialiased), to (height, width)."""
    if frame_HWC.shape[:2] == size:
        return frame_HWC
    image = Image.fromarray(frame_HWC).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


def resize_tensor(frames_TCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic antialiased resize of uint8 tensors, as torchvision-backed processors do it."""
    if tuple(frames_TCHW.shape[-2:]) == size:
        return frames_TCHW
    return torch.nn.functional.interpolate(
        frames_TCHW, size=size, mode="bicubic", align_corners=False, antialias=True
    )


def normalise(frames_TCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 to float32, scaled to [0, 1], less the mean, over the deviation, per channel."""
    shift, spread = (
        torch.tensor(values, dtype=torch.float32, device=frames_TCHW.device).view(1, -1, 1, 1)
        for values in (mean, std)
    )
    return (frames_TCHW.to(torch.float32) / 255.0 - shift) / spread


def to_tensor(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Frames ``HWC`` to one uint8 tensor ``TCHW``."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def patchify(
    frames_TCHW: Tensor, patch: int, merge: int, temporal: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut normalised frames into the flat patches of the Qwen-VL vision towers.

    The last frame is repeated until the number of frames is a multiple of ``temporal``. Patches are
    ordered so that the ``merge``×``merge`` neighbours one token is made of stand together.

    Returns:
        ``(t·h·w, C·temporal·patch²)`` and the grid (t, h, w) in patches.
    """
    short = -len(frames_TCHW) % temporal
    if short:
        frames_TCHW = torch.cat([frames_TCHW, frames_TCHW[-1:].expand(short, -1, -1, -1)])
    frames, channels, height, width = frames_TCHW.shape
    t, h, w = frames // temporal, height // patch, width // patch
    split = frames_TCHW.reshape(t, temporal, channels, h // merge, merge, patch, w // merge, merge, patch)
    ordered = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(t * h * w, channels * temporal * patch * patch), (t, h, w)


# ── InternVL tiles ───────────────────────────────────────────────────────────


def tiling(size: tuple[int, int], tile: tuple[int, int], max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the tiling whose shape is closest to the image's.

    All ``columns·rows ≤ max_tiles`` are tried by area; of equally close ones a later one wins only if
    the image covers more than half of it.
    """
    height, width = size
    options = sorted(
        ((c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles),
        key=lambda option: option[0] * option[1],
    )
    best, closest = (1, 1), math.inf
    for columns, rows in options:
        distance = abs(width / height - columns / rows)
        covered = height * width > 0.5 * tile[0] * tile[1] * columns * rows
        if distance < closest or (distance == closest and covered):
            best, closest = (columns, rows), distance
    return best


def cut_tiles(image_CHW: Tensor, rows: int, columns: int) -> Tensor:
    """Cut an image into rows×columns equal tiles, row-major: ``(rows·columns, C, h, w)``."""
    channels, height, width = image_CHW.shape
    split = image_CHW.reshape(channels, rows, height // rows, columns, width // columns)
    return split.permute(1, 3, 0, 2, 4).reshape(rows * columns, channels, height // rows, width // columns)


def join_tiles(values: NDArray[np.float32], rows: int, columns: int, side: int) -> NDArray[np.float32]:
    """Per-tile maps ``(rows·columns·side²,)`` to one map ``(rows·side, columns·side)``."""
    split = values.reshape(rows, columns, side, side)
    return split.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


# ── LLaVA-OneVision any-resolution canvas ────────────────────────────────────


def best_canvas(size: tuple[int, int], options: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas (height, width) that keeps most of the image's pixels, then wastes the least."""
    height, width = size
    best, kept, wasted = options[0], -1, math.inf
    for canvas_height, canvas_width in options:
        scale = min(canvas_width / width, canvas_height / height)
        usable = min(int(width * scale) * int(height * scale), width * height)
        waste = canvas_height * canvas_width - usable
        if usable > kept or (usable == kept and waste < wasted):
            best, kept, wasted = (canvas_height, canvas_width), usable, waste
    return best


def fit_into(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image scaled to touch the canvas, sides rounded up."""
    height, width = size
    scale_h, scale_w = canvas[0] / height, canvas[1] / width
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * scale_h), canvas[1])


def pad_centred(frame_HWC: NDArray[np.uint8], canvas: tuple[int, int]) -> NDArray[np.uint8]:
    """Black borders up to the canvas, the odd pixel at the bottom and right."""
    top, extra_h = divmod(canvas[0] - frame_HWC.shape[0], 2)
    left, extra_w = divmod(canvas[1] - frame_HWC.shape[1], 2)
    return np.pad(frame_HWC, ((top, top + extra_h), (left, left + extra_w), (0, 0)))


def unpadded(size: tuple[int, int], grid: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a padded canvas' token grid that show the image."""
    height, width = size
    rows, columns = grid
    if width / height > columns / rows:
        border = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(border, rows - border), slice(0, columns)
    border = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(border, columns - border)


def shrunk(grid: tuple[int, int], side: int, max_tiles: int) -> tuple[int, int]:
    """The grid after the shrink that keeps a picture's tokens near ``max_tiles`` tiles."""
    ratio = math.sqrt(grid[0] * grid[1] / (max_tiles * side**2))
    if ratio > 1.1:
        return int(grid[0] // ratio), int(grid[1] // ratio)
    return grid

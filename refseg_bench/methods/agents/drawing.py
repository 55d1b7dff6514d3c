"""What a chat model is shown of masks: numbered overlays, contours, crops, mosaics.

Pure functions of frames, masks and ids with a fixed font and fixed colours: the same input gives the same
pixels, which are part of what a kept reply goes by. Images are uint8 RGB ``(H, W, 3)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from refseg_bench.types import BoolHW

Uint8HWC = NDArray[np.uint8]

#: Object number n has colour n modulo their count: far apart in hue, light enough for black digits.
COLOURS = (
    (255, 90, 90), (90, 200, 90), (90, 150, 255), (255, 210, 60), (220, 110, 255), (80, 220, 220),
    (255, 150, 60), (180, 230, 90), (255, 140, 200), (150, 130, 255), (200, 170, 120), (170, 190, 200),
)  # fmt: skip


def overlay(
    frame_HWC: Uint8HWC, masks: Sequence[BoolHW | None], ids: Sequence[int], opacity: float = 0.4
) -> Uint8HWC:
    """Masks as coloured areas with an outline and their number.

    ``masks``: one per object at its size, ``None`` or empty = not in this picture; ``ids``: the numbers.

    >>> import numpy as np
    >>> frame = np.zeros((40, 40, 3), np.uint8)
    >>> shown = overlay(frame, [np.eye(40, dtype=bool)], [1])
    >>> bool((shown != frame).any()), bool((frame == 0).all())
    (True, True)
    """
    out = frame_HWC.copy()
    present = [
        (mask, number) for mask, number in zip(masks, ids, strict=True) if mask is not None and mask.any()
    ]
    for mask_HW, number in present:
        colour = np.array(COLOURS[number % len(COLOURS)])
        out[mask_HW] = np.round(out[mask_HW] * (1 - opacity) + colour * opacity).astype(np.uint8)
    for mask_HW, number in present:
        out = contour(out, mask_HW, COLOURS[number % len(COLOURS)], width=2)
    for mask_HW, number in present:
        # The place deepest inside the mask: the label lies on its object, also on a ring.
        depth = cv2.distanceTransform(np.pad(mask_HW, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        row, column = divmod(int(np.argmax(depth)), depth.shape[1])
        _put(out, label(str(number)), row, column)
    return out


def contour(
    frame_HWC: Uint8HWC, mask_HW: BoolHW, colour: tuple[int, int, int] = (255, 0, 0), width: int = 3
) -> Uint8HWC:
    """The outline of a mask, drawn inwards, ``width`` pixels.

    >>> import numpy as np
    >>> mask = np.zeros((9, 9), bool)
    >>> mask[2:7, 2:7] = True
    >>> int((contour(np.zeros((9, 9, 3), np.uint8), mask, width=1) > 0).any(axis=2).sum())
    16
    """
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inner = cv2.erode(mask_HW.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    out = frame_HWC.copy()
    out[mask_HW & (inner == 0)] = colour
    return out


def extent(mask_HW: BoolHW) -> tuple[int, int, int, int]:
    """The box of a mask that isn't empty: (x0, y0, x1, y1) in pixels, the last column and row left out.

    >>> import numpy as np
    >>> extent(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1, 1, 3, 2)
    """
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def crop(frame_HWC: Uint8HWC, box: tuple[int, int, int, int], margin: float = 0.0) -> Uint8HWC:
    """A box with a margin on each side, as a share of the box's own sides, as far as the picture goes."""
    x0, y0, x1, y1 = box
    dx, dy = round((x1 - x0) * margin), round((y1 - y0) * margin)
    return frame_HWC[max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx]


def frame_box(frame_HWC: Uint8HWC, box: tuple[int, int, int, int]) -> Uint8HWC:
    """A box drawn as a red line, inwards."""
    mask = np.zeros(frame_HWC.shape[:2], np.bool_)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return contour(frame_HWC, mask)


def beside(images: Sequence[Uint8HWC], height: int = 448) -> Uint8HWC:
    """Pictures side by side at one height, white between them."""
    scaled = [
        np.asarray(
            Image.fromarray(image).resize(
                (max(1, round(image.shape[1] * height / image.shape[0])), height), Image.Resampling.BICUBIC
            )
        )
        for image in images
    ]
    white = np.full((height, 8, 3), 255, np.uint8)
    parts = [part for image in scaled for part in (image, white)]
    return np.concatenate(parts[:-1], axis=1)


def mosaic(images: Sequence[Uint8HWC], names: Sequence[str], columns: int = 4) -> Uint8HWC:
    """Pictures of one size in rows, each with its name at the upper left; black where none is left.

    >>> import numpy as np
    >>> mosaic([np.zeros((30, 40, 3), np.uint8)] * 5, list("abcde"), columns=2).shape
    (90, 80, 3)
    """
    height, width = images[0].shape[:2]
    out = np.zeros((math.ceil(len(images) / columns) * height, columns * width, 3), np.uint8)
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        row, column = divmod(place, columns)
        cell = out[row * height : (row + 1) * height, column * width : (column + 1) * width]
        cell[:] = image
        tag = label(name)
        _put(cell, tag, tag.shape[0] // 2, tag.shape[1] // 2)
    return out


def label(text: str, scale: int = 2) -> Uint8HWC:
    """Words as black pixels on white, in a bitmap font that is the same everywhere."""
    font = ImageFont.load_default_imagefont()
    inked = font.getmask(text, mode="1")
    width, height = inked.size
    ink = np.array(inked, np.uint8).reshape(height, width) > 0
    ink = np.pad(ink, 1).repeat(scale, axis=0).repeat(scale, axis=1)
    return np.where(ink[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)


def _put(out_HWC: Uint8HWC, tag_HWC: Uint8HWC, row: int, column: int) -> None:
    """Paste a label centred at a place, moved inside the picture, cut where it is larger than that."""
    height, width = (min(a, b) for a, b in zip(tag_HWC.shape[:2], out_HWC.shape[:2], strict=True))
    top = min(max(0, row - height // 2), out_HWC.shape[0] - height)
    left = min(max(0, column - width // 2), out_HWC.shape[1] - width)
    out_HWC[top : top + height, left : left + width] = tag_HWC[:height, :width]

"""Decode frames. One reader for all datasets, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from refseg_bench.errors import DataError

#: What Pillow raises on damaged files, by format and place of the damage.
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header, without decoding its pixels.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise _missing(path) from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode an image of any mode to RGB uint8 ``(height, width, 3)``.

    EXIF rotation is *not* applied: annotations are drawn on the stored pixels.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise _missing(path) from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _missing(path: Path) -> DataError:
    return DataError(
        "A frame is missing.",
        where=path,
        cure="Unpack the dataset again; `refseg data verify NAME` lists everything that is missing.",
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"A frame can't be decoded ({type(error).__name__}: {error}).",
        where=path,
        cure="Replace the file; `refseg data verify NAME` lists every unreadable frame.",
    )

"""Read mask PNGs: exact, and several times faster than an image library where the file is simple.

Three readings of one file, because the evaluators differ: the *label* (palette index or grey
level), the *binary* mask (nonzero = foreground) and the *grey* level OpenCV would give (the
luminance of a palette's colour). Palette, 8-bit grey and 1-bit files are inflated and unfiltered
here; everything else (interlaced, 2/4/16-bit grey, RGB) goes through Pillow or OpenCV.
"""

from __future__ import annotations

import importlib
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import DataError
from refseg_bench.metrics import kernel

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
Uint8HW = NDArray[np.uint8]


@cache
def inflater() -> Callable[[bytes, int, int], bytes]:
    """The fastest zlib at hand: zlib-ng, isal, else the standard library's; for raw deflate data."""
    if os.environ.get("REFSEG_KERNEL") != "plain":
        for module in ("zlib_ng.zlib_ng", "isal.isal_zlib"):
            try:
                found: Callable[[bytes, int, int], bytes] = importlib.import_module(module).decompress
            except ImportError:
                continue
            return found
    return zlib.decompress


def read_labels(path: Path) -> Uint8HW:
    """The id map of a file: palette index or grey level, ``(height, width)``.

    Raises:
        DataError: the file is missing, torn, or holds colours instead of ids.
    """
    data = _bytes(path)
    simple = _simple(data, path)
    if simple is not None:
        return simple
    pixels, mode = _pillow(data, path)
    if pixels.ndim != 2 or mode == "I;16":
        raise DataError(
            f"An id map must have one 8-bit channel; this PNG has mode {mode}.",
            where=path,
            allowed=("palette (P)", "grey (L)", "1"),
            cure="Write object ids as palette indices, not as colours.",
        )
    return pixels


def read_binary(path: Path) -> NDArray[np.bool_]:
    """The mask of a file of mode 1, L, P or RGB: nonzero = foreground (an alpha channel is ignored).

    Raises:
        DataError: the file is missing or torn.
    """
    data = _bytes(path)
    simple = _simple(data, path)
    if simple is not None:
        return np.asarray(simple != 0)
    pixels, _ = _pillow(data, path)
    return np.asarray(pixels != 0 if pixels.ndim == 2 else (pixels != 0).any(axis=2))


def read_grey(path: Path) -> Uint8HW:
    """Grey levels as ``cv2.imread(path, IMREAD_GRAYSCALE)`` gives them.

    A palette file therefore gives the *luminance* of its colours, a 1-bit file 0 and 255.

    Raises:
        DataError: the file is missing or torn.
    """
    import cv2

    data = _bytes(path)
    if _header(data, path)[2:] == (8, _GREY):
        simple = _simple(data, path)
        if simple is not None:
            return simple
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise _torn(path, "OpenCV can't decode it")
    return np.asarray(grey, np.uint8)


def parse_header(start: bytes, name: str) -> tuple[int, int, int, int]:
    """(height, width, bit depth, colour type) from the first 33 bytes of a file.

    Raises:
        DataError: it is no PNG.
    """
    return _header(start, Path(name))


def values_of(data: bytes, name: str) -> list[int]:
    """The values that occur in an 8-bit grey file, ascending.

    Raises:
        DataError: the file is torn.
    """
    simple = _simple(data, Path(name))
    pixels = _pillow(data, Path(name))[0] if simple is None else simple
    return [int(v) for v in np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))]


def header(path: Path) -> tuple[int, int, int, int]:
    """(height, width, bit depth, colour type) from the file's first bytes.

    Raises:
        DataError: the file is missing or no PNG.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(33)
    except OSError as error:
        raise _absent(path, error) from error
    return _header(start, path)


def _header(data: bytes, path: Path) -> tuple[int, int, int, int]:
    if len(data) < 33 or not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR":
        raise _torn(path, "it is no PNG")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    return height, width, depth, colour


def _bytes(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as handle:
            return handle.read()
    except OSError as error:
        raise _absent(path, error) from error


def _simple(data: bytes, path: Path) -> Uint8HW | None:
    """Stored values of a palette, 8-bit or 1-bit grey file without interlace, else ``None``."""
    height, width, depth, colour = _header(data, path)
    if data[28] or not (colour == _PALETTE or (colour == _GREY and depth in (1, 8))):
        return None
    stride = (width * depth + 7) // 8
    packed: list[bytes] = []
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind == b"IDAT":
            # The checksum of the packed bytes, not that of the (a hundred times longer) pixels.
            if (
                zlib.crc32(data[at + 4 : at + 8 + length]).to_bytes(4, "big")
                != data[at + 8 + length : at + 12 + length]
            ):
                raise _torn(path, "its checksum is wrong")
            packed.append(data[at + 8 : at + 8 + length])
        elif kind == b"IEND":
            break
        at += 12 + length
    stream = packed[0] if len(packed) == 1 else b"".join(packed)
    if len(stream) < 6 or stream[0] & 15 != 8 or stream[1] & 32:
        raise _torn(path, "it holds no pixels")
    try:
        raw = inflater()(stream[2:-4], -15, height * (stride + 1))
    except Exception as error:
        # Each zlib has an error class of its own; none of them shares a base.
        if type(error).__name__ != "error" and not isinstance(error, zlib.error):
            raise
        raise _torn(path, str(error)) from error
    if len(raw) != height * (stride + 1):
        raise _torn(path, f"{len(raw)} bytes of pixels instead of {height * (stride + 1)}")
    rows = kernel.unfilter(raw, height, stride)
    if rows is None or depth == 8:
        return rows
    return np.ascontiguousarray(_unpacking(depth)[rows].reshape(height, -1)[:, :width])


@cache
def _unpacking(depth: int) -> Uint8HW:
    """The pixels in each value of a byte, leftmost first: ``(256, 8 / depth)``."""
    shifts = np.arange(8 - depth, -1, -depth)
    return ((np.arange(256)[:, None] >> shifts) & ((1 << depth) - 1)).astype(np.uint8)


def _pillow(data: bytes, path: Path) -> tuple[NDArray[Any], str]:
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            plain = mode in ("1", "L", "P", "RGB", "I;16", "I")
            wanted = mode[:-1] if mode in ("RGBA", "LA") else "RGB"
            pixels = np.asarray(image if plain else image.convert(wanted))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _torn(path, str(error)) from error
    if mode.startswith("I"):
        return pixels, "I;16"
    return (pixels.view(np.uint8) if pixels.dtype == np.bool_ else pixels), mode


def _absent(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("A mask is missing.", where=path)
    return DataError(f"A mask can't be read ({error.strerror}).", where=path)


def _torn(path: Path, why: str) -> DataError:
    return DataError(f"A mask can't be decoded: {why}.", where=path, cure="Write the file again.")

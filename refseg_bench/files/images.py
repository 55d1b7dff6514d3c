"""Decode pictures. One reader for all frames and photos, with errors that name the file."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from refseg_bench.errors import DataError
from refseg_bench.files.store_io import MOST_PIXELS, look, open_regular

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

#: What is decoded, whatever a file is called. Other formats never reach their decoder: that of
#: PostScript would run a program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")

#: What Pillow raises on damaged files, by format and place of the damage.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

#: EXIF orientation → what brings the stored picture upright; 5 to 8 swap its sides.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def open_image(source: Path | bytes) -> Iterator[Image.Image]:
    """A picture of an allowed format and size; its pixels are decoded in the block.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, too many pixels, or several pictures in one file.
        Exception: any of :data:`UNREADABLE`, also from the block.
    """
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
        )
        try:
            image = stack.enter_context(Image.open(handle, formats=FORMATS))
        except UnidentifiedImageError:
            raise ValueError(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
        if image.height * image.width > MOST_PIXELS:
            raise ValueError(f"{image.height} x {image.width} are more than {MOST_PIXELS} pixels")
        # The second picture of a camera's JPEG (MPO) is a preview.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise ValueError("it holds several pictures, one was expected")
        yield image


def image_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """(height, width) from the file's header, without decoding its pixels.

    ``upright``: after the turn that the header asks for (EXIF orientation).

    Raises:
        DataError: the file is missing or no image.
    """
    with _told(path), open_image(path) as image:
        swapped = upright and orientation(image) >= 5
        return (image.width, image.height) if swapped else (image.height, image.width)


#: Pictures of the last two calls of :func:`read_ahead`, by file and its state.
_ahead: deque[dict[tuple[Any, ...], Future[NDArray[np.uint8]]]] = deque(maxlen=2)


@functools.cache
def _decoder() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


def read_ahead(paths: Iterable[Path], *, upright: bool = False) -> None:
    """Have a thread decode pictures before :func:`read_rgb` is asked for them, which gives each out once.

    Of former calls only the last one's are kept. A file that can't be read, or is changed meanwhile, is read
    when it is asked for: so errors are told there.
    """
    for future in _ahead[0].values() if len(_ahead) == 2 else ():
        future.cancel()
    _ahead.append({_state(path, upright): _decoder().submit(_decoded, path, upright) for path in paths})


def _state(path: Path, upright: bool) -> tuple[Any, ...]:
    with contextlib.suppress(OSError):
        return path, upright, *look(path)
    return path, upright


def read_rgb(path: Path, *, upright: bool = False) -> NDArray[np.uint8]:
    """Decode an image of any mode to RGB uint8 ``(height, width, 3)``; an alpha channel is left out.

    ``upright`` turns the picture as its header asks for (EXIF orientation). Not for frames of video
    sets: their annotations are drawn on the stored pixels.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    for pictures in _ahead:
        future = pictures.pop(_state(path, upright), None)
        if future is not None and not future.cancel() and future.exception() is None:
            return future.result()
    return _decoded(path, upright)


def _decoded(path: Path, upright: bool) -> NDArray[np.uint8]:
    with _told(path), open_image(path) as image:
        turn = TURNS.get(orientation(image)) if upright else None
        plain = _rgb(image)
        if plain.getbbox() is None and lower_bytes(path)[..., :3].any():
            raise ValueError("its 16-bit values are all below 256: as 16 bits it is black")
        return np.asarray(plain if turn is None else plain.transpose(turn))


def lower_bytes(source: Path | bytes) -> NDArray[np.uint8]:
    """The lower byte of every 16-bit value of a grey or colour picture; nothing but 0 of any other.

    Pillow drops it, and may be made to take it for the upper one. Raises what :func:`open_image` does.
    """
    opened: Any = open_image(source)
    with opened as image:
        tile = next(iter(getattr(image, "tile", ())), (None, None, None, ""))
        raw, *more = [tile[3]] if isinstance(tile[3], str) else tile[3]
        if image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint8)[..., None]
        if image.mode not in ("RGB", "RGBA") or str(raw)[-4:-1] != ";16":
            return np.zeros((1, 1, 1), np.uint8)
        swapped = raw[:-1] + ("L" if raw[-1] == "B" else "B")
        image.tile = [getattr(type(tile), "_make", tuple)((*tile[:3], (swapped, *more) if more else swapped))]
        return np.asarray(image)


def turn_in_words(path: Path, *, upright: bool = False) -> str:
    """The end of an error about a picture's size, where its header asks for a turn; else empty."""
    with contextlib.suppress(*UNREADABLE), open_image(path) as image:
        turn = orientation(image)
        if turn != 1:
            done = "which was followed" if upright else "which this data set doesn't follow"
            return f" Its header asks for a turn (EXIF orientation {turn}), {done}."
    return ""


def stored_upright(path: Path) -> bool:
    """True for a JPEG without a turn in its header: what a browser shows is what is stored.

    Raises:
        DataError: the file is missing or no image.
    """
    with _told(path), open_image(path) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and orientation(image) == 1


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of its file, in memory: Pillow tells nothing of why a file can't be written."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would cut 16-bit values at 255: all white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit values (mode {image.mode}) without a known range")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        # The alpha channel goes its own way: Pillow would blend or warn.
        image = image.convert("RGBA")
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """A picture's EXIF orientation, 1 to 8; 1 where there is none or the header is damaged."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        found = exif.get(0x0112)
    except UNREADABLE:
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            "A frame is missing.",
            where=path,
            hint="Unpack the dataset again; `refseg data verify NAME` lists everything that is missing.",
        ) from None
    except UNREADABLE as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"A frame can't be decoded ({told or type(error).__name__}).",
            where=path,
            hint="Replace the file; `refseg data verify NAME` lists every unreadable frame.",
        ) from error

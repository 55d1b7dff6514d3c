"""Read mask files: exact, and several times faster than an image library where the file is simple.

Two readings of one file, because the evaluators differ: the *label* (palette index or grey level,
as Pillow gives it) and the *grey* level OpenCV gives (the luminance of a palette's colour), of which
a binary mask is the part above 0. Palette, 8-bit grey and 1-bit files are inflated and unfiltered
here; everything else (interlaced, 2/4/16-bit grey, RGB, other formats) goes through Pillow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng as zlib

from refseg_bench.errors import DataError
from refseg_bench.files import compiled
from refseg_bench.files.store_io import MOST_PIXELS, read_bytes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
#: Inflated bytes that no small file can pass: deflate packs at most 1032 into one.
_MUCH, _DENSEST = 1 << 28, 1032
Uint8HW = NDArray[np.uint8]
#: Kind → begin and end of the content of a file's chunk.
_Chunks = dict[bytes, tuple[int, int]]
#: The length of a chunk's content and its kind; the checksum at its end.
_CHUNK, _CRC = struct.Struct(">I4s").unpack_from, struct.Struct(">I").pack

#: How an id map of a colour type is read, in words; and a mask of a mode.
_READ_AS_IDS = {_GREY: "ids, grey level", _PALETTE: "ids, palette index"}
_READ_AS = {
    "1": "1-bit grey",
    "L": "grey",
    "P": "palette, luminance",
    "I;16": "16-bit grey, upper byte",
    "LA": "grey, alpha ignored",
    "RGB": "RGB, luminance",
    "RGBA": "RGB, luminance, alpha ignored",
}
#: What is added where the indices of a palette are probably none of the ids that its colours stand for.
REORDERED = ", though the colours of DAVIS are in another order"
_IDENTITY = np.arange(256, dtype=np.uint8)
_ONE_BIT = np.where(_IDENTITY, 255, 0).astype(np.uint8)


class MaskFault(DataError):
    """A mask file that can't be read.

    Attributes:
        kind: ``missing``, ``unreadable``, ``torn``, of another ``mode`` than the reading allows, or ``flat``
            where the tools' reading sees all background or all foreground though the stored pixels differ.
    """

    kind = "torn"


def read_labels(path: Path) -> tuple[Uint8HW, str]:
    """The id map of a file, ``(height, width)``, and how it is read: palette index or grey level.

    Raises:
        MaskFault: the file is missing, torn, or holds colours instead of ids.
    """
    data = _bytes(path)
    simple = _simple(data, path)
    if simple is not None:
        return simple[0], _ids_in_words(data, simple[1])
    pixels, mode, form, palette, _ = _pillow(data, path)
    if mode not in ("P", "L", "1", "I;16") or lossy(form) or pixels.max() > 255:
        raise _fault(
            "mode",
            f"An id map must have one 8-bit channel, stored without loss; this {form} has mode {mode}.",
            path,
            "Write object ids as palette indices or grey levels of an 8-bit PNG: colours can't be turned "
            "back into object ids safely.",
        )
    words = _READ_AS_IDS[_PALETTE if mode == "P" else _GREY]
    return pixels.astype(np.uint8), words + REORDERED * _is_reordered(palette)


def _ids_in_words(data: bytes, chunks: _Chunks) -> str:
    palette = data[slice(*chunks[b"PLTE"])] if data[25] == _PALETTE and b"PLTE" in chunks else b""
    return _READ_AS_IDS[data[25]] + REORDERED * _is_reordered(palette)


@lru_cache(maxsize=64)
def _is_reordered(palette: bytes) -> bool:
    """Whether a palette has the colours of DAVIS (VOC's) in another order, as optimisers of PNGs leave it."""
    bits = [[sum((n >> 3 * b + c & 1) << 7 - b for b in range(3)) for c in range(3)] for n in range(256)]
    ids = {bytes(colour): n for n, colour in enumerate(bits)}
    # DAVIS writes 191 for VOC's 192; black at the end is filling.
    colours = palette.replace(b"\xbf", b"\xc0").rstrip(b"\0")
    found = [ids.get(colours[at : at + 3].ljust(3, b"\0")) for at in range(0, len(colours), 3)]
    # VOC's greys alone are levels, not objects.
    return None not in found and not {0, 7, 56, 63}.issuperset(found) and found != [*range(len(found))]


def blended(maps: Iterable[Uint8HW]) -> bool:
    """Whether id maps change in steps along their rows, as resized or packed ones do: some ids are blends."""
    between = edges = 0
    for labels in maps:
        left, middle, right = labels[:, :-2], labels[:, 1:-1], labels[:, 2:]
        steps = ((left < middle) & (middle < right)) | ((left > middle) & (middle > right))
        between += int(np.count_nonzero(steps))
        edges += int(np.count_nonzero(left != middle))
    return 10 * between > edges


def read_regions(path: Path, size: tuple[int, int]) -> tuple[dict[int, Any], str] | None:
    """The ids of a file made ready for comparison, and how it is read; ``None`` where it isn't that simple.

    Then, and where something is wrong, :func:`read_labels` reads or tells.
    """
    if compiled.KERNEL is None:
        return None
    data = _bytes(path)
    found = _inflated(data, path)
    regions = compiled.KERNEL.from_rows(found[0], *size) if found and found[1] == (*size, 8) else None
    return None if regions is None or found is None else (regions, _ids_in_words(data, found[2]))


def read_mask(path: Path, above: int = 0) -> tuple[NDArray[np.bool_], str]:
    """The mask of a file as the tools read it: where the grey level OpenCV gives is above a value, mostly 0.

    Returns:
        The mask, and the encoding found: ``"0/255 grey"``, ``"0/38 palette, luminance"`` …; ``"soft
        grey, above 0"`` where there are many values between.

    Raises:
        MaskFault: the file is missing or torn, or that reading makes one level of pixels that differ: in
            what it leaves out (alpha channel, palette entries of one luminance, the lower byte of 16 bits),
            or since all are above 0, from 128 or less on.
    """
    stored, levels, kind = _stored(_bytes(path), path)
    mask, value, background = compiled.split(stored)
    # Nearly all masks hold one value besides 0; finding all values takes a hundred times as long.
    present = [0] * background + [value] * (value > 0)
    if value < 0:
        occurs = np.zeros(256, np.bool_)
        occurs[stored] = True
        present = np.flatnonzero(occurs).tolist()
    seen = [int(levels[v]) for v in present]
    # What fills a picture, saved as soft levels, has high ones alone: no background stands at those.
    if len(seen) > 1 and (len(set(seen)) == 1 or 128 >= min(seen) > above == 0):
        raise _flat(path, kind, min(seen) if len(set(seen)) > 1 else 0)
    if any((level > above) != (v > 0) for level, v in zip(seen, present, strict=True)):
        mask = (levels > above)[stored]
    values = sorted(set(seen) - {0})
    named = "soft" if len(values) > 4 else "/".join(map(str, (0, *values))) if values else "empty"
    return mask, f"{named} {kind}" + (f", above {above}" if above or named == "soft" else "")


def read_grey(path: Path) -> Uint8HW:
    """Grey levels as ``cv2.imread(path, IMREAD_GRAYSCALE)`` gives them.

    A palette file therefore gives the *luminance* of its colours, a 1-bit file 0 and 255.

    Raises:
        MaskFault: as :func:`read_mask`.
    """
    stored, levels, _ = _stored(_bytes(path), path)
    return stored if levels is _IDENTITY else np.asarray(levels[stored])


def _stored(data: bytes, path: Path) -> tuple[Uint8HW, Uint8HW, str]:
    """Stored values, the grey level of each value ``(256,)``, and how the file is read, in words."""
    simple = _simple(data, path)
    # OpenCV turns a picture as its header asks for; what is transparent is looked at closely.
    if simple is None or simple[1].keys() & {b"eXIf", b"tRNS"}:
        grey, kind = _slow(data, path)
        return grey, _IDENTITY, kind
    pixels, chunks = simple
    if data[25] == _GREY:
        return (pixels, _IDENTITY, _READ_AS["L"]) if data[24] == 8 else (pixels, _ONE_BIT, _READ_AS["1"])
    if b"PLTE" not in chunks:
        raise _torn(path, "it has no palette")
    return pixels, _luminances(data[slice(*chunks[b"PLTE"])]), _READ_AS["P"]


@lru_cache(maxsize=64)
def _luminances(palette: bytes, rounded: bool = False) -> Uint8HW:
    """The grey level of every palette index (see :func:`_weighed`); 0 beyond the palette's end."""
    colours = np.zeros((256, 3), np.int64)
    found = np.frombuffer(palette[: len(palette) // 3 * 3][:768], np.uint8).reshape(-1, 3)
    colours[: len(found)] = found
    return _weighed(colours, rounded)


def _weighed(colours_X3: NDArray[Any], rounded: bool = False) -> NDArray[np.uint8]:
    """Grey levels of RGB colours (a fourth channel is left out), weighed as libpng does for OpenCV.

    For other formats OpenCV rounds, libpng cuts.
    """
    out = np.empty(colours_X3.shape[:-1], np.uint8)
    for start in range(0, len(out), 256):
        part = colours_X3[start : start + 256]
        red, green, blue = (part[..., c].astype(np.uint32) for c in range(3))
        out[start : start + 256] = (9797 * red + 19234 * green + 3737 * blue + (rounded << 14)) >> 15
    return out


def _slow(data: bytes, path: Path) -> tuple[Uint8HW, str]:
    """Grey levels of a file that is not simple, as OpenCV gives them, and how it is read, in words.

    OpenCV itself is not asked: it fills what is cut off, and takes gigabytes where a length is damaged.
    """
    from PIL import Image

    from refseg_bench.files.images import TURNS, lower_bytes

    pixels, mode, form, palette, turn = _pillow(data, path, grey=True)
    if mode not in _READ_AS:
        hint = "Write masks as 8-bit grey PNG, 0 and 255."
        raise _fault("mode", f"This {form} of mode {mode} is no mask.", path, hint)
    if mode == "P":
        grey = _luminances(palette, form != "PNG")[pixels]
    elif mode in ("RGB", "RGBA"):
        grey = _weighed(pixels, form != "PNG")
    elif mode == "LA":
        grey = pixels[..., 0]
    elif mode == "1":
        grey = _ONE_BIT[pixels.view(np.uint8)]
    else:
        grey = (pixels >> 8).astype(np.uint8) if mode == "I;16" else pixels
    kind = _READ_AS[mode] if form == "PNG" else f"{form}, {_READ_AS[mode]}"
    if turn in TURNS:
        kind += ", turned by its header"
        grey = np.asarray(Image.fromarray(grey).transpose(TURNS[turn]))
    # Of 16-bit colours Pillow gives the upper byte alone.
    held = (pixels, lower_bytes(data)[..., :3]) if grey.min() == grey.max() else ()
    if any((values != values[0, 0]).any() for values in held):
        raise _flat(path, kind)
    return np.ascontiguousarray(grey, np.uint8), kind


def parse_header(start: bytes, path: str | Path) -> tuple[int, int, int, int]:
    """(height, width, bit depth, colour type) from the first 33 bytes of a file.

    Raises:
        MaskFault: it is no PNG.
    """
    if len(start) < 33 or not start.startswith(_SIGNATURE) or start[12:16] != b"IHDR":
        raise _torn(path, "it is no PNG")
    width, height, depth, colour = struct.unpack(">IIBB", start[16:26])
    return height, width, depth, colour


def values_of(data: bytes, path: str | Path) -> Uint8HW:
    """The stored values of an 8-bit grey file.

    Raises:
        MaskFault: the file is torn.
    """
    simple = _simple(data, path)
    return _pillow(data, path)[0] if simple is None else simple[0]


def is_png(path: Path) -> bool:
    """True if a file holds a PNG, whatever it is called.

    Raises:
        MaskFault: the file is missing or can't be read.
    """
    return _bytes(path, 8) == _SIGNATURE


def lossy(encoding: str) -> bool:
    """Whether what is stored as :func:`read_mask` tells has blur around its outlines."""
    return "JPEG" in encoding or "lossy" in encoding


def header(path: Path) -> tuple[int, int]:
    """(height, width) from the file's first bytes.

    Raises:
        MaskFault: the file is missing or no picture.
    """
    start = _bytes(path, 33)
    if start.startswith(_SIGNATURE):
        return parse_header(start, path)[:2]
    from refseg_bench.files.images import UNREADABLE, open_image

    try:
        with open_image(path) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise _torn(path, str(error)) from error


def _bytes(path: Path, first: int | None = None) -> bytes:
    try:
        return read_bytes(path, first=first)
    except FileNotFoundError:
        raise _fault("missing", "A mask is missing.", path) from None
    except PermissionError:
        raise _fault("unreadable", "A mask may not be read.", path, "Check its permissions.") from None
    except OSError as error:
        raise _torn(path, error.strerror or str(error)) from error


def _simple(data: bytes, path: str | Path) -> tuple[Uint8HW, _Chunks] | None:
    """Stored values and chunks of a palette, 8-bit or 1-bit grey PNG without interlace, else ``None``."""
    found = _inflated(data, path)
    if found is None:
        return None
    raw, (height, width, depth), chunks = found
    rows = compiled.unfilter(raw, height, (width * depth + 7) // 8)
    if rows is not None and depth < 8:
        rows = np.ascontiguousarray(_unpacking(depth)[rows].reshape(height, -1)[:, :width])
    return None if rows is None else (rows, chunks)


def _inflated(data: bytes, path: str | Path) -> tuple[bytes, tuple[int, int, int], _Chunks] | None:
    """Filtered rows, (height, width, bit depth) and chunks of such a PNG."""
    if not data.startswith(_SIGNATURE):
        return None
    height, width, depth, colour = parse_header(data, path)
    if not 0 < height * width <= MOST_PIXELS:
        raise _torn(path, f"{height} x {width} are no pixels or more than {MOST_PIXELS}")
    if data[28] or not (colour == _PALETTE or (colour == _GREY and depth in (1, 8))):
        return None
    packed: list[bytes] = []
    chunks: _Chunks = {}
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = _CHUNK(data, at)
        begin, end = at + 8, at + 8 + length
        chunks[kind] = begin, end
        at = end + 4
        if kind == b"IDAT":
            # The checksum of the packed bytes, not that of the (a hundred times longer) pixels.
            if _CRC(zlib.crc32(data[begin - 4 : end])) != data[end:at]:
                raise _torn(path, "its checksum is wrong")
            packed.append(data[begin:end])
        elif kind == b"acTL":
            # An animation: the one place that refuses those is asked.
            return None
        elif kind == b"IEND":
            break
    stream = packed[0] if len(packed) == 1 else b"".join(packed)
    if len(stream) < 6 or stream[0] & 15 != 8 or stream[1] & 32:
        raise _torn(path, "it holds no pixels")
    size = height * ((width * depth + 7) // 8 + 1)
    try:
        if len(stream) * _DENSEST <= max(_MUCH, 4 * size):
            raw = zlib.decompress(stream[2:-4], -15, size)
        else:
            raw = zlib.decompressobj(-15).decompress(stream[2:-4], size + 1)
    except zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
        raise _torn(path, str(error)) from error
    if len(raw) != size:
        raise _torn(path, f"{len(raw)} bytes of pixels instead of {size}")
    return raw, (height, width, depth), chunks


@cache
def _unpacking(depth: int) -> Uint8HW:
    """The pixels in each value of a byte, leftmost first: ``(256, 8 / depth)``."""
    shifts = np.arange(8 - depth, -1, -depth)
    return ((np.arange(256)[:, None] >> shifts) & ((1 << depth) - 1)).astype(np.uint8)


def _pillow(data: bytes, path: str | Path, grey: bool = False) -> tuple[NDArray[Any], str, str, bytes, int]:
    """Stored pixels, mode, format, palette and EXIF orientation of a whole picture.

    ``grey``: of a JPEG take the luminance, which is stored as such.
    """
    from refseg_bench.files.images import UNREADABLE, open_image, orientation

    try:
        with open_image(data) as image:
            if grey:
                image.draft("L", image.size)
            pixels = np.asarray(image)
            palette = bytes(image.getpalette("RGB") or ()) if image.mode == "P" else b""
            form = str(image.format).replace("MPO", "JPEG")
            packed = str(image.info.get("compression")) if form == "TIFF" else ""
            if "jpeg" in packed or "webp" in packed or (form == "WEBP" and b"VP8 " in data):
                form = f"lossy {form}"
            return pixels, image.mode, form, palette, orientation(image)
    except UNREADABLE as error:
        raise _torn(path, str(error)) from error


def _fault(kind: str, what: str, path: str | Path, hint: str | None = None) -> MaskFault:
    fault = MaskFault(what, where=path, hint=hint)
    fault.kind = kind
    return fault


def _flat(path: Path, kind: str, lowest: int = 0) -> MaskFault:
    if lowest:
        told = (
            f"Read as the tools read it ({kind}), this mask has no background: its lowest level is {lowest}"
        )
        hint = "Write background as 0; of predictions --threshold N takes levels above N as foreground."
        return _fault("flat", f"{told}, and all above 0 is foreground.", path, hint)
    return _fault(
        "flat",
        f"Read as the tools read it ({kind}), this mask is one flat level, though its pixels differ.",
        path,
        "Write masks as 8-bit grey PNG, 0 and 255: tools see neither an alpha channel, nor palette entries "
        "of one luminance, nor 16-bit values below 256.",
    )


def _torn(path: str | Path, why: str) -> MaskFault:
    return _fault("torn", f"A mask can't be decoded: {why}.", path, "Write the file again.")

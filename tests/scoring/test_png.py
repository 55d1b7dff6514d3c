"""Masks as the world writes them, held against OpenCV's reading, or refused by name."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.datasets.files import Damage
from refseg_bench.datasets.masks import read_binary
from refseg_bench.files import compiled, png

MASK = np.zeros((20, 33), bool)
MASK[4:15, 7:20] = True
GREY = MASK * np.uint8(255)
EXIF = Image.Exif()
EXIF[0x0112] = 3


def palette(index: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(index.astype(np.uint8), "P")
    picture.putpalette([v for colour in colours for v in colour])
    return picture


def rgb() -> Image.Image:
    return Image.fromarray(GREY).convert("RGB")


def with_alpha(grey: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([grey, alpha], 2).astype(np.uint8), "LA")


BLACK, WHITE, MAROON = (0, 0, 0), (255, 255, 255), (128, 0, 0)

READ = {
    "grey": (Image.fromarray(GREY), {}, "0/255 grey"),
    "0/1": (Image.fromarray(MASK.astype(np.uint8)), {}, "0/1 grey"),
    "1 bit": (Image.fromarray(MASK), {}, "0/255 1-bit grey"),
    "nothing": (Image.fromarray(GREY * 0), {}, "empty grey"),
    "everything": (Image.fromarray(GREY * 0 + 255), {}, "0/255 grey"),
    "palette of the field": (palette(MASK, BLACK, MAROON), {}, "0/38 palette, luminance"),
    "packed palette": (palette(MASK, BLACK, MAROON), {"bits": 1}, "0/38 palette, luminance"),
    "several objects": (
        palette(MASK + MASK.cumsum(1).clip(0, 1), BLACK, MAROON, (0, 128, 0)),
        {},
        "0/38/75 palette, luminance",
    ),
    "white first": (palette(~MASK, WHITE, BLACK), {}, "0/255 palette, luminance"),
    "black in the middle": (palette(MASK + 1, WHITE, BLACK, WHITE), {}, "0/255 palette, luminance"),
    "quantised": (rgb().quantize(2), {}, "0/255 palette, luminance"),
    "adaptive": (rgb().convert("P", palette=Image.Palette.ADAPTIVE, colors=8), {}, "palette, luminance"),
    "RGB": (rgb(), {}, "0/255 RGB, luminance"),
    "opaque": (rgb().convert("RGBA"), {}, "0/255 RGB, luminance, alpha ignored"),
    "grey under alpha": (with_alpha(GREY, 255 - GREY // 2), {}, "0/255 grey, alpha ignored"),
    "transparent palette": (
        palette(MASK, BLACK, WHITE),
        {"transparency": b"\0\xff"},
        "0/255 palette, luminance",
    ),
    "16 bits": (Image.fromarray(MASK * np.uint16(65535)), {}, "0/255 16-bit grey, upper byte"),
    "soft": (Image.fromarray(cv2.GaussianBlur(GREY, (0, 0), 2)), {}, "soft grey"),
    "soft 16 bits": (
        Image.fromarray(cv2.GaussianBlur(GREY, (0, 0), 2) * np.uint16(257)),
        {},
        "soft 16-bit grey, upper byte",
    ),
    "turned": (Image.fromarray(GREY[::-1, ::-1]), {"exif": EXIF}, "0/255 grey, turned by its header"),
    "BMP": (Image.fromarray(GREY), {"format": "BMP"}, "0/255 BMP, grey"),
    "palette BMP": (palette(~MASK, WHITE, BLACK), {"format": "BMP"}, "BMP, palette"),
    "JPEG": (Image.fromarray(GREY), {"format": "JPEG"}, "soft JPEG, grey"),
    "WebP": (rgb(), {"format": "WEBP", "lossless": True}, "0/255 WEBP, RGB"),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("mode", ["plain", "chosen"])
def test_masks_are_what_opencv_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, mode: str
) -> None:
    if mode == "plain":
        monkeypatch.setattr(compiled, "KERNEL", None)
    picture, how, words = READ[case]
    path = tmp_path / "m.png"
    picture.save(path, **{"format": "PNG", **how})
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    mask, found = png.read_mask(path)
    assert np.array_equal(mask, grey > 0)
    assert np.array_equal(png.read_grey(path), grey)
    assert np.array_equal(png.read_mask(path, above=127)[0], grey > 127)
    assert found.startswith(words) or words in found
    if "soft" not in found and case not in ("nothing", "everything", "several objects"):
        assert np.array_equal(mask, MASK)


def test_luminances_are_opencvs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for colours in (2, 9, 256):
        index = np.arange(256).reshape(8, 32) % colours
        palette(index, *map(tuple, rng.integers(0, 256, (colours, 3)).tolist())).save(tmp_path / "m.png")
        expected = cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(png.read_grey(tmp_path / "m.png"), expected)


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("most", [4, 256])
def test_colours_are_weighed_as_opencv_does(tmp_path: Path, form: str, most: int) -> None:
    colours = np.random.default_rng(0).integers(0, most, (20, 33, 3), np.uint8)
    path = tmp_path / "m.png"
    Image.fromarray(colours).save(path, form, **({"lossless": True} if form == "WEBP" else {}))
    expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    found = png.read_grey(path)
    assert np.array_equal(found > 0, expected > 0)
    assert np.abs(found.astype(int) - expected).max() <= (form not in ("PNG", "JPEG"))


FLAT = {
    "in the alpha channel": with_alpha(GREY * 0, GREY),
    "in the alpha channel of white": with_alpha(GREY * 0 + 255, GREY),
    "in the alpha channel of colours": Image.fromarray(np.stack([GREY * 0 + 9] * 3 + [GREY], 2), "RGBA"),
    "black palette": palette(MASK, BLACK, BLACK),
    "palette of one luminance": palette(MASK, WHITE, WHITE),
    "16 bits from 0 to 1": Image.fromarray(MASK.astype(np.uint16)),
    "16 bits from 0 to 255": Image.fromarray(MASK * np.uint16(255)),
    "almost black": Image.fromarray(np.stack([MASK * np.uint8(1), GREY * 0, GREY * 0], 2)),
}


@pytest.mark.parametrize("case", FLAT)
def test_a_mask_that_tools_cannot_see_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.png"
    FLAT[case].save(path)
    assert len(np.unique(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))) == 1
    with pytest.raises(png.MaskFault, match="one flat level") as told:
        png.read_mask(path)
    assert told.value.where == str(path)


@pytest.mark.parametrize("form", ["png", "tif"])
def test_nor_is_one_in_the_lower_bytes_of_16_bit_colours(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"m.{form}"
    cv2.imwrite(str(path), np.repeat(MASK[..., None] * np.uint16(255), 3, axis=2))
    assert form == "tif" or not cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).any()
    with pytest.raises(png.MaskFault, match="one flat level"):
        png.read_mask(path)
    cv2.imwrite(str(path), np.full((*MASK.shape, 3), (0, 7, 9), np.uint16))
    assert not png.read_mask(path)[0].any(), "a plain picture is an empty mask"


NO_BACKGROUND = {
    "levels 1 and 255": (Image.fromarray(np.where(MASK, 255, 1).astype(np.uint8)), 1),
    "colours of a heat map": (palette(MASK, (68, 1, 84), (253, 231, 37)).convert("RGB"), 30),
    "a palette of two colours": (palette(MASK, (200, 0, 0), WHITE), 59),
}


def test_what_fills_its_picture_in_high_levels_is_all_foreground(tmp_path: Path) -> None:
    Image.fromarray(np.where(MASK, 255, 230).astype(np.uint8)).save(tmp_path / "m.png")
    assert png.read_mask(tmp_path / "m.png")[0].all()


@pytest.mark.parametrize("case", NO_BACKGROUND)
def test_a_mask_without_background_is_no_picture_full_of_foreground(tmp_path: Path, case: str) -> None:
    picture, lowest = NO_BACKGROUND[case]
    path = tmp_path / "m.png"
    picture.save(path)
    with pytest.raises(png.MaskFault, match=f"no background: its lowest level is {lowest}, and"):
        png.read_mask(path)
    assert np.array_equal(png.read_mask(path, above=lowest)[0], MASK != 0)
    # In a data set's own files the background of a palette is its index 0.
    if case == "a palette of two colours":
        assert np.array_equal(read_binary(path), MASK != 0)
    else:
        with pytest.raises(Damage, match="no background"):
            read_binary(path)


@pytest.mark.parametrize(
    ("picture", "how", "expected"),
    [
        (palette(MASK * 2, WHITE, BLACK, BLACK), {}, MASK * 2),
        (Image.fromarray(MASK * np.uint8(3)), {"format": "BMP"}, MASK * 3),
        (Image.fromarray(MASK * np.uint16(3)), {}, MASK * 3),
        (Image.fromarray(MASK), {}, MASK),
        (Image.fromarray(MASK * np.uint16(300)), {}, "mode I;16"),
        (Image.fromarray(GREY), {"format": "JPEG"}, "JPEG"),
        (Image.fromarray(GREY), {"format": "TIFF", "compression": "jpeg"}, "lossy TIFF"),
        (rgb(), {}, "mode RGB"),
        (with_alpha(GREY, GREY), {}, "mode LA"),
    ],
)
def test_id_maps_keep_their_ids_or_are_refused(
    tmp_path: Path, picture: Image.Image, how: dict[str, str], expected: object
) -> None:
    path = tmp_path / "m.png"
    picture.save(path, **{"format": "PNG", **how})
    if isinstance(expected, str):
        with pytest.raises(png.MaskFault, match=expected):
            png.read_labels(path)
    else:
        assert np.array_equal(png.read_labels(path)[0], np.asarray(expected))


DAVIS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), *[(0, 0, 0)] * 4, (191, 0, 0)]


@pytest.mark.parametrize("mode", ["plain", "chosen"])
@pytest.mark.parametrize(
    ("colours", "reordered"),
    [
        (DAVIS[:5], False),
        ([*DAVIS[:5], *DAVIS[:1] * 251], False),
        ([BLACK, WHITE], False),
        ([WHITE, BLACK], False),
        ([BLACK, (128, 0, 0), (0, 0, 255)], False),
        ([BLACK, (0, 128, 0), (128, 0, 0)], True),
        ([(128, 0, 0), BLACK], True),
        ([BLACK, (191, 0, 0)], True),
        ([BLACK, (128, 128, 128)], False),
    ],
)
def test_ids_under_a_reordered_palette_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, colours: list, reordered: bool
) -> None:
    if mode == "plain":
        monkeypatch.setattr(compiled, "KERNEL", None)
    for picture, how in ((palette(MASK, *colours), {}), (palette(MASK, *colours), {"format": "TIFF"})):
        picture.save(tmp_path / "m.png", **{"format": "PNG", **how})
        labels, words = png.read_labels(tmp_path / "m.png")
        assert np.array_equal(labels, MASK)
        assert words.endswith(png.REORDERED) == reordered
    palette(MASK, *colours).save(tmp_path / "m.png", bits=8)
    if (found := png.read_regions(tmp_path / "m.png", MASK.shape)) is not None:
        assert found[1].endswith(png.REORDERED) == reordered


def zeros(size: int) -> bytes:
    """A bomb, made without holding what it stands for: the peak of this process is looked at."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def packed(height: int, width: int, pixels: bytes, kind: int = 0) -> bytes:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0), b"IDAT" + pixels, b"IEND"]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (packed(2**31 - 1, 2**31 - 1, b""), "pixels or more"),
        (packed(2**31 - 1, 2**31 - 1, b"", 2), "pixels"),
        (packed(0, 9, b""), "no pixels"),
        (packed(9, 9, zeros(1 << 27)), "pixels instead of 90"),
        (packed(9, 9, zlib.compress(bytes(90)), 3), "no palette"),
        (b"GIF89a" + bytes(60), "it is no JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no JPEG, PNG"),
        (b"", "it is no JPEG, PNG"),
    ],
)
def test_hostile_files_are_told_and_cost_nothing(tmp_path: Path, data: bytes, words: str) -> None:
    import resource

    path = tmp_path / "m.png"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (png.read_mask, png.read_grey):
        with pytest.raises(png.MaskFault, match=words):
            read(path)
    if "palette" not in words:
        with pytest.raises(png.MaskFault, match=words):
            png.read_labels(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_animation_is_no_mask(tmp_path: Path) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "m.png", save_all=True, append_images=[second])
    for read in (png.read_mask, png.read_labels, png.read_grey):
        with pytest.raises(png.MaskFault, match="several pictures"):
            read(tmp_path / "m.png")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.png")
    for path in (tmp_path / "m.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(png.MaskFault, match="no regular file|directory"):
            png.read_mask(path)

"""Pictures as the world writes them: every mode to RGB, turned only where asked, never another format."""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.errors import DataError
from refseg_bench.files import images
from refseg_bench.files.images import image_size, read_rgb, stored_upright

GREY = np.linspace(0, 255, 6 * 10).reshape(6, 10).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_gives_its_colours(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("PA", "CMYK") else "a.png")
    picture = Image.fromarray(np.where(GREY > 127, 255, 0).astype(np.uint8) if mode == "1" else GREY)
    expected = np.asarray(picture)
    if mode == "I;16":
        picture = Image.fromarray(GREY.astype(np.uint16) * 257)
    elif mode == "PA":
        path = tmp_path / "a.png"
        picture = picture.convert("P")
        picture.info["transparency"] = bytes(range(256))
    elif mode == "CMYK":
        picture = picture.convert("RGB").convert("CMYK")
    else:
        picture = picture.convert(mode)
    picture.save(path)
    assert np.array_equal(read_rgb(path), np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_eight_bits_stored_as_sixteen_are_no_black_picture(
    tmp_path: Path, channels: int, ending: str
) -> None:
    path, pixels = tmp_path / f"a.{ending}", np.zeros((6, 10, channels), np.uint16)
    pixels[..., :3] = GREY[..., None]
    cv2.imwrite(str(path), pixels)
    with pytest.raises(DataError, match="all below 256"):
        read_rgb(path)
    pixels[..., :3] = 0
    pixels[..., 3:] = 65535
    cv2.imwrite(str(path), pixels)
    assert not read_rgb(path).any()
    pixels[..., :3] = GREY[..., None].astype(np.uint16) * 257
    cv2.imwrite(str(path), pixels)
    assert np.array_equal(read_rgb(path), np.repeat(GREY[..., None], 3, 2))


def test_transparent_pixels_keep_the_colour_they_are_stored_with(tmp_path: Path) -> None:
    stored = np.zeros((4, 5, 4), np.uint8)
    stored[:2] = (200, 10, 30, 0)
    Image.fromarray(stored).save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png"), stored[..., :3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_turn_in_the_header_is_followed_only_where_asked(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(stored).save(path, exif=exif, quality=95)
    assert image_size(path) == (16, 32)
    assert np.array_equal(read_rgb(path) > 128, stored > 128)
    # Where the stored top left corner lies, by EXIF's definition.
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    if orientation in (6, 8):
        bottom, right = orientation == 8, orientation == 6
    if orientation in (5, 7):
        bottom = right = orientation == 7
    size = (32, 16) if orientation >= 5 else (16, 32)
    turned = read_rgb(path, upright=True) > 128
    assert image_size(path, upright=True) == turned.shape[:2] == size
    rows, columns = (slice(-8, None) if far else slice(0, 8) for far in (bottom, right))
    assert turned[rows, columns].all()
    assert turned.sum() == 8 * 8 * 3
    assert stored_upright(path) == (ending == "jpg" and orientation == 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_turn_is_none(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12garbage")
    assert image_size(tmp_path / "a.jpg", upright=True) == (6, 10)
    assert read_rgb(tmp_path / "a.jpg", upright=True).shape == (6, 10, 3)


def huge_png(height: int, width: int) -> bytes:
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT", b"IEND")
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def write_eps(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def write_animation(path: Path) -> None:
    first = Image.fromarray(GREY)
    first.save(path, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_eps, "it is no JPEG, PNG"),
        (lambda path: Image.fromarray(GREY).save(path, "GIF"), "it is no JPEG, PNG"),
        (lambda path: path.write_bytes(huge_png(2**31 - 1, 2**31 - 1)), "pixels"),
        (lambda path: path.write_bytes(huge_png(40000, 40000)), "pixels"),
        (lambda path: path.write_bytes(b""), "it is no JPEG, PNG"),
        (write_animation, "several pictures"),
        (lambda path: Image.fromarray(GREY.astype(np.float32)).save(path, "TIFF"), "32-bit"),
        (os.mkfifo, "no regular file"),
        (Path.mkdir, "directory"),
    ],
)
def test_what_is_no_picture_is_told(tmp_path: Path, write: object, words: str) -> None:
    path = tmp_path / "a.jpg"
    write(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=words) as told:
        read_rgb(path)
    assert told.value.where == str(path)


def test_a_cut_off_picture_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for ending in ("jpg", "png", "bmp", "webp", "tif"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(DataError, match="can't be decoded"):
            read_rgb(path)


def test_pictures_read_ahead_are_the_same_and_their_errors_come_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for n, path in enumerate(paths):
        Image.new("RGB", (3, 2), (n, 0, 0)).save(path)
    monkeypatch.setattr(images, "_ahead", deque(maxlen=2))
    decoded, plain = list[Path](), images._decoded
    monkeypatch.setattr(images, "_decoded", lambda path, up: (decoded.append(path), plain(path, up))[1])

    def done() -> None:
        images._decoder().submit(int).result()

    images.read_ahead([*paths[:2], tmp_path / "missing.png"])
    done()
    assert read_rgb(paths[0])[0, 0, 0] == 0
    assert decoded.count(paths[0]) == 1
    Image.new("RGB", (3, 2), (9, 0, 0)).save(paths[1])  # another picture by the time it is asked for
    os.utime(paths[1], ns=(1, 1))
    assert read_rgb(paths[1])[0, 0, 0] == 9
    with pytest.raises(DataError, match="missing"):
        read_rgb(tmp_path / "missing.png")
    images.read_ahead(paths[2:3])
    images.read_ahead(paths[3:])
    assert [len(batch) for batch in images._ahead] == [1, 1]  # what was left of the first call is gone
    done()
    assert [read_rgb(path)[0, 0, 0] for path in paths[2:]] == [2, 3]
    assert decoded.count(paths[2]) == decoded.count(paths[3]) == 1

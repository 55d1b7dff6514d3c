"""The compiled kernel gives the plain path's integers, and never reads damaged input."""

import contextlib
import importlib
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_bench.errors import ConfigError, DataError, RefsegError
from refseg_bench.files import compiled as pixelwise
from refseg_bench.files import png
from refseg_bench.scoring import boundary
from refseg_bench.scoring import counts as kernel
from refseg_bench.scoring.labels import FolderLabels, TrackLabels
from refseg_bench.types import MaskTrack, encode_rle
from tests.scoring.test_boundary import draw_mask, mask_pairs


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The extension: the installed one of these sources, else built here; none without a compiler."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module("refseg_bench.files._kernel")
        if getattr(module, "REVISION", 1) == pixelwise.REVISION:
            return module
    folder = tmp_path_factory.mktemp("build")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder),
         "--build-temp", str(folder)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = list(folder.rglob("_kernel*.so"))
    if not found:
        pytest.skip(f"NO COMPILER: the compiled kernel is not tested here.\n{done.stderr[-500:]}")
    spec = importlib.util.spec_from_file_location("_kernel", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bytes_of(mask):
    return np.ascontiguousarray(mask).view(np.uint8)


@given(pair=mask_pairs(), radius=st.sampled_from([None, 0, 1, 3, 8, 18, 40, 70]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_counts_are_bit_equal(compiled, pair, radius):
    radius = boundary.boundary_radius(pair[0].shape) if radius is None else radius
    plain = boundary.compare(boundary.from_mask(pair[0]), boundary.from_mask(pair[1]), radius)
    ours = compiled.compare(*[compiled.from_mask(bytes_of(m)) for m in pair], radius)
    assert ours == plain
    coded = [compiled.from_rle(encode_rle(m), m.shape[1], m.shape[0]) for m in pair]
    assert compiled.compare(*coded, radius) == plain


@pytest.mark.parametrize("size", [(480, 854), (333, 64), (64, 640), (200, 127)])
def test_counts_are_bit_equal_on_large_frames(compiled, size):
    rng = np.random.default_rng(size)
    for kind in ("blob", "noise", "edge", "full"):
        truth = draw_mask(rng, size, kind)
        answer = np.roll(truth, (3, -5), (0, 1)) if kind == "blob" else draw_mask(rng, size, "blob")
        radius = boundary.boundary_radius(size)
        plain = boundary.compare(boundary.from_mask(truth), boundary.from_mask(answer), radius)
        assert compiled.compare(*[compiled.from_mask(bytes_of(m)) for m in (truth, answer)], radius) == plain


@given(seed=st.integers(0, 2**32 - 1), width=st.sampled_from([1, 5, 31, 32, 33, 63, 64, 65, 130]))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_id_maps_give_the_same_objects(compiled, seed, width):
    rng = np.random.default_rng(seed)
    labels = np.zeros((rng.integers(1, 40), width), np.uint8)
    for _ in range(rng.integers(0, 6)):
        y, x = rng.integers(labels.shape[0]), rng.integers(width)
        labels[y : y + rng.integers(1, 20), x : x + rng.integers(1, 40)] = rng.choice([0, 1, 2, 7, 254, 255])
    if rng.random() < 0.2:
        labels = rng.integers(0, 4, labels.shape).astype(np.uint8)
    plain, ours = boundary.from_labels(labels), compiled.from_labels(labels)
    assert list(plain) == list(ours) == [i for i in np.unique(labels).tolist() if i]
    ids = list(plain)
    for a in ids:
        for b in ids:
            assert compiled.compare(ours[a], ours[b], 2) == boundary.compare(plain[a], plain[b], 2)


@given(pair=mask_pairs())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_run_lengths_equal_pycocotools(compiled, pair):
    canvas = np.zeros(pair[0].shape, np.uint8)
    expected = canvas.copy()
    for value, mask in enumerate(pair, start=254):
        coded = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
        assert compiled.encode(bytes_of(mask)) == coded["counts"]
        compiled.paint(coded["counts"], value, canvas)
        expected[coco_mask.decode(coded) == 1] = value
        assert (canvas == expected).all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damaged_run_lengths_are_refused(compiled, seed):
    rng = np.random.default_rng(seed)
    mask = draw_mask(rng, (17, 23), "noise")
    counts = bytearray(encode_rle(mask))
    for _ in range(rng.integers(1, 4)):
        counts[rng.integers(len(counts))] = rng.integers(0, 256)
    canvas = np.zeros((17, 23), np.uint8)
    try:
        region = compiled.from_rle(bytes(counts), 23, 17)
    except ValueError:
        assert not compiled.sound(bytes(counts), 17 * 23)
        with pytest.raises(ValueError, match="damaged"):
            compiled.paint(bytes(counts), 1, canvas)
        assert not canvas.any()
        return
    # What is accepted really is a mask of that size.
    area = compiled.compare(region, region, 1)[1]
    compiled.paint(bytes(counts), 1, canvas)
    assert area == canvas.sum() == int(coco_mask.area({"size": [17, 23], "counts": bytes(counts)}))


@pytest.mark.parametrize("counts", [b"", b"\xff", b"P", encode_rle(np.ones((5, 5), bool)), b"o" * 40])
def test_run_lengths_of_another_size_are_refused(compiled, counts):
    with pytest.raises(ValueError, match="damaged"):
        compiled.from_rle(counts, 9, 9)
    with pytest.raises(ValueError, match="damaged"):
        compiled.paint(counts, 1, np.zeros((9, 9), np.uint8))


def test_wrong_arrays_are_refused(compiled):
    with pytest.raises(ValueError, match="two-dimensional"):
        compiled.from_labels(np.zeros(4, np.uint8))
    with pytest.raises((ValueError, BufferError)):
        compiled.from_labels(np.zeros((4, 6), np.uint8)[:, ::2])
    whole = encode_rle(np.ones((4, 3), bool))
    fixed = np.zeros((4, 3), np.uint8)
    fixed.flags.writeable = False
    for canvas in (fixed, np.zeros((4, 6), np.uint8)[:, ::2], np.zeros((3, 4), np.uint8).T, np.zeros(12)):
        with pytest.raises((ValueError, BufferError)):
            compiled.paint(whole, 1, canvas)
    for value in (-1, 256):
        with pytest.raises(OverflowError):
            compiled.paint(whole, value, np.zeros((4, 3), np.uint8))
    small, large = (compiled.from_mask(np.zeros(s, np.uint8)) for s in ((3, 3), (4, 4)))
    with pytest.raises(ValueError, match="one frame"):
        compiled.compare(small, large, 1)


# ── PNG files ────────────────────────────────────────────────────────────────


def png_bytes(pixels, filters, colour=0):
    """A PNG written by hand, row y with filter ``filters[y]``."""
    import struct

    height, width = pixels.shape
    rows, up = [], np.zeros(width, int)
    for y in range(height):
        now = pixels[y].astype(int)
        left, corner = np.concatenate([[0], now[:-1]]), np.concatenate([[0], up[:-1]])
        p = left + up - corner
        near = np.stack([abs(p - left), abs(p - up), abs(p - corner)]).argmin(0)
        paeth = np.choose(near, [left, up, corner])
        guess = [np.zeros(width, int), left, up, (left + up) // 2, paeth][filters[y]]
        rows.append(bytes([filters[y]]) + ((now - guess) % 256).astype(np.uint8).tobytes())
        up = now

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compress(b"".join(rows))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    if colour == 3:
        out += chunk(b"PLTE", bytes(range(256)) * 3)
    middle = len(packed) // 2
    return out + chunk(b"IDAT", packed[:middle]) + chunk(b"IDAT", packed[middle:]) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["plain", "compiled"])
@pytest.mark.parametrize("which", [[0], [1], [2], [3], [4], [0, 1, 2], [0, 1, 2, 3, 4]])
def test_every_row_filter_is_undone(compiled, tmp_path, monkeypatch, mode, which):
    monkeypatch.setattr(pixelwise, "KERNEL", None if mode == "plain" else compiled)
    rng = np.random.default_rng(len(which))
    for colour in (0, 3):
        pixels = rng.integers(0, 256, (20, 33)).astype(np.uint8)
        path = tmp_path / f"{colour}.png"
        path.write_bytes(png_bytes(pixels, rng.choice(which, 20), colour))
        assert (np.array(Image.open(path)) == pixels).all()
        assert (png.read_labels(path)[0] == pixels).all()
        assert (png.read_mask(path)[0] == (pixels != 0)).all()


def image_rows(rng, filters):
    """The rows of a small PNG, whose filter bytes are below ``filters``."""
    rows = np.zeros(rng.integers((1, 2), (30, 300)), np.uint8)
    kind = rng.integers(4)
    if kind == 0:
        rows[:] = rng.integers(0, 256, rows.shape)
    elif kind == 1:
        rows[:, 1:] = rng.random(rows[:, 1:].shape) < 0.03
    elif kind == 2:
        rows[len(rows) // 3 :, 1:99] = 5
    rows[:, 0] = rng.integers(0, filters, len(rows))
    return rows


@pytest.mark.parametrize("filters", [1, 5, 7])
def test_regions_of_a_png_are_those_of_its_pixels(compiled, filters):
    rng = np.random.default_rng(filters)
    for _ in range(60):
        rows = image_rows(rng, filters)
        height, width = rows.shape[0], rows.shape[1] - 1
        pixels = np.empty((height, width), np.uint8)
        found = compiled.from_rows(rows, height, width)
        if not compiled.unfilter(rows, pixels):
            assert filters > 5
            assert found is None
            continue
        expected = compiled.from_labels(pixels)
        assert found.keys() == expected.keys() == set(np.unique(pixels).tolist()) - {0}
        for number, region in found.items():
            assert len({*compiled.compare(region, expected[number], 0)[:3]}) == 1
        for size in ((height + 1, width), (height, width + 1), (0, width), (height, -1)):
            with pytest.raises(ValueError, match="another size"):
                compiled.from_rows(rows, *size)


@pytest.mark.parametrize("mode", ["plain", "compiled"])
@pytest.mark.parametrize("filters", [1, 5])
def test_id_maps_are_compared_as_they_are_read(compiled, tmp_path, monkeypatch, mode, filters):
    monkeypatch.setattr(pixelwise, "KERNEL", None if mode == "plain" else compiled)
    rng, size = np.random.default_rng(0), (20, 33)
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    paths[0].write_bytes(png_bytes(rng.integers(0, 3, size).astype(np.uint8), rng.integers(0, filters, 20)))
    paths[1].write_bytes(paths[0].read_bytes()[:-40])
    Image.fromarray(np.zeros((20, 34), np.uint8)).save(paths[2])
    maps = FolderLabels((*paths, None), tuple("abcde"), size)
    ours, read = maps.regions(0), kernel.label_regions(maps.frame(0))
    assert ours.keys() == read.keys() == {1, 2}
    assert kernel.compare(ours[1], read[1], 2) == kernel.compare(read[1], ours[1], 2)
    assert set(maps.encodings.values()) == {"ids, grey level"}
    for index, words in enumerate(["decoded", "the clip is", "missing", "no id map"], start=1):
        with pytest.raises(RefsegError, match=words):
            maps.regions(index)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_modes_of_binary_masks(tmp_path, mode):
    mask = np.random.default_rng(0).random((13, 21)) < 0.5
    if mode == "1":
        image = Image.fromarray(mask)
    elif mode == "I;16":
        image = Image.fromarray(mask * np.uint16(300))
    else:
        image = Image.fromarray(mask * np.uint8(255)).convert(mode if mode != "P" else "L")
        image = image.convert("P") if mode == "P" else image
    image.save(tmp_path / "m.png")
    assert (png.read_mask(tmp_path / "m.png")[0] == mask).all()


def test_packed_palettes_keep_their_indices(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (13, 21)).astype(np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 0, 5, 5, 5])
    for bits in (2, 4, 8):
        image.save(tmp_path / "m.png", bits=bits)
        assert (png.read_labels(tmp_path / "m.png")[0] == labels).all()


def test_colours_are_no_ids(tmp_path):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="one 8-bit channel"):
        png.read_labels(tmp_path / "m.png")


@pytest.mark.parametrize("keep", [0, 7, 20, 40, 60, 90])
def test_torn_files_are_told(tmp_path, keep):
    path = tmp_path / "m.png"
    path.write_bytes(png_bytes(np.arange(400, dtype=np.uint8).reshape(20, 20), [0] * 20)[:keep])
    for read in (png.read_labels, png.read_mask, png.read_grey):
        with pytest.raises(DataError, match=r"m\.png"):
            read(path)
    with pytest.raises(DataError, match="missing"):
        png.read_labels(tmp_path / "none.png")


def test_the_kernel_can_be_forced(monkeypatch):
    monkeypatch.setenv("REFSEG_KERNEL", "plain")
    assert pixelwise._choose() is None
    monkeypatch.setenv("REFSEG_KERNEL", "nonsense")
    with pytest.raises(ConfigError):
        pixelwise._choose()


def test_an_extension_of_other_sources_is_none(compiled, monkeypatch):
    monkeypatch.setitem(sys.modules, "refseg_bench.files._kernel", compiled)
    monkeypatch.setenv("REFSEG_KERNEL", "compiled")
    assert pixelwise._choose() is compiled
    monkeypatch.setattr(pixelwise, "REVISION", -1)
    with pytest.raises(ConfigError, match="other sources"):
        pixelwise._choose()
    monkeypatch.setenv("REFSEG_KERNEL", "auto")
    assert pixelwise._choose() is None


@pytest.mark.parametrize("mode", ["plain", "compiled"])
def test_both_kernels_serve_the_same_interface(compiled, monkeypatch, mode):
    monkeypatch.setattr(pixelwise, "KERNEL", None if mode == "plain" else compiled)
    rng = np.random.default_rng(1)
    masks = [draw_mask(rng, (40, 70), "blob") for _ in range(2)]
    expected = boundary.compare(*[boundary.from_mask(m) for m in masks], 3)
    assert kernel.compare(*[kernel.region(m) for m in masks], 3) == expected
    assert kernel.compare(*[kernel.region_rle(encode_rle(m), m.shape) for m in masks], 3) == expected
    labels = masks[0] * np.uint8(5)
    assert kernel.compare(kernel.label_regions(labels)[5], kernel.region(masks[1]), 3) == expected
    expected = coco_mask.encode(np.asfortranarray(masks[0]).view(np.uint8))["counts"]
    assert encode_rle(masks[0]) == encode_rle(masks[0] * np.uint8(7)) == expected
    assert kernel.compare(kernel.region(np.zeros((40, 70))), kernel.region(masks[1]), 3)[0] == 0


@pytest.mark.parametrize("mode", ["plain", "compiled"])
def test_the_first_of_two_tracks_wins_and_void_wins_over_both(compiled, monkeypatch, mode):
    monkeypatch.setattr(pixelwise, "KERNEL", None if mode == "plain" else compiled)
    rng, size = np.random.default_rng(2), (40, 70)
    for kind in ("blob", "noise", "full", "empty"):
        first, second, void = (draw_mask(rng, size, k) for k in ("blob", kind, "edge"))
        tracks = [MaskTrack(size, (encode_rle(mask), None)) for mask in (first, second, void)]
        merged = TrackLabels(size, ("0", "1"), ((7, tracks[0]), (3, tracks[1])), tracks[2])
        assert (merged.frame(0) == np.select([void, first, second], [255, 7, 3])).all()
        assert not merged.frame(1).any()

"""One clip of one's own through a method, and reading what people have."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.commands.demo import _method_for
from refseg_bench.config.compose import compose
from refseg_bench.env import resource
from refseg_bench.errors import DataError
from refseg_bench.report.pictures import open_clip, read_video, write_video
from refseg_bench.run.loop import work_on
from tests.fakes import fake_run

CLIP = resource("datasets") / "shapes" / "valid_u" / "JPEGImages" / "ee6dd2b201e5"


@pytest.mark.slow
def test_a_folder_a_video_and_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "one"
    nasty = "the [red]striped[/red] <b>one</b> " + "long " * 1000
    assert main(["demo", str(CLIP), nasty, "method=full_frame", "--frames", "5", "-o", str(first)]) == 0
    assert "5 frames" in capsys.readouterr().out
    with Image.open(first / "picture.png") as picture:
        assert picture.width == 1600
    # What it wrote is a clip again; tinted frames come back.
    second = tmp_path / "two"
    assert main(["demo", str(first / "overlay.mp4"), "it", "method=empty", "-o", str(second)]) == 0
    assert "0.0 %" in capsys.readouterr().out
    frames = sorted((second / "frames").glob("*.png"))
    assert len(frames) == 5
    tinted = np.asarray(Image.open(frames[0]).convert("RGB"), float)
    plain = np.asarray(Image.open(sorted(CLIP.glob("*.jpg"))[0]).convert("RGB"), float)
    expected = 0.55 * plain + 0.45 * np.array([255, 140, 0])
    assert np.abs(tinted - expected)[8:-8, 8:-8].mean() < 6
    third = tmp_path / "three"
    assert main(["demo", str(frames[0]), "it", "method=centre_point", "-o", str(third)]) == 0
    assert not (third / "overlay.mp4").exists()
    assert (third / "picture.png").is_file()


@pytest.mark.slow
def test_a_small_model_says_that_it_knows_rendered_shapes_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, told in (("method=decaf_tiny", True), ("backbone=tiny_dit", True), ("method=lexical", False)):
        words = ["demo", str(CLIP), "the red one", method, "--frames", "2", "-o", str(tmp_path)]
        assert main(words) == 0
        assert ("backbone=qwen2_5_vl_7b" in capsys.readouterr().err) is told


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [
        ((), ["method=lexical"]),
        (("backbone=null",), ["method=lexical"]),
        (("backbone=chat",), ["method=mllm_box", "segmenter=sam2_hf"]),
        (("backbone=qwen2_5_vl_7b",), ["method=decaf", "segmenter=sam2_hf"]),
        (("backbone=flux1-dev", "segmenter=grabcut"), ["method=refam"]),
        (("backbone=tiny_mllm", "method.n_frames=4"), ["method=decaf_tiny"]),
        (("method=decaf", "backbone=internvl3_8b"), []),
    ],
)
def test_a_backbone_alone_is_read_by_its_method(typed: tuple[str, ...], chosen: list[str]) -> None:
    assert _method_for(typed) == chosen
    assert len(compose([*chosen, *typed])) == 1


@pytest.mark.parametrize("words", ["", " ", "\u200b", "caf\udce9"])
def test_no_words_are_told(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(CLIP), words, "method=refam_tiny", "-o", str(tmp_path / "out")]) == 2
    assert "The expression is empty or no UTF-8." in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_done_is_said_from_the_start_and_the_paths_come_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(CLIP), "it", "method=empty", "--frames", "2", "-o", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("composing the options …\nreading ")
    assert "empty: loading, and finding it in 2 frames" in said.err
    assert said.out.splitlines()[-2:] == [str(tmp_path / "picture.png"), str(tmp_path / "overlay.mp4")]


@pytest.mark.slow
def test_maps_are_stacked_below_the_frames(tmp_path: Path) -> None:
    assert main(["demo", str(CLIP), "the red one", "--frames", "4", "-o", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "picture.png") as picture:
        # Four frames of 192 x 256 in 1600 pixels: three rows (frames, heat, answer) of about 300.
        assert 3 * 290 < picture.height < 3 * 340


def test_video_round_trip_keeps_frames_and_rate(tmp_path: Path) -> None:
    frames = [np.full((49, 65, 3), 20 * t, np.uint8) for t in range(10)]
    write_video(tmp_path / "v.mp4", iter(frames), (49, 65), 25)
    files, rate = read_video(tmp_path / "v.mp4", tmp_path / "f")
    assert rate == pytest.approx(25)
    grey = [float(np.asarray(Image.open(f)).mean()) for f in files]
    assert grey == pytest.approx([20 * t for t in range(10)], abs=4)
    some, slow = read_video(tmp_path / "v.mp4", tmp_path / "g", most=5)
    assert len(some) == 5
    assert slow == pytest.approx(12.5)


def test_what_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    (tmp_path / "notes.txt").write_text("hello")
    for name, words in [
        ("empty", "no picture"), ("no.mp4", "can't be decoded"), ("gone.mp4", "no such file"),
        ("notes.txt", "no video or picture"),
    ]:  # fmt: skip
        assert main(["demo", str(tmp_path / name), "it", "method=empty", "-o", str(tmp_path / "o")]) == 2
        assert words in capsys.readouterr().err
    for side in (8, 9):
        Image.new("RGB", (side, 8)).save(tmp_path / "empty" / f"{side}.png")
    with pytest.raises(DataError, match="first is"):
        open_clip(tmp_path / "empty", tmp_path / "s")
    assert main(["demo", str(CLIP), "it", "method=oracle", "-o", str(tmp_path / "o")]) == 2
    assert "looks at the truth" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.jpg" for i in range(8, 13)],
        [f"frame_{i}.jpg" for i in range(98, 103)],
        [f"{i:04d}.JPG" for i in range(9997, 10002)],
        [f"{i:05d}.png" for i in range(5)],
        [f"take2-{i}x.jpg" for i in (1, 9, 10, 11, 100)],
    ],
)
def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path, names: list[str]) -> None:
    for level, name in enumerate(names):
        Image.new("L", (8, 8), 40 * level).save(tmp_path / name)
    (tmp_path / "._1.jpg").write_bytes(b"\0\5\x16\7" + bytes(60))
    (tmp_path / ".DS_Store.png").write_bytes(b"\0")
    clip, _ = open_clip(tmp_path, tmp_path / "s")
    assert [path.name for path in clip.frame_paths] == names
    assert np.abs(clip.load()[:, 4, 4, 0] - 40 * np.arange(5)).max() <= 1


@pytest.mark.parametrize("other", ["1.png", "01.jpg"])
def test_two_frames_of_one_number_are_refused(tmp_path: Path, other: str) -> None:
    for name in ("1.jpg", "2.jpg", other):
        Image.new("L", (8, 8)).save(tmp_path / name)
    with pytest.raises(DataError, match="would be one frame"):
        open_clip(tmp_path, tmp_path / "s")


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
        ((1, 0, 0, -1), lambda picture: picture[::-1]),
        ((-1, 0, 0, -1), lambda picture: picture[::-1, ::-1]),
        ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
        ((0, -1, 1, 0), lambda picture: np.rot90(picture)),
        ((0, -1, -1, 0), lambda picture: np.rot90(picture)[:, ::-1]),
        ((1, 1, -1, 1), None),
    ],
)
def test_videos_are_turned_and_mirrored_as_their_headers_ask(
    tmp_path: Path, matrix: tuple[int, ...], shown: Any
) -> None:
    stored = np.zeros((48, 80, 3), np.uint8)
    stored[:24, :40] = 255
    write_video(tmp_path / "v.mp4", iter([stored]), (48, 80), 10)
    turn(tmp_path / "v.mp4", *matrix)
    if shown is None:
        with pytest.raises(DataError, match="other than quarters"):
            open_clip(tmp_path / "v.mp4", tmp_path / "s")
        return
    clip, _ = open_clip(tmp_path / "v.mp4", tmp_path / "s")
    expected = shown(stored)
    assert clip.size == expected.shape[:2]
    assert np.array_equal(clip.load([0])[0][6::12, 6::12, 0] > 128, expected[6::12, 6::12, 0] > 128)


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a matrix into the track header of a video."""
    video = bytearray(path.read_bytes())
    at = video.index(b"tkhd") + 4
    at += 40 if video[at] == 0 else 52
    one = 1 << 16
    video[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(video)


def test_photos_and_videos_are_read_upright(tmp_path: Path) -> None:
    stored = np.zeros((48, 80, 3), np.uint8)
    stored[:24, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
    write_video(tmp_path / "v:1.mp4", iter([stored] * 3), (48, 80), 10)
    turn(tmp_path / "v:1.mp4", 0, 1, -1, 0)  # a quarter to the right
    for name in ("a.jpg", "v:1.mp4"):
        clip, _ = open_clip(tmp_path / name, tmp_path / "s")
        assert clip.size == (80, 48)
        assert np.array_equal(
            clip.load([0])[0][8::16, 6::12, 0] > 128, np.rot90(stored, -1)[8::16, 6::12, 0] > 128
        )


def test_a_sample_of_a_run_as_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fake_run(tmp_path, method={"_target_": "tests.fakes.FakeMethod", "fail_on": ["clip1/0"]})
    work_on(store)
    words = ["report", str(store.root), "-o", str(tmp_path / "v.mp4"), "--video"]
    assert main([*words, "clip0/1"]) == 0
    frames, _ = read_video(tmp_path / "v.mp4", tmp_path / "frames")
    assert len(frames) == 2
    inside, outside = (np.asarray(Image.open(frames[0]).convert("RGB"), int)[y, 6] for y in (6, 20))
    assert inside[0] > 80 > outside[0], "the mask is tinted"
    for sample, why in (
        ("clip0/9", "no expression '9'"),
        ("clip1/0", "told to fail on clip1/0"),
        ("x", "no sample"),
    ):
        assert main([*words, sample]) == 2
        assert why in capsys.readouterr().err

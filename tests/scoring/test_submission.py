"""Submission zips: layout, content, and every fault the check must find."""

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench import cli
from refseg_bench.config.components import open_dataset
from refseg_bench.errors import ConfigError, DataError, RefsegError, ScoreError, StoreError
from refseg_bench.scoring import submission
from refseg_bench.types import MaskTrack
from tests.datasets.conftest import video
from tests.scoring.worlds import Guesses, World, answer
from tools.writers import write_meta_expressions_set


@dataclass
class Served(World):
    """A world under the name of a set whose masks a server has."""

    called: str = "mevis"
    clip_count: int = 2
    length: int = 3

    def __post_init__(self):
        super().__post_init__()
        self.name = self.called
        # Video ids of these sets hold no slash.
        self._clips = [replace(clip, id=clip.id.removeprefix("set/")) for clip in self._clips]
        self._samples = {key.removeprefix("set/"): value for key, value in self._samples.items()}


def packed(tmp_path, called="mevis"):
    world = Served(called=called)
    path = tmp_path / "s.zip"
    assert submission.write(path, world, Guesses(world)) == 2 * 3 * 3
    return world, path


@pytest.mark.parametrize(("called", "top"), [("mevis", ""), ("ref_youtube_vos", "Annotations/")])
def test_the_zip_of_a_server(tmp_path, called, top):
    world, path = packed(tmp_path, called)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[0] == f"{top}v0/0/00000.png"
        assert len(names) == 18
        for clip in world.clips():
            for e in world.expressions(clip):
                guess = Guesses(world)(clip.id)[e.id].track
                for t, frame in enumerate(clip.frame_names):
                    data = archive.read(f"{top}{clip.id}/{e.id}/{frame}.png")
                    with Image.open(io.BytesIO(data)) as image:
                        assert image.mode == "L"
                        assert (np.array(image) == guess.mask(t) * np.uint8(255)).all()
    report = submission.check(path, world)
    assert report.ok, report.lines()
    assert submission.check(path).ok
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    _, path = packed(tmp_path)
    first = path.read_bytes()
    packed(tmp_path)
    assert path.read_bytes() == first


def test_an_incomplete_run_is_refused(tmp_path):
    world = Served()
    guesses = Guesses(world, drop=("v0/1",), fail=("v1/0",), gap=("v1/2",))
    with pytest.raises(ScoreError) as caught:
        submission.write(tmp_path / "s.zip", world, guesses)
    for piece in ("missing v0/1", "failed  v1/0", "v1/2: frames 00002"):
        assert piece in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_public_masks_need_no_server(tmp_path):
    with pytest.raises(ConfigError, match="refseg score"):
        submission.write(tmp_path / "s.zip", World(), Guesses(World()))


def picture(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "png")
    return out.getvalue()


def changed(path, edit):
    """Rewrite a zip through ``edit(name, data) -> {name: data}``."""
    with zipfile.ZipFile(path) as archive:
        held = [(n, archive.read(n)) for n in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held:
            for new, content in edit(name, data).items():
                archive.writestr(new, content)


VICTIM = "v1/0/00001.png"
FAULTS = {
    "missing frame": lambda n, d: {} if n == VICTIM else {n: d},
    "missing expression": lambda n, d: {} if n.startswith("v1/0/") else {n: d},
    "missing video": lambda n, d: {} if n.startswith("v1/") else {n: d},
    "extra video": lambda n, d: {n: d, n.replace("v1", "v9"): d},
    "extra expression": lambda n, d: {n: d, n.replace("v1/0", "v1/7"): d},
    "extra file": lambda n, d: {n: d, **({"v1/0/notes.txt": b"x"} if n == VICTIM else {})},
    "wrong size": lambda n, d: {n: picture(np.zeros((4, 5), np.uint8)) if n == VICTIM else d},
    "not one 8-bit grey channel": lambda n, d: {
        n: picture(np.zeros((40, 56, 3), np.uint8)) if n == VICTIM else d
    },
    "unreadable file": lambda n, d: {n: d[:60] if n == VICTIM else d},
    "values other than 0 and 255": lambda n, d: {
        n: picture(np.ones((40, 56), np.uint8)) if n == VICTIM else d
    },
    "all videos lie below Annotations/: zip the content": lambda n, d: {f"Annotations/{n}": d},
    "unsafe name: it leaves its folder": lambda n, d: {n: d, **({"../out.png": d} if n == VICTIM else {})},
    "unsafe name: it was made by an old packer": lambda n, d: {n.replace("/", "\\"): d},
    "litter": lambda n, d: {n: d, **({"v1/.DS_Store": d, "__MACOSX/._v1": d} if n == VICTIM else {})},
    "all videos lie below a/b/: zip the content": lambda n, d: {f"a/b/{n}": d},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(tmp_path, fault):
    world, path = packed(tmp_path)
    changed(path, FAULTS[fault])
    report = submission.check(path, world)
    kinds = [kind for kind in report.problems if kind.startswith(fault)]
    assert kinds, report.lines()
    assert "NOT fit to submit" in report.lines()[-1]
    text = "\n".join(report.lines())
    if fault in ("missing frame", "wrong size", "unreadable file"):
        assert VICTIM in text


@pytest.mark.parametrize("fault", [
    "missing frame", "wrong size", "not one 8-bit grey channel", "unreadable file", "litter",
    "all videos lie below a/b/: zip the content", "unsafe name: it was made by an old packer",
])  # fmt: skip
def test_a_zip_alone_is_held_against_itself(tmp_path, fault):
    _, path = packed(tmp_path)
    changed(path, FAULTS[fault])
    report = submission.check(path)
    assert [kind for kind in report.problems if kind.startswith(fault)], report.lines()


def test_masks_of_another_value_are_not_called_plain(tmp_path):
    _, path = packed(tmp_path)
    half = np.tile(np.uint8([0, 1]), (40, 28))
    changed(path, lambda n, d: {n: picture(half)})
    report = submission.check(path)
    assert list(report.problems) == ["values other than 0 and 255"]
    assert not [line for line in report.lines() if line.startswith("note:")]


def test_a_missing_top_folder_is_found(tmp_path):
    world, path = packed(tmp_path, "ref_youtube_vos")
    changed(path, lambda n, d: {n.removeprefix("Annotations/"): d})
    assert "wrong top folder (must be Annotations/)" in submission.check(path, world).problems


def stored(path, name, data, **more):
    """One more member, with fields of its header set."""
    info = zipfile.ZipInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(height, width, packed):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "data", "more"),
    [
        ("packed by a method", None, {"compress_type": zipfile.ZIP_LZMA}),
        ("packed by a method", None, {"compress_type": zipfile.ZIP_BZIP2}),
        ("encrypted, a link", b"/etc/passwd", {"external_attr": 0o120777 << 16, "create_system": 3}),
        ("no sensible size", bomb(2**31 - 1, 2**31 - 1, b""), {}),
        ("unreadable file", bomb(40, 56, zlib.compress(bytes(10**6))), {}),
        ("unreadable file", bomb(40, 56, zlib.compress(bytes(40 * 57))) + b"more", {}),
        ("unreadable file", bytes(10**6), {"compress_type": zipfile.ZIP_DEFLATED}),
    ],
)
def test_members_that_no_server_should_open(tmp_path, kind, data, more):
    _, path = packed(tmp_path)
    stored(path, "v9/0/00000.png", picture(np.zeros((40, 56), np.uint8)) if data is None else data, **more)
    report = submission.check(path)
    assert [found for found in report.problems if found.startswith(kind)], report.lines()


@pytest.mark.slow
def test_any_flipped_byte_is_found(tmp_path):
    world, path = packed(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [0, 9, 11, *rng.integers(0, len(whole), 120), *range(len(whole) - 110, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        try:
            report = submission.check(path, world)
        except DataError:
            continue
        assert not report.ok, at


@pytest.mark.parametrize("counts", [b"11", b"`[1", b"0"])
def test_run_lengths_that_are_no_mask_are_not_written(tmp_path, counts):
    world = Served()

    def lookup(clip_id):
        return {
            key: replace(p, track=replace(p.track, rles=(counts,) * 3))
            for key, p in Guesses(world)(clip_id).items()
        }

    with pytest.raises(ScoreError, match="failed  v0/0: the mask of frame 00000"):
        submission.write(tmp_path / "s.zip", world, lookup)


def test_bad_places_for_a_zip(tmp_path, monkeypatch):
    world = Served()
    for place in (tmp_path, tmp_path / "no" / "s.zip", Path("/dev/null")):
        with pytest.raises(RefsegError) as caught:
            submission.write(place, world, Guesses(world))
        assert caught.value.hint
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StoreError, match="disk is full"):
        submission.write(tmp_path / "s.zip", world, Guesses(world))
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_no_zip(tmp_path):
    os.mkfifo(tmp_path / "s.zip")
    with pytest.raises(DataError, match="no regular file"):
        submission.check(tmp_path / "s.zip")


def test_no_zip_at_all(tmp_path):
    (tmp_path / "s.zip").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no readable zip"):
        submission.check(tmp_path / "s.zip")


def test_the_command_checks_a_zip(tmp_path, capsys):
    _, path = packed(tmp_path)
    assert cli.main(["submission", "--check", str(path)]) == 0
    assert "fit to submit" in capsys.readouterr().out
    changed(path, FAULTS["missing frame"])
    assert cli.main(["submission", "--check", str(path)]) == 1
    assert f"missing frame: 1\n  {VICTIM}" in capsys.readouterr().out
    assert cli.main(["submission"]) == 2


def test_other_peoples_folder_gives_the_zip_of_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    write_meta_expressions_set(tmp_path / "mevis", "valid", [video("v1"), video("v2")])
    (tmp_path / "mevis" / "valid" / "mask_dict.json").unlink()
    data = open_dataset("mevis", root=tmp_path / "mevis", split="valid")
    mask = np.zeros((24, 32), bool)
    mask[3:9, 4:10] = True
    made = {}
    for clip in data.clips():
        for e in data.expressions(clip):
            made.setdefault(clip.id, {})[e.id] = answer(clip, e, np.stack([mask] * len(clip)))
            for frame in clip.frame_names:
                file = tmp_path / "mine" / "Annotations" / clip.id / e.id / f"{frame}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(mask * np.uint8(1)))
    submission.write(tmp_path / "own.zip", data, made.__getitem__)
    words = ["submission", "--predictions", tmp_path / "mine", "--dataset", "mevis", "--split", "valid"]
    words = [str(word) for word in (*words, "--root", tmp_path / "mevis")]
    assert cli.main(words) == 0
    assert (tmp_path / "mine-submission.zip").read_bytes() == (tmp_path / "own.zip").read_bytes()
    told = capsys.readouterr()
    assert "fit to submit" in told.out
    assert "note:" not in told.out
    assert "predictions_read: 0/1 grey" in told.err
    assert cli.main([*words, "--threshold", "1", "-o", str(tmp_path / "none.zip")]) == 0
    told = capsys.readouterr()
    assert "0/1 grey, above 1 (16 files)" in told.err
    assert "note: each mask is all background or all foreground" in told.out
    turned = MaskTrack.from_masks([~mask] * 4, mask.shape)
    made = {clip: {e: replace(p, track=turned) for e, p in own.items()} for clip, own in made.items()}
    submission.write(tmp_path / "turned.zip", data, made.__getitem__)
    lines = submission.check(tmp_path / "turned.zip").lines()
    assert "note: 16 of 16 masks cover most of their picture: are they the wrong way round?" in lines
    assert cli.main([*words, "--threshold", "255"]) == 2
    assert cli.main(["submission", "RUN", "--threshold", "1"]) == 2
    assert "--threshold goes with --predictions" in capsys.readouterr().err
    (tmp_path / "mine" / "Annotations" / "v2" / "1" / "00002.png").write_bytes(picture(mask[1:]))
    (tmp_path / "mine" / "Annotations" / "v1" / "0" / "00001.png").unlink()
    assert cli.main([*words, "-o", str(tmp_path / "x.zip")]) == 2
    told = capsys.readouterr().err
    assert "missing v1/0: frames 00001" in told
    assert "failed  v2/1: The mask is" in told
    assert not (tmp_path / "x.zip").exists()
    (tmp_path / "mine" / "Annotations" / "v1" / "1").rename(tmp_path / "mine" / "Annotations" / "v1" / "01")
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "note: names in the folder that no sample has, not read (1): 'Annotations/v1/01'" in told
    assert "failed  v1/1: found 'Annotations/v1/01/' where 'v1/1/00000.png' is wanted" in told

"""Submission zips: layout, content, and every fault the check must find."""

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from refseg_bench import cli, submission
from refseg_bench.errors import ConfigError, DataError, ScoreError
from tests.metrics.worlds import Guesses, World


@dataclass
class Served(World):
    """A world under the name of a set whose masks a server has."""

    called: str = "mevis"
    clip_count: int = 2
    length: int = 3

    def __post_init__(self):
        super().__post_init__()
        self.name = self.called


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
        assert names[0] == f"{top}set/v0/0/00000.png"
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
    guesses = Guesses(world, drop=("set/v0/1",), fail=("set/v1/0",), gap=("set/v1/2",))
    with pytest.raises(ScoreError) as caught:
        submission.write(tmp_path / "s.zip", world, guesses)
    for piece in ("missing set/v0/1", "failed  set/v1/0", "set/v1/2: frames 00002"):
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


VICTIM = "set/v1/0/00001.png"
FAULTS = {
    "missing frame": lambda n, d: {} if n == VICTIM else {n: d},
    "missing expression": lambda n, d: {} if n.startswith("set/v1/0/") else {n: d},
    "missing video": lambda n, d: {} if n.startswith("set/v1/") else {n: d},
    "extra video": lambda n, d: {n: d, n.replace("v1", "v9"): d},
    "extra expression": lambda n, d: {n: d, n.replace("v1/0", "v1/7"): d},
    "extra file": lambda n, d: {n: d, **({"set/v1/0/notes.txt": b"x"} if n == VICTIM else {})},
    "wrong size": lambda n, d: {n: picture(np.zeros((4, 5), np.uint8)) if n == VICTIM else d},
    "not one 8-bit grey channel": lambda n, d: {
        n: picture(np.zeros((40, 56, 3), np.uint8)) if n == VICTIM else d
    },
    "unreadable file": lambda n, d: {n: d[:60] if n == VICTIM else d},
    "values other than 0 and 255": lambda n, d: {
        n: picture(np.ones((40, 56), np.uint8)) if n == VICTIM else d
    },
    "wrong top folder": lambda n, d: {f"Annotations/{n}": d},
    "unsafe name": lambda n, d: {n: d, **({"../out.png": d} if n == VICTIM else {})},
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


@pytest.mark.parametrize(
    "fault", ["missing frame", "wrong size", "not one 8-bit grey channel", "unreadable file"]
)
def test_a_zip_alone_is_held_against_itself(tmp_path, fault):
    _, path = packed(tmp_path)
    changed(path, FAULTS[fault])
    assert fault in submission.check(path).problems


def test_a_missing_top_folder_is_found(tmp_path):
    world, path = packed(tmp_path, "ref_youtube_vos")
    changed(path, lambda n, d: {n.removeprefix("Annotations/"): d})
    assert "wrong top folder (must be Annotations/)" in submission.check(path, world).problems


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

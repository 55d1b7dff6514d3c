"""How far a long clip is, told in the bar, in logs and by `refseg status`."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refseg_bench.cli import main
from refseg_bench.run import progress, workers
from refseg_bench.run.progress import Progress
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.run.workers import Desk, Owner, records
from refseg_bench.types import Clip
from tests.launch.runs import wait_for

CLIP = Clip("a/long", tuple(Path(f"{t}.jpg") for t in range(3600)), tuple(map(str, range(3600))), (24, 32))


def test_the_running_clip_is_told_by_expressions_and_frames(capsys, monkeypatch):
    frames = [100]
    with Progress({"run": 40}) as bar:
        assert bar.within() == ""
        bar.tracked = lambda: frames[0]
        bar.begin("run", CLIP, 20)
        assert bar.within() == "a/long (3600 frames): 0/20 expressions"
        frames[0] += 1234
        assert bar.within() == "a/long (3600 frames): 0/20 expressions, 1234 frames tracked"
        assert bar.beat() == bar.within()
        assert capsys.readouterr().err == ""  # not yet a while
        monkeypatch.setattr(progress, "_EVERY", 0.0)
        bar.beat()
        told = capsys.readouterr().err
        assert told.startswith("run: 0/40 samples, 0.00/s; a/long")
        assert told.endswith("0/20 expressions, 1234 frames tracked\n")
        bar.advance("run", True)
        assert "1/20 expressions" in bar.within()
        bar.begin("run", dataclasses.replace(CLIP, frame_paths=CLIP.frame_paths[:1]), 3)
        assert bar.within() == ""  # an image is no clip to wait for


def test_lines_tell_of_all_rows(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with Progress({"one": 4, "two\x1b[2J": 6, "three": 2}) as rows:
        rows.count("one", 0, 0)
        assert capsys.readouterr().err == ""
        rows.count("one", 4, 1)
        rows.count("two\x1b[2J", 1, 0)
        told = capsys.readouterr().err
        assert r"two\x1b[2J: 1/6 samples; all 3 runs: 5/12 samples, " in told
        assert "\x1b" not in told
        rows.begin("three", CLIP, 2)
        assert rows.within("three") == rows.within() == "a/long (3600 frames): 0/2 expressions"
        assert rows.within("one") == ""
        rows.end()
        assert rows.within() == ""


def test_runs_of_one_name_in_several_folders_are_counted_apart(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with Progress({"a/one": 4, "b/one": 6, "a/two": 3}) as rows:
        rows.count("a/one", 1, 0)
        rows.count("b/one", 2, 0)
        rows.count("a/two", 1, 0)
    told = capsys.readouterr().err.splitlines()[-1]
    assert "a/one: 1/4 samples; b/one: 2/6 samples; two: 1/3 samples; all 3 runs: 4/13" in told


@pytest.mark.slow
def test_a_terminal_shows_all_rows_at_once(tmp_path):
    """On a terminal of its own: a line a row that is drawn over, nothing else."""
    code = (
        "import time\n"
        "from refseg_bench.run.progress import Progress\n"
        "with Progress({'one': 2, 'two': 3}) as rows:\n"
        "    for done in (1, 2):\n"
        "        rows.count('one', done, done - 1)\n"
        "        time.sleep(0.3)\n"
    )
    record = tmp_path / "record"
    command = f"stty cols 100 rows 20; {sys.executable} -c {shlex.quote(code)}"
    subprocess.run(["script", "-qec", command, str(record)], check=True, stdout=subprocess.DEVNULL)
    text = record.read_text()
    assert "one" in text
    assert "2/2" in text
    assert "1 failed" in text
    assert "0/3" in text
    assert "samples" not in text


def test_status_tells_what_a_living_process_is_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "BEAT", 0.05)
    store = RunStore.create(tmp_path / "run", "{}\n", RunInfo(digest="0"))
    with Desk(store.root, Owner.here("job", "launch")) as desk:
        desk.now = lambda: "a/long (3600 frames): 3/20 expressions"
        wait_for(lambda: records(store.root)[0].now)
        monkeypatch.setattr(workers, "BEAT", 30.0)
        assert main(["status", str(store.root)]) in (0, 1, 2)
        assert "a/long (3600 frames): 3/20 expressions" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in (store.root / "jobs").iterdir()] == ["job.json"]
    assert records(store.root)[0].now == ""


def test_a_track_is_gathered_in_any_order():
    from refseg_bench.types import MaskTrack

    masks = np.random.default_rng(0).random((4, 5, 6)) < 0.5
    track = MaskTrack.gather(((t, masks[t]) for t in (2, 3, 0)), (5, 6), [None] * 4)
    assert track.rles[1] is None
    assert all(np.array_equal(track.mask(t), masks[t]) for t in (0, 2, 3))

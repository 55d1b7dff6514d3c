"""How far a long clip is, told in the bar, in logs and by `refseg status`."""

import dataclasses
import time
from pathlib import Path

import numpy as np

from refseg_bench.cli import main
from refseg_bench.run import progress, workers
from refseg_bench.run.progress import Progress
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.run.workers import Desk, Owner, records
from refseg_bench.types import Clip

CLIP = Clip("a/long", tuple(Path(f"{t}.jpg") for t in range(3600)), tuple(map(str, range(3600))), (24, 32))


def test_the_running_clip_is_told_by_expressions_and_frames(capsys, monkeypatch):
    frames = [100]
    with Progress(40, "run") as bar:
        assert bar.within() == ""
        bar.tracked = lambda: frames[0]
        bar.begin(CLIP, 20)
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
        bar.advance(True)
        assert "1/20 expressions" in bar.within()
        bar.begin(dataclasses.replace(CLIP, frame_paths=CLIP.frame_paths[:1]), 3)
        assert bar.within() == ""  # an image is no clip to wait for


def test_status_tells_what_a_living_process_is_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "BEAT", 0.05)
    store = RunStore.create(tmp_path / "run", "{}\n", RunInfo(digest="0"))
    with Desk(store.root, Owner.here("job", "launch")) as desk:
        desk.now = lambda: "a/long (3600 frames): 3/20 expressions"
        until = time.monotonic() + 10
        while not records(store.root)[0].now and time.monotonic() < until:
            time.sleep(0.02)
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

"""The files of a report, without a browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.errors import DataError, StoreError
from refseg_bench.files.store_io import sealed_text
from refseg_bench.report import html
from refseg_bench.report.html import write_report
from refseg_bench.report.pictures import spread
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from refseg_bench.scoring.table import ScoreTable
from tests.fakes import fake_run


def part(folder: Path, key: str) -> Any:
    """A data file as a browser reads it: one call with a key and JSON."""
    text = (folder / "data" / f"{key}.js").read_text(encoding="ascii")
    head = f'refseg.give("{key}",'
    assert text.startswith(head)
    assert text.endswith(");\n")
    return json.loads(text[len(head) : -3])


def stages(folder: Path) -> RunStore:
    store = fake_run(folder, method={"_target_": "tests.report.worlds.StagesMethod"}, keep_maps=True)
    work_on(store)
    return store


def test_all_that_a_method_says_is_there(tmp_path: Path) -> None:
    page = write_report([stages(tmp_path)], tmp_path / "report")
    clip = part(page.parent, "clip-0-0")
    answer = clip["samples"]["clip0/0"]["runs"][0]
    assert answer["point"] == [1, 0.5, 0.25]
    assert answer["points"] == [[0, 0.1, 0.2], [1, 0.3, 0.4]]
    assert answer["details"]["odd"] is None
    assert answer["iou"] == [0, 0], "the target shows, the answer is empty"
    maps = {m["name"]: m for m in answer["maps"]}
    assert list(maps) == ["object", "object (video)", "fused <i>"], "in the method's order"
    assert maps["object"]["frames"] == [0, 1]
    with Image.open(page.parent / "maps" / maps["object"]["source"]) as sprite:
        assert sprite.size == (4, 2 * 3), "frames stand below each other"
        alpha = np.asarray(sprite.convert("RGBA"))[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[-1, -1] == alpha.max() > 200
    policy = re.search(r'content="(default-src.*?)"', page.read_text(encoding="utf-8"))
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert "http" not in policy[1]
    # Runs that nobody scored have a table of nothing, and their samples all the same.
    meta = part(page.parent, "meta")
    assert meta["tables"] == []
    assert meta["groups"][0]["n"] == 12


def test_boxes_and_long_conversations_are_told(tmp_path: Path) -> None:
    store = fake_run(tmp_path, method={"_target_": "tests.report.worlds.ForgedMethod"})
    work_on(store)
    page = write_report([store], tmp_path / "report")
    answer = part(page.parent, "clip-0-0")["samples"]["clip0/0"]["runs"][0]
    assert answer["boxes"] == [[1, 0.25, 0.25, 0.75, 1.0]], "what is no box isn't drawn"
    assert answer["points"] == [[1, 0.5, 0.25]], "nor what no number of a page can be"
    *first, cut, last = answer["conversation"][:102]
    assert len(answer["conversation"]) == 201
    assert [one["step"] for one in (first[-1], last)] == ["<b>99</b>", "<b>202</b>"]
    assert cut == {"left_out": 102, "asked": []}
    messages = first[0]["asked"]
    assert messages[0]["parts"][199:] == ["part", "105 more are in the run folder only"]
    assert messages[200:] == [{"role": "", "parts": ["4 more are in the run folder only"]}]


def test_a_second_report_makes_no_picture_again(tmp_path: Path, hostile_runs: list[RunStore]) -> None:
    page = write_report(hostile_runs, tmp_path / "report")
    frames = {p: p.stat().st_mtime_ns for p in page.parent.glob("frames/*")}
    assert len(frames) == 2 * 2, "two clips of two frames, once for both runs"
    (page.parent / "frames" / "stale.jpg").write_bytes(b"")
    write_report(hostile_runs, page.parent)
    assert {p: p.stat().st_mtime_ns for p in page.parent.glob("frames/*")} == frames


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, hostile_runs: list[RunStore]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<title>my page</title>")
    with pytest.raises(StoreError, match="no report"):
        write_report(hostile_runs, tmp_path / "mine")
    assert (tmp_path / "mine" / "index.html").read_text() == "<title>my page</title>"
    # Nor is a folder one of ours by the names in it.
    (tmp_path / "sets" / "data").mkdir(parents=True)
    with pytest.raises(StoreError, match="no report"):
        write_report(hostile_runs, tmp_path / "sets")
    assert (tmp_path / "sets" / "data").is_dir()


def test_without_its_data_set_a_run_still_has_a_report(tmp_path: Path, capsys: Any) -> None:
    assert (
        main(["run", "method=empty", "dataset=shapes", "limit.clips=1", f"paths.runs={tmp_path / 'runs'}"])
        == 0
    )
    (run,) = (tmp_path / "runs").glob("empty-*")
    config = run / "config.yaml"
    text, _, _ = config.read_text().partition("# check")
    config.write_text(sealed_text(text.replace("root: null", f"root: {tmp_path / 'gone'}")))
    page = write_report([RunStore.open(run)], tmp_path / "report")
    (group,) = part(page.parent, "meta")["groups"]
    assert "can't be read here" in group["note"]
    assert group["n"] > 0
    clip = part(page.parent, "clip-0-0")
    assert all(frame["source"] is None for frame in clip["frames"])


def test_answers_on_clips_of_another_length_stand_beside_each_other_as_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(values: Any) -> Any:
        raise DataError("The data set is not here.")

    stores = []
    for frames in (3, 2):
        root = tmp_path / str(frames)
        data = {"_target_": "tests.fakes.FakeDataset", "root": str(root / "data"), "n_frames": frames}
        stores.append(fake_run(root, dataset=data))
        work_on(stores[-1])
    monkeypatch.setattr("refseg_bench.report.html.dataset_of", gone)
    page = write_report(stores, tmp_path / "report")
    long, short = part(page.parent, "clip-0-0")["samples"]["clip0/0"]["runs"]
    assert len(long["rles"]) == 3
    assert short["rles"] is None
    assert "2 masks" in short["failure"]["message"]


def test_what_was_not_asked_is_not_missing(tmp_path: Path) -> None:
    """A run of one clip beside a whole one, and one that ended early and was never scored."""
    method = {"_target_": "tests.fakes.FakeMethod", "side": 6}
    dataset = {"_target_": "tests.report.worlds.HostileDataset", "root": str(tmp_path / "data")}
    small = fake_run(tmp_path, dataset=dataset, limit={"clips": 1})
    whole = fake_run(tmp_path, dataset=dataset, method=method)
    for store in (small, whole):
        work_on(store)
        score_run(store)
    early = fake_run(tmp_path, dataset=dataset, method={**method, "side": 5})
    with early.writer() as out:
        for prediction in whole.predictions("clip0").values():
            out.append(prediction)
    write_report([small, whole, early], tmp_path / "report")
    meta, index = part(tmp_path / "report", "meta"), part(tmp_path / "report", "index-0-0")
    assert [(run["ok"], run["missing"]) for run in meta["runs"]] == [(5, 0), (10, 0), (5, 5)]
    assert [(status.count(2), status.count(5)) for status in index["status"]] == [(0, 5), (0, 0), (5, 0)]
    (by_type,) = (table for table in meta["breakdowns"] if table["attribute"] == "type")
    assert [row[1]["text"] for row in by_type["rows"]] == ["3–6", "2–4"]


def test_a_score_on_a_page_rounds_as_that_in_a_table(tmp_path: Path) -> None:
    """12.2479 was 12.25 on its way, and 12.3 on the page."""
    store = fake_run(tmp_path, method={"_target_": "tests.fakes.FakeMethod", "side": 5})
    work_on(store)
    score_run(store)
    write_report([store], tmp_path / "report")
    (scores,) = part(tmp_path / "report", "index-0-0")["score"]
    values = ScoreTable.read_parquet(*store.samples("rvos-expr@1")).values["J&F"]
    assert scores[0] == pytest.approx(100 * values, abs=1e-6)


def test_frames_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    store = stages(tmp_path)
    shutil.rmtree(tmp_path / "data" / "clip1")
    (tmp_path / "data" / "clip1").mkdir()
    for name in ("00000.png", "00001.png"):
        (tmp_path / "data" / "clip1" / name).write_bytes(b"torn")
    page = write_report([store], tmp_path / "report")
    assert [f["source"] for f in part(page.parent, "clip-0-1")["frames"]] == [None, None]
    assert all(f["source"] for f in part(page.parent, "clip-0-0")["frames"])


def test_frames_are_spread_and_wanted_ones_kept() -> None:
    assert spread(5, 10, [3]) == [0, 1, 2, 3, 4]
    assert spread(101, 3, [7, 200, -1]) == [0, 7, 50, 100]


def test_long_clips_show_some_frames(tmp_path: Path) -> None:
    store = fake_run(
        tmp_path, dataset={"_target_": "tests.fakes.FakeDataset", "root": str(tmp_path / "d"), "n_frames": 9}
    )
    work_on(store)
    page = write_report([store], tmp_path / "report", frames=3, side=16)
    clip = part(page.parent, "clip-0-0")
    assert [f["index"] for f in clip["frames"]] == [0, 4, 8]
    assert clip["length"] == 9
    with Image.open(page.parent / "frames" / clip["frames"][0]["source"]) as frame:
        assert max(frame.size) == 16


def test_the_command_for_the_pages_of_many_samples_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(html, "_AT_ONCE", 1)
    store = stages(tmp_path / "my runs")
    _, _, command = html.pages([store]).partition(": ")
    assert main(shlex.split(command)[1:]) == 0
    assert (store.root / "report/index.html").is_file()

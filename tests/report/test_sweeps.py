"""Sweeps as pictures, and other tools' formats."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from refseg_bench.cli import main
from refseg_bench.errors import ConfigError, ScoreError
from refseg_bench.report import exports as sinks
from refseg_bench.report import sweeps
from refseg_bench.report.exports import write_coco
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from refseg_bench.scoring.table import ScoreTable
from refseg_bench.types import Estimate, Result
from tests.fakes import fake_run
from tests.launch.runs import wait_for


def runs(folder: Path, **axes: list[Any]) -> list[RunStore]:
    """Scored runs of the fakes over a grid of sides, kernels and batch sizes."""
    import itertools

    out = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        method = {"_target_": "tests.fakes.FakeMethod", "side": point.get("side", 8)}
        if "kernel" in point:
            method["options"] = {"kernel": point["kernel"]}
        seed = point.get("seed", 0)
        store = fake_run(folder, method=method, seed=seed, score={"bootstrap": 50, "jobs": 1})
        work_on(store)
        score_run(store)
        out.append(store)
    return out


SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """The texts of a picture, which stay text."""
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_one_option_is_a_line_with_intervals(tmp_path: Path) -> None:
    sweep = sweeps.sweep_of(runs(tmp_path, side=[12, 4, 8]))
    assert sweep.keys == ("method.side",)
    (axes,) = sweeps.figure_of(sweep).axes
    (drawn,) = axes.containers
    known = {p.values["method.side"]: p.estimate for p in sweep.points}
    assert drawn.lines[0].get_xydata().tolist() == [[x, known[x].value] for x in (4, 8, 12)]
    (bars,) = drawn.lines[2]
    ends = [[y for _, y in segment] for segment in bars.get_segments()]
    assert ends == [pytest.approx([known[x].low, known[x].high]) for x in (4, 8, 12)]
    assert known[8].value > known[4].value
    said = texts(sweeps.draw(sweep))
    assert {"4", "8", "12", "method.side", f"{known[8].value:.1f}"} <= set(said)
    assert sweeps.draw(sweep) == sweeps.draw(sweep)


def test_a_sweep_says_that_runs_lack_samples(tmp_path: Path) -> None:
    sweep = sweeps.sweep_of(runs(tmp_path, side=[4, 8]))
    assert "lack" not in sweeps.draw(sweep)
    row = sweep.points[0].row
    one = replace(sweep.points[0], row=replace(row, result=replace(row.result, failed=1)))
    said = texts(sweeps.draw(replace(sweep, points=(one, *sweep.points[1:]))))
    assert any("1 of 2 runs lack samples (*)" in text for text in said)
    assert f"{one.estimate.value:.1f}*" in said


def test_the_best_of_a_sweep_is_that_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal in print are equal, of a decay the least is best, and no part of the samples is the best."""
    stores = runs(tmp_path, side=[4, 8], kernel=[3, 5])
    table = sweeps.ranked(sweeps.sweep_of(stores))
    assert [row[2].best for row in table.rows] == [True, True, False, False]
    work = {"_target_": "tests.fakes.FakeMethod", "side": 12, "fail_on": ["clip0/0", "clip0/1", "clip1/0"]}
    score = {"bootstrap": 50, "jobs": 1, "partial": True}
    for changes in ({"method": work}, {"method": {**work, "fail_on": []}, "limit": {"clips": 1}}):
        stores.append(fake_run(tmp_path, score=score, **changes))
        work_on(stores[-1])
        score_run(stores[-1])
    table = sweeps.ranked(
        sweeps.sweep_of(stores, keys=["method.side", "limit.clips", "method.options.kernel"])
    )
    assert "2 of 6 runs lack samples (*)" in table.caption
    assert {row[3].mark for row in table.rows if row[0].text == "12"} == {"*"}
    assert [row[3].best for row in table.rows if not row[3].mark] == [True, True, False, False]
    assert main(["report", *(str(store.root) for store in stores[:3:2] * 2), "--sweep"]) == 0, "each run once"
    assert capsys.readouterr().out.count("\n 8 ") == 1


def test_the_least_decay_leads_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decays = (
        Result("p@1", {"J-Decay": Estimate(0.1)}, 4, 4, 0, 0),
        Result("p@1", {"J-Decay": Estimate(-0.2)}, 4, 4, 0, 0),
    )
    stores = runs(tmp_path, side=[4, 8])
    by_root = {store.root: {"p@1": made} for store, made in zip(stores, decays, strict=True)}
    monkeypatch.setattr(RunStore, "results", lambda store: by_root[store.root])
    table = sweeps.ranked(sweeps.sweep_of(stores))
    assert [(row[1].text, row[1].best) for row in table.rows] == [("-20.0", True), ("10.0", False)]


def test_a_sweep_is_of_one_data_set(tmp_path: Path) -> None:
    """Numbers of two splits have no best."""
    other = {"_target_": "tests.fakes.FakeDataset", "root": str(tmp_path / "data"), "split": "test"}
    stores = [*runs(tmp_path, side=[4, 8]), fake_run(tmp_path, dataset=other)]
    with pytest.raises(ScoreError, match="different data"):
        sweeps.sweep_of(stores)


@pytest.mark.slow
def test_words_are_evenly_spaced_without_a_line(tmp_path: Path) -> None:
    numbers = sweeps.sweep_of(runs(tmp_path, side=[4, 8]))
    words = [{"method.side": "tall & <b>"}, {"method.side": "$x$"}]
    points = (replace(p, values=v) for p, v in zip(numbers.points, words, strict=True))
    sweep = replace(numbers, points=tuple(points))
    (axes,) = sweeps.figure_of(sweep).axes
    line = axes.containers[0].lines[0]
    assert (line.get_linestyle(), line.get_xdata().tolist()) == ("None", [0, 1])
    assert {"tall & <b>", "$x$"} <= set(texts(sweeps.draw(sweep))), "no text is markup or a formula"


@pytest.mark.slow
def test_two_options_are_a_heat_map(tmp_path: Path) -> None:
    stores = runs(tmp_path, side=[4, 8], kernel=[3, 5, 7])
    sweep = sweeps.sweep_of(stores)
    (axes,) = sweeps.figure_of(sweep).axes
    assert axes.images[0].get_array().size == 6
    assert {axes.get_xlabel(), axes.get_ylabel()} == {"method.side", "method.options.kernel"}
    values = {
        (p.values[axes.get_ylabel()], p.values[axes.get_xlabel()]): p.estimate.value for p in sweep.points
    }
    ordered = [values[key] for key in sorted(values)]
    assert axes.images[0].get_array().ravel().tolist() == pytest.approx(ordered)
    assert [t.get_text().partition("\n")[0] for t in axes.texts].count(f"{ordered[0]:.1f}") >= 1
    with pytest.raises(ScoreError, match="same method.side"):
        sweeps.sweep_of(stores, keys=["method.side"])


@pytest.mark.slow
def test_many_options_are_ranked_and_drawn_side_by_side(tmp_path: Path, capsys: Any) -> None:
    stores = runs(tmp_path, side=[4, 8], kernel=[3, 5], seed=[0, 1])
    sweep = sweeps.sweep_of(stores)
    assert set(sweep.keys) == {"method.side", "method.options.kernel", "seed"}
    (axes,) = sweeps.figure_of(sweep).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert len(lines) == 8
    assert [line.get_linewidth() for line in lines] == [1.2] * 4 + [3] * 4, "equal in print"
    assert lines[-1].get_ydata()[-1] == 1
    table = sweeps.ranked(sweep)
    numbers = [float(row[3].text) for row in table.rows]
    assert numbers == sorted(numbers, reverse=True)
    assert main(["report", str(tmp_path / "runs"), "--sweep", "-o", str(tmp_path / "s.svg")]) == 0
    assert "method.side" in capsys.readouterr().out
    assert ET.parse(tmp_path / "s.svg").getroot().tag == f"{SVG}svg"


def test_a_sweep_says_what_is_wrong(tmp_path: Path) -> None:
    stores = runs(tmp_path, side=[4, 8])
    with pytest.raises(ScoreError, match="differ in no option"):
        sweeps.sweep_of(stores[:1])
    with pytest.raises(ScoreError, match="No metric 'X'"):
        sweeps.sweep_of(stores, metric="X")
    with pytest.raises(ScoreError, match="no option 'method.sides'"):
        sweeps.sweep_of(stores, keys=["method.sides"])


def test_coco_holds_every_mask(tmp_path: Path) -> None:
    (store,) = runs(tmp_path, side=[8])
    write_coco(store, tmp_path / "coco.json")
    coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.getImgIds()) == 4 * 2
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == 4 * 2 * 3
    for annotation in annotations[:5]:
        image = coco.loadImgs(annotation["image_id"])[0]
        assert Path(image["file_name"]).is_file()
        mask = coco_mask.decode(annotation["segmentation"])
        expected = np.zeros((24, 32), np.uint8)
        expected[2:10, 2:10] = 1
        np.testing.assert_array_equal(mask, expected)
        assert annotation["bbox"] == [2, 2, 8, 8]
        assert annotation["area"] == 64
        assert annotation["expression"].startswith("the square number")
    assert json.loads((tmp_path / "coco.json").read_text())["info"]["without_prediction"] == []


def told(record: sinks.RunRecord) -> None:
    """What a record of a run of the fakes must hold."""
    assert record.config["method.side"] == 8
    assert {"rvos-expr-v1/JandF", "rvos-expr-v1/JandF_low", "rvos-expr-v1/n"} <= record.metrics.keys()


@pytest.mark.slow
def test_wandb_holds_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    (store,) = runs(tmp_path, side=[8])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert main(["report", str(store.root), "--sink", "wandb:place"]) == 0
    record = sinks.record_of(store)
    told(record)
    (log,) = tmp_path.glob(f"wandb/offline-run-*/run-{record.name}.wandb")
    wanted = [w.encode() for name, value in record.metrics.items() for w in (name, json.dumps(value))]
    # The package's own process writes the file.
    wait_for(lambda: all(w in log.read_bytes() for w in wanted))


@pytest.mark.slow
def test_mlflow_holds_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    (store,) = runs(tmp_path, side=[8])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        assert main(["report", str(store.root), "--sink", "mlflow:place"]) == 0
        (run,) = mlflow.search_runs(experiment_names=["place"], output_format="list")
    finally:
        mlflow.set_tracking_uri(before)
    record = sinks.record_of(store)
    told(record)
    assert run.info.run_name == record.name
    assert run.data.metrics == pytest.approx(record.metrics)
    assert run.data.params == {key: str(value)[:500] for key, value in record.config.items()}


def test_no_name_of_a_tracker_is_anothers_folder(tmp_path: Path) -> None:
    """MLflow keeps a metric as a file at its name, and takes few signs in it."""
    (store,) = runs(tmp_path, side=[8])
    metrics = {"J&F": Estimate(1.0), "J&F/referring": Estimate(2.0), "Pr@0.5": Estimate(3.0)}
    store.write_result(Result("p@1:flag=x", metrics, 1, 1, 0, 0, 100.0), ScoreTable().write_parquet)
    found = sinks.record_of(store).metrics
    assert [found[f"p-v1_flag_x/{name}"] for name in ("JandF", "JandF_referring", "Pr_at_0.5")] == [1, 2, 3]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in found)


class Kept:
    """A sink of another package."""

    records: ClassVar[list[tuple[str, sinks.RunRecord]]] = []

    def __init__(self, target: str = "") -> None:
        self.target = target

    def send(self, record: sinks.RunRecord) -> None:
        self.records.append((self.target, record))


def test_a_sink_of_another_package_is_told(tmp_path: Path) -> None:
    (store,) = runs(tmp_path, side=[8])
    assert main(["report", str(store.root), "--sink", f"{__name__}.Kept:place"]) == 0
    ((target, record),) = Kept.records
    assert (target, record.name) == ("place", store.root.name)
    told(record)
    assert record.metrics["rvos-expr-v1/JandF"] == store.results()["rvos-expr@1"].metrics["J&F"].value * 100


def test_sinks_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="mlflow"):
        sinks.sink_of("nothing")
    with pytest.raises(ConfigError, match="no method 'send'"):
        sinks.sink_of("pathlib.Path:here")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    record = sinks.RunRecord("a", {}, {})
    with pytest.raises(ConfigError, match="pip install"):
        sinks.sink_of("mlflow").send(record)

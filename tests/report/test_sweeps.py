"""Sweeps as pictures, and other tools' formats."""

from __future__ import annotations

import json
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from refseg_bench.cli import main
from refseg_bench.errors import ConfigError, ScoreError
from refseg_bench.report import sinks, sweeps
from refseg_bench.report.coco import write_coco
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from tests.fakes import fake_run


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


def test_one_option_is_a_line_with_intervals(tmp_path: Path) -> None:
    sweep = sweeps.sweep_of(runs(tmp_path, side=[12, 4, 8]))
    assert sweep.keys == ("method.side",)
    root = ET.fromstring(sweeps.draw(sweep))
    dots = [float(c.get("cx", 0)) for c in root.iter(f"{SVG}circle")]
    assert dots == sorted(dots)
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2), "4, 8, 12 are evenly spaced"
    assert len([line for line in root.iter(f"{SVG}line") if line.get("stroke")]) == 3
    assert len(list(root.iter(f"{SVG}polyline"))) == 1
    values = {p.values["method.side"]: p.estimate.value for p in sweep.points}
    assert values[8] > values[4]


def test_two_options_are_a_heat_map(tmp_path: Path) -> None:
    stores = runs(tmp_path, side=[4, 8], kernel=[3, 5, 7])
    root = ET.fromstring(sweeps.draw(sweeps.sweep_of(stores)))
    assert len(list(root.iter(f"{SVG}rect"))) == 6
    text = " ".join(t.text or "" for t in root.iter(f"{SVG}text"))
    assert "method.side" in text
    assert "method.options.kernel" in text
    with pytest.raises(ScoreError, match="same method.side"):
        sweeps.sweep_of(stores, keys=["method.side"])


def test_many_options_are_ranked_and_drawn_side_by_side(tmp_path: Path, capsys: Any) -> None:
    stores = runs(tmp_path, side=[4, 8], kernel=[3, 5], seed=[0, 1])
    sweep = sweeps.sweep_of(stores)
    assert set(sweep.keys) == {"method.side", "method.options.kernel", "seed"}
    root = ET.fromstring(sweeps.draw(sweep))
    assert len(list(root.iter(f"{SVG}polyline"))) == 8
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
    with pytest.raises(ScoreError, match="not all scored under trackeval"):
        sweeps.sweep_of(stores, protocol="trackeval")
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


class Recorder:
    """A tracker's package that remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.told.append((name, args or kwargs))
            return self

        return self if name == "summary" else call

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("name", list(sinks.SINKS))
def test_every_sink_is_told_the_metrics(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store,) = runs(tmp_path, side=[8])
    recorder = Recorder()
    module: Any = types.ModuleType(name)
    module.__getattr__ = lambda attribute: getattr(recorder, attribute)
    monkeypatch.setitem(sys.modules, name, module)
    summary: Any = types.ModuleType(f"{name}.summary")
    summary.Writer = lambda path: recorder
    monkeypatch.setitem(sys.modules, f"{name}.summary", summary)
    assert main(["report", str(store.root), "--sink", f"{name}:place"]) == 0
    told = str(recorder.told)
    value = store.results()["rvos-expr@1"].metrics["J&F"].value * 100
    assert str(value) in told
    assert "rvos-expr-v1/JandF" in told


def test_sinks_say_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensorboard"):
        sinks.sink_of("nothing")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    record = sinks.RunRecord("a", {}, {})
    with pytest.raises(ConfigError, match="pip install"):
        sinks.sink_of("mlflow").send(record)

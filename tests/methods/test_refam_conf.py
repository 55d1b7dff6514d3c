"""Every shipped config of RefAM's family composes, names every option, and finds its published rows."""

import csv
import functools

import pytest

from refseg_bench.config import compose as config
from refseg_bench.config import schema
from refseg_bench.config.components import options
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError

POINTS = {
    "refcoco": 8, "ref_davis17": 1, "abl_components": 5, "beyond": 8, "control": 5, "search/1_sigma": 4,
    "search/2_layers": 5, "search/3_text": 3, "search/4_magnets": 4, "search/5_multimask": 3,
    "search/6_spatial_bias": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", ["refam", "concept_attention"])
def test_the_methods_options_are_its_classs_defaults(name):
    full = options("method", name)
    assert full == schema.complete({"_target_": full["_target_"]}, "method")


def test_layers_of_the_docs():
    def layers(name):
        return options("backbone", name)["layers"]

    assert layers("flux1-dev") == list(range(10, 19))
    assert layers("mochi1") == list(range(28, 47))
    assert layers("sd35-large") == list(range(20, 38))
    assert layers("sd3-medium") == list(range(12, 24))
    modes = {name: options("backbone", name)["text_mode"] for name in ("flux1-dev", "mochi1")}
    assert modes == {"flux1-dev": "concept_stream", "mochi1": "prompt"}


@functools.cache
def composed(name):
    return config.compose([f"experiment=refam/{name}"])


def experiments():
    folder = resource("conf") / "experiment" / "refam"
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def test_every_experiment_is_known():
    assert experiments() == sorted(POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(POINTS))
def test_experiments_compose_and_can_be_built(name):
    points = composed(name)
    assert len(points) == POINTS[name]
    assert len({point.digest for point in points}) == len(points)
    for point in points:
        parts = {
            part: schema.build(point.values[part], part)
            for part in ("backbone", "segmenter")
            if point.values[part] is not None
        }
        schema.build(point.values["method"], "method", **parts)
        assert point.values["dataset"]["split"] == "train" or not name.startswith("search")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["refcoco", "ref_davis17", "abl_components"])
def test_references_resolve_to_published_rows(name):
    titles = {
        "ref_davis17": "Ref-DAVIS17", "refcoco_unc": "RefCOCO", "refcoco_plus_unc": "RefCOCO+",
        "refcocog_umd": "RefCOCOg",
    }  # fmt: skip
    with (resource("results") / "paper" / "refam.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = set()
    for point in composed(name):
        reference = point.values["reference"]
        assert reference["file"] == "refam.csv"
        found = [
            row
            for row in rows
            if row["table"] == reference["table"]
            and row["method"] == reference["method"]
            and row["dataset"] == titles[reference["dataset"]]
            and row["setting"] == reference.get("setting", row["setting"])
            and row["split"] == reference.get("split", row["split"])
        ]
        assert found, reference
        seen.add(tuple(sorted((row["metric"], row["value"]) for row in found)))
    assert len(seen) == POINTS[name]


@pytest.mark.slow
def test_rows_of_a_sweep_follow_the_command_line():
    points = config.compose(["experiment=refam/refcoco", "dataset=refcocog_umd"])
    assert [p.values["dataset"]["split"] for p in points] == ["val", "test"]
    (alone,) = config.compose(["experiment=refam/refcoco", "dataset=photos", "dataset.split=val"])
    assert alone.values["dataset"]["name"] == "photos"
    with pytest.raises(ConfigError, match="lists of 2"):
        config._axis("a,b", [[1, 2], [3]], {})
    with pytest.raises(ConfigError, match="must be a list"):
        config._axis("a", 3, {})


def test_the_default_run_needs_no_download():
    for method in ("refam", "concept_attention", "point_control"):
        (point,) = config.compose([f"method={method}"])
        assert point.values["backbone"]["path"] == "shipped:tiny_dit"
        assert point.values["segmenter"]["_target_"].endswith("GrabCut")
    (point,) = config.compose(["method=point_control", "method@method.source=concept_attention"])
    assert point.values["method"]["source"]["_target_"].endswith("ConceptAttention")


@pytest.mark.slow
def test_a_dry_run_tells_cache_hits_and_weights(tmp_path, monkeypatch):
    from refseg_bench.run.launch import preview
    from tests.backbones import tiny_dits

    monkeypatch.chdir(tmp_path)
    folder = tiny_dits.save("sd3", tmp_path / "sd3")
    small = ["limit.clips=2", "limit.expressions=2", f"paths.cache={tmp_path}/cache"]
    found = preview(config.compose(["method=refam", f"backbone.path={folder}", *small]))
    (run,) = found["runs"]
    assert (run["samples"], run["clips"], run["cached"], run["asked"], run["jobs"]) == (4, 2, 0, 4, 0)
    assert found["weights"][str(folder)]["here"] is True
    assert found["weights"][str(folder)]["megabytes"] > 0
    assert found["total"]["megabytes_to_fetch"] == 0
    wan = ["method=refam", "backbone=wan", "backbone.offline=true", *small]
    absent = preview([*config.compose(wan), *config.compose([*wan, "method.threshold=0.6"])])
    (name,) = absent["weights"]  # asked for once
    assert name.startswith("Wan-AI/")
    told = {"node": "backbone", "here": False, "megabytes": None, "problem": None}
    assert absent["weights"][name] == told, "another machine may fetch them"
    assert [run["weights"] for run in absent["runs"]] == [[name], [name]]
    assert (absent["total"]["samples"], absent["total"]["megabytes_to_fetch"]) == (8, None)
    plain = preview(config.compose(["method=lexical", *small]))
    assert (plain["weights"], plain["notes"], plain["runs"][0]["cached"]) == ({}, [], None)
    jobs = ["cluster=slurm", "cluster.shards=2"]
    assert preview(config.compose(["method=lexical", *small, *jobs]))["total"]["jobs"] == 4
    gone = preview(config.compose(["method=lexical", "dataset=mevis", "dataset.root=/nowhere"]))
    assert gone["runs"][0]["samples"] is None
    assert "'mevis' is not here" in gone["notes"][0]

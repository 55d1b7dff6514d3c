"""Every config of the method composes, matches its class and finds its published rows."""

import csv

import pytest

from refseg_bench.config import schema
from refseg_bench.config.components import make, names, options
from refseg_bench.config.compose import compose
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import read_yaml
from refseg_bench.methods.decaf import DecAF

TABLES = [
    "table1", "table2", "table3", "table4a", "table4b", "table4c", "table5a", "table5b", "table6", "table7",
    "table8", "table9", "table10", "table11", "table12", "table13",
]  # fmt: skip
SPELLED = {
    "ref_davis17": "Ref-DAVIS17",
    "reasonvos": "ReasonVOS",
    "revos": "ReVOS",
    "mevis": "MeViS",
    "ref_youtube_vos": "Ref-YouTube-VOS",
}
BACKBONES = [
    "internvl3_14b", "internvl3_2b", "internvl3_8b", "llava_onevision_7b", "qwen2_5_vl_3b", "qwen2_5_vl_7b",
    "qwen2_vl_2b", "qwen2_vl_7b", "qwen3_vl_4b", "qwen3_vl_8b", "tiny_mllm",
]  # fmt: skip


def test_the_methods_options_are_its_classs_defaults():
    full = options("method", "decaf")
    assert full == {"_target_": full["_target_"], **schema.conform(DecAF, {}, "method")}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_a_path_and_a_label(name):
    made = make("backbone", name)
    assert made.path
    assert made.label


def test_transient_options_do_not_name_the_run():
    a = compose(["method=decaf", "dataset=shapes", "backbone=tiny_mllm", "method.mask=attention"])[0]
    b = compose(
        [
            "method=decaf", "dataset=shapes", "backbone=tiny_mllm", "method.mask=attention",
            "backbone.memory_budget_gb=3", "backbone.batch_size=2", "backbone.device=cuda",
            "method.use_cache=false",
        ]
    )[0]  # fmt: skip
    c = compose(["method=decaf", "dataset=shapes", "backbone=tiny_mllm", "method.fusion.frame_kernel=5"])[0]
    assert a.digest == b.digest != c.digest


def test_there_is_one_experiment_per_table():
    found = {name.removeprefix("decaf/") for name in names("experiment") if name.startswith("decaf/")}
    assert found == {*TABLES, "images"}


def points_of(name):
    """The points of an experiment's grid along each axis, the other axes at their first value."""
    axes = read_yaml(resource("conf") / "experiment" / "decaf" / f"{name}.yaml").get("sweep") or {}
    first = {key: values[0] for key, values in axes.items()}
    stars = [first] + [{**first, key: value} for key, values in axes.items() for value in values[1:]]
    for star in stars:
        (point,) = compose([f"experiment=decaf/{name}", *(f"{key}={value}" for key, value in star.items())])
        yield point


@pytest.mark.parametrize(
    "name", [TABLES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TABLES[1:])]
)
def test_the_points_of_an_experiment_have_their_published_rows(name):
    with (resource("results") / "paper" / "decaf.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = {"backbone": set(), "dataset": set(), "setting": set()}
    for point in points_of(name):
        schema.conform(DecAF, point.values["method"], "method")
        reference = point.values["reference"]
        wanted = {
            "table": reference["table"],
            "method": reference["method"],
            "backbone": reference["backbone"],
            "dataset": SPELLED[reference["dataset"]],
            "setting": reference["setting"],
        }
        assert any(all(row[key] == value for key, value in wanted.items()) for row in rows), wanted
        named = reference["protocols"]
        named = named.get(point.values["method"]["mask"], named)
        assert point.values["protocols"] == named.get(reference["dataset"], [])
        for key, found in seen.items():
            found.update(wanted[key].split(";"))
    ours = [row for row in rows if row["table"] == reference["table"] and row["method"] == "DecAF"]
    for key, found in seen.items():
        published = {part for row in ours for part in row[key].split(";")}
        assert published - found <= {"subset=similar_objects"}  # its sample ids are not published


@pytest.mark.slow
def test_a_sweep_composes_whole():
    folders = [point.folder for point in compose(["experiment=decaf/table6", "dataset=ref_davis17"])]
    assert len(folders) == len(set(folders)) == 9


def test_a_wrong_value_lists_the_right_ones():
    with pytest.raises(ConfigError) as told:
        compose(["method=decaf", "dataset=shapes", "backbone=tiny_mllm", "method.prompt_obj=v9"])
    assert "v3" in str(told.value)

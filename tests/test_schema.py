from __future__ import annotations

from pathlib import Path

import pytest

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError
from tests.fakes import FakeDataset, FakeMethod, Options


def test_defaults_are_filled_in_and_plain() -> None:
    values = schema.conform(FakeMethod, {}, "method")
    assert values == {"side": 8, "fail_on": [], "options": {"kernel": 3, "mode": "mean"}, "batch_size": 4}


def test_construct_revives_paths_and_groups() -> None:
    made = schema.construct(FakeMethod, {"options": {"kernel": 5}}, "method")
    assert made.options == Options(kernel=5)
    assert schema.construct(FakeDataset, {"root": "a/b"}, "dataset").root == Path("a/b")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sid": 3}, ["Unknown option 'method.sid'", "side"]),
        ({"side": "big"}, ["method.side", "int"]),
        ({"side": True}, ["method.side", "int"]),
        ({"options": {"mode": "median"}}, ["method.options.mode", "mean, max"]),
        ({"options": {"kernal": 1}}, ["method.options.kernal", "kernel"]),
        ({"options": 3}, ["method.options"]),
        ({"fail_on": "a"}, ["method.fail_on"]),
    ],
)
def test_wrong_values_are_told_with_what_is_allowed(values: dict, told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        schema.conform(FakeMethod, values, "method")
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("tests.fakes.Nothing", "FakeMethod"),
        ("tests.nowhere.Class", "no module"),
        ("FakeMethod", "no dotted path"),
        ("tests.fakes.np", "no dataclass"),
    ],
)
def test_wrong_targets_are_told(target: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        schema.locate(target, "method")


def test_transient_options_are_not_lasting() -> None:
    values = schema.conform(FakeMethod, {}, "method")
    assert "batch_size" not in schema.lasting(FakeMethod, values)
    assert schema.lasting(FakeDataset, schema.conform(FakeDataset, {}, "d")) == {
        "split": "val", "n_clips": 4, "n_expressions": 3, "n_frames": 2, "name": "fake",
    }  # fmt: skip


def test_no_shipped_yaml_repeats_a_default() -> None:
    from refseg_bench.config.components import names, read

    checked = 0
    for group in ("dataset", "method", "backbone", "segmenter", "protocol"):
        for name in names(group):
            node = read(group, name)
            cls = schema.locate(str(node[schema.TARGET]), group)
            options, defaults = schema.options(cls), schema.defaults(cls)
            for key, value in node.items():
                assert defaults.get(key, ...) != value, f"{group}={name} repeats {key}"
                assert key in (*options, schema.TARGET, "defaults", "aliases"), f"{group}={name}: {key}"
            if "seed" in defaults:
                assert node["seed"] == "${seed}", f"{group}={name} draws whatever `seed=` says"
            checked += 1
    assert checked > 50

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


def test_transient_knobs_are_not_lasting() -> None:
    values = schema.conform(FakeMethod, {}, "method")
    assert "batch_size" not in schema.lasting(FakeMethod, values)
    assert schema.lasting(FakeDataset, schema.conform(FakeDataset, {}, "d")) == {
        "split": "val", "n_clips": 4, "n_expressions": 3, "n_frames": 2, "name": "fake",
    }  # fmt: skip


def test_every_shipped_component_lists_exactly_its_knobs() -> None:
    """A knob that its YAML leaves out can't be overridden on the command line."""
    from refseg_bench.config.compose import from_yaml
    from refseg_bench.files.resources import resource

    checked = 0
    for group in ("dataset", "method", "backbone", "segmenter", "protocol"):
        for path in sorted((resource("conf") / group).rglob("*.yaml")):
            node = from_yaml(path)
            node.pop("aliases", None)
            defaults = node.pop("defaults", [])
            filled = _filled_by_groups(defaults)
            for base in (entry for entry in defaults if isinstance(entry, str) and entry != "_self_"):
                node = {**from_yaml(path.with_name(f"{base}.yaml")), **node}
                filled |= _filled_by_groups(node.pop("defaults", []))
            cls = schema.locate(str(node.pop(schema.TARGET)), str(path))
            required = {n for n, f in schema.knobs(cls).items()}
            given = set(node) | filled
            assert given == required, f"{path}: differs in {sorted(given ^ required)}"
            checked += 1
    assert checked > 3


def _filled_by_groups(defaults: list) -> set[str]:
    """Knobs that a defaults list fills with a member of another group (``/method@source: refam``)."""
    keys = [key for entry in defaults if isinstance(entry, dict) for key in entry]
    return {key.partition("@")[2] for key in keys if "@" in key and "@_global_" not in key}

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from refseg_bench.backbones.chat import ChatEndpoint
from refseg_bench.config import schema
from refseg_bench.config.schema import adopt
from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import ConfigError
from refseg_bench.types import Clip
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


@dataclass
class Rooted(FakeDataset):
    """Declares a hook's attribute again, with a value."""

    root: Path = Path("x")


@dataclass
class Bare(Dataset):
    """Declares hooks' attributes again, without values."""

    root: Path
    protocols: list[str]
    name: str = "bare"
    split: str = "all"
    every_frame_listed = True
    clips, expressions, target = FakeDataset.clips, FakeDataset.expressions, FakeDataset.target


@dataclass
class Barer(Bare):
    """Once more, below a dataclass."""

    root: Path
    protocols: list[str] = dataclasses.field(default_factory=list)


def test_the_value_of_a_hook_is_no_options_default() -> None:
    with pytest.raises(ConfigError, match=r"Option 'dataset\.root' has no value") as told:
        schema.construct(Bare, {"protocols": ["a"]}, "dataset")
    assert "dataset.root=VALUE" in str(told.value)
    with pytest.raises(ConfigError, match="'dataset.protocols' has no value"):
        schema.construct(Bare, {"root": "a"}, "dataset")
    with pytest.raises(ConfigError, match="'dataset.root' has no value"):
        schema.construct(Barer, {}, "dataset")
    assert schema.construct(Barer, {"root": "a"}, "dataset").protocols == []
    made = schema.construct(Bare, {"root": "a", "protocols": []}, "dataset")
    assert (made.root, made.every_frame_listed, made.batch_size) == (Path("a"), True, None)
    assert Bare.root is None, "the hook stays for whoever asks the class"
    assert schema.defaults(Rooted)["root"] == "x"


@dataclass
class Alone:
    """Inherits nothing and answers as a data set."""

    name: str
    split: str = "all"
    clips, expressions, target = FakeDataset.clips, FakeDataset.expressions, FakeDataset.target


@dataclass
class Nameless:
    """Lacks an attribute and a method."""

    split: str = "all"
    clips = expressions = FakeDataset.expressions


@dataclass
class Unfinished(Dataset):
    """Inherits, and leaves out what is abstract."""

    name: str = "unfinished"
    clips = expressions = FakeDataset.expressions


@dataclass(slots=True)
class Slotted:
    """Has no room for attributes that it doesn't declare."""

    name: str = "slotted"
    split: str = "all"
    clips, expressions, target = FakeDataset.clips, FakeDataset.expressions, FakeDataset.target


@dataclass
class Occupied(Slotted):
    """Has an option where the harness asks a question."""

    weights: str = "model.pt"


@dataclass
class Misspelt(FakeDataset):
    """Has a hook that nobody asks for."""

    landmark: ClassVar[list] = []


@dataclass
class Curt(FakeDataset):
    """Can't be called as a data set is."""

    def target(self, clip: Clip) -> None:
        """Nothing."""


def test_a_class_that_inherits_nothing_is_given_the_hooks() -> None:
    adopt(Alone, Dataset, "dataset")
    made = Alone("mine")
    assert isinstance(made, Dataset)
    assert (made.split, made.batch_size, made.protocols, made.weights()) == ("all", None, (), None)


@pytest.mark.parametrize(
    ("cls", "what", "hint"),
    [
        (Nameless, "'tests.test_schema.Nameless' is no dataset: it has no target(), name.", "Dataset desc"),
        (Unfinished, "'tests.test_schema.Unfinished' is no dataset: it has no target(), split.", "Write "),
        (
            Slotted,
            "'tests.test_schema.Slotted' has slots, and no room for what a run hands to a Dataset.",
            "Leave out slots=True, or inherit refseg_bench.datasets.base.Dataset.",
        ),
        (Occupied, "'tests.test_schema.Occupied' has an option 'weights', which is a hook.", "another name"),
        (Misspelt, "'tests.test_schema.Misspelt.landmark' is no hook: nobody asks for it.", "'landmarks'? "),
        (
            Curt,
            "'tests.test_schema.Curt.target' can't be called with (self, clip, expression): "
            "too many positional arguments.",
            "See refseg_bench.datasets.base.Dataset.",
        ),
    ],
)
def test_what_a_class_lacks_to_be_a_component_is_told(cls: type, what: str, hint: str) -> None:
    with pytest.raises(ConfigError) as told:
        adopt(cls, Dataset, "the place")
    assert told.value.what == what
    assert told.value.where == "the place"
    assert hint in str(told.value.hint)


def test_a_newer_option_lasts_only_where_it_is_set() -> None:
    @dataclass
    class Grown:
        old: int = 1
        later: float | None = schema.option(None, newer=True)

    assert schema.lasting(Grown, schema.conform(Grown, {}, "g")) == {"old": 1}
    assert schema.lasting(Grown, schema.conform(Grown, {"later": 0.0}, "g")) == {"old": 1, "later": 0.0}


def test_transient_options_are_not_lasting() -> None:
    values = schema.conform(FakeMethod, {}, "method")
    assert "batch_size" not in schema.lasting(FakeMethod, values)
    assert schema.lasting(FakeDataset, schema.conform(FakeDataset, {}, "d")) == {
        "split": "val", "n_clips": 4, "n_expressions": 3, "n_frames": 2, "name": "fake",
    }  # fmt: skip


def test_no_shipped_yaml_repeats_a_default() -> None:
    from refseg_bench.config.components import ABOUT, names, read

    checked = 0
    for group in ("dataset", "method", "backbone", "segmenter", "protocol"):
        for name in names(group):
            node = read(group, name)
            cls = schema.locate(str(node[schema.TARGET]), group)
            options, defaults = schema.options(cls), schema.defaults(cls)
            for key, value in node.items():
                assert defaults.get(key, ...) != value, f"{group}={name} repeats {key}"
                assert key in (*options, schema.TARGET, *ABOUT), f"{group}={name}: {key}"
            if "seed" in defaults:
                assert node["seed"] == "${seed}", f"{group}={name} draws whatever `seed=` says"
            checked += 1
    assert checked > 50


def test_a_part_of_another_kind_is_refused_before_any_sample() -> None:
    chat = ChatEndpoint(model="x")
    with pytest.raises(ConfigError, match="RefAM can't use the backbone ChatEndpoint") as told:
        schema.build(
            {"_target_": "refseg_bench.methods.refam.RefAM"}, "method", backbone=chat, segmenter=None
        )
    assert told.value.allowed == ["DiT"]


def test_code_typed_at_a_prompt_has_no_source() -> None:
    assert schema.code(type("Mine", (), {"__module__": "prompt"})) == ""

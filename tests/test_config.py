from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from refseg_bench.config import compose as configs
from refseg_bench.config import schema
from refseg_bench.config.components import names, open_protocol, protocol_of, read, upon
from refseg_bench.errors import ConfigError, StoreError
from refseg_bench.files.store_io import read_sealed_yaml
from refseg_bench.run.build import build_method, dataset_of
from refseg_bench.run.launch import freeze
from refseg_bench.scoring.protocols.image import RefcocoLavt
from refseg_bench.types import Result
from tests.quick import quick_first


def one(*overrides: str) -> configs.Composed:
    (point,) = configs.compose(overrides)
    return point


def with_option(values: dict[str, Any], key: str, word: str) -> dict[str, Any]:
    """A config with another number, without composing it again."""
    number: Any = float(word) if {*word} & {*".en"} else int(word)
    return upon(values, functools.reduce(lambda inner, name: {name: inner}, key.split(".")[::-1], number))


def test_defaults_compose_and_leave_hydra_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "_hydra", inspect.unwrap(configs._hydra))
    point = one()
    assert point.values["dataset"]["name"] == "shapes"
    assert point.folder == f"{point.name}-{point.digest}"
    assert not GlobalHydra.instance().is_initialized()


def test_the_digest_says_what_can_change_a_prediction() -> None:
    base = one("method=random_point", "segmenter=grabcut").digest
    same = ["paths.runs=elsewhere", "cluster=debug", "keep_maps=true", "score.bootstrap=10", "name=other"]
    assert one("method=random_point", "segmenter=grabcut", *same).digest == base
    for override in ["seed=1", "limit.clips=2", "method.seed=3", "dataset.split=train"]:
        assert one("method=random_point", "segmenter=grabcut", override).digest != base, override


def test_a_part_the_method_does_not_take_is_not_in_its_config() -> None:
    assert one("method=empty", "segmenter=grabcut").digest == one("method=empty").digest
    assert one("method=empty", "segmenter=grabcut").values["segmenter"] is None


def test_null_takes_an_optional_part_out() -> None:
    coarse = ["method=decaf", "method.mask=attention"]
    assert one(*coarse, "segmenter=null").values["segmenter"] is None
    assert one(*coarse, "segmenter=null").digest == one(*coarse, "~segmenter").digest
    with pytest.raises(ConfigError, match="needs a backbone"):
        one(*coarse, "backbone=null")


@pytest.mark.parametrize(
    "overrides",
    quick_first(
        [
            ["method=random_point"],
            *(["method=refam", f"backbone={name}"] for name in ("tiny_dit", "flux1-dev", "mochi1", "wan")),
            ["method=lexical"],
        ],
        2,
    ),
)
def test_the_seed_reaches_every_component_that_draws(overrides: list[str]) -> None:
    zero, seven = one(*overrides).values, one(*overrides, "seed=7").values
    assert zero["seed"] == 0
    for part in configs.COMPONENTS:
        options = dict(seven[part] or {})
        if "seed" in options:
            assert options["seed"] == 7
            options["seed"] = 0
        assert options == (zero[part] or {})
    pinned = one(*overrides, "seed=7", "segmenter.seed=3").values
    assert (pinned["segmenter"]["seed"], pinned["seed"]) == (3, 7)


def test_every_shipped_draw_follows_the_seed() -> None:
    for kind in ("method", "segmenter", "backbone", "dataset"):
        for name in names(kind):
            node = read(kind, name)
            if "seed" in schema.options(schema.locate(str(node["_target_"]), kind)):
                assert node.get("seed") == "${seed}", f"{kind}={name} draws whatever `seed=` says"


def test_a_torn_component_is_told_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method/torn.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError) as error:
        one(f"hydra.searchpath=[file://{tmp_path}]", "method=torn")
    assert "torn.yaml, line" in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("target: my.Own\n", "_target_, which names the class"),
        ("", "_target_, which names the class"),
        ("_target_: tests.fakes.FakeMethod\nx: ${nowhere}\n", "'nowhere' not found"),
        ("_target_: tests.fakes.FakeMethod\nx: ${seed\n", "'${seed'"),
    ],
)
@pytest.mark.parametrize("cause", ["0", "1"])  # 1: as under a debugger, an error may be its own cause
def test_a_component_that_names_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str, cause: str
) -> None:
    monkeypatch.setenv("OC_CAUSE", cause)
    (tmp_path / "method").mkdir()
    (tmp_path / "method/mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(told)) as error:
        one(f"hydra.searchpath=[file://{tmp_path}]", "method=mine")
    assert error.value.hint


def test_sweeps_expand_in_order() -> None:
    points = configs.compose(["method=empty,full_frame", "seed=1,2"], multirun=True)
    assert [(p.choices["method"], p.values["seed"]) for p in points] == [
        ("empty", 1), ("empty", 2), ("full_frame", 1), ("full_frame", 2),
    ]  # fmt: skip
    assert len({p.folder for p in points}) == 4


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method=oracl"], ["oracl", "oracle"]),
        (["dataset=nowhere"], ["nowhere", "shapes"]),
        (["method=empty", "method.foo=1"], ["method.foo"]),
        (["sed=1"], ["'sed'", "Did you mean 'seed'?"]),
        (["seed=one"], ["'seed'", "int"]),
        (["limit.clips=two"], ["limit.clips"]),
        (["limit=2"], ["limit.clips", "limit.NAME=VALUE"]),
        (["cluster.kind=cloud"], ["cluster.kind", "debug, local, ray, slurm"]),
        (["score.confidence=[1]"], ["score.confidence", "float"]),
        (["method=a,b"], ["method=a,b"]),
        (["method==="], ["method==="]),
        (["dataset=null"], ["dataset=null", "string"]),
        (["=empty"], ["=empty", "before the '='"]),
        (["method="], ["No method ''", "lexical"]),
        (["method=my.Own"], ["my.Own", "_target_: my.Own", "REFSEG_SEARCHPATH"]),
        (["name=../x"], ["'../x' names no folder", "paths.runs"]),
        (["method._target_=${seed"], ["${seed"]),
    ],
)
def test_wrong_options_are_told_with_what_is_allowed(overrides: list[str], told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        configs.compose(overrides)
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("decaf_tiny", [
            "method.n_frames=-1", "method.video_tokens=0", "method.frame_scale=0", "method.frame_tokens=-2",
            "method.max_tiles=0", "method.tau_pq=1.1", "method.nms_iou=-1", "method.residual=2",
            "method.keypoints=-3", "method.fusion.video_kernel=4", "method.fusion.frame_kernel=0",
            "method.fusion.sigma=0", "method.fusion.sigma=nan",
            # A negative batch had no rows: the model was asked nothing, for ever.
            "backbone.batch_size=-1", "segmenter.batch_size=0",
        ]),
        ("refam_tiny", [
            "method.threshold=2", "method.np.weight=7", "method.sb.floor=-1", "method.multimask_index=-9",
            "method.frame_candidates=0", "backbone.batch_size=0",
        ]),
        ("loc_head_tiny", ["method.frame_tokens=0", "method.sigma=1e9"]),
        ("lexical", [
            "method.working_size=1", "method.seed_frames=0", "segmenter.band=-1", "segmenter.iterations=0",
        ]),
    ],
)  # fmt: skip
def test_a_number_that_an_option_cant_mean_is_refused_before_the_first_clip(
    method: str, options: list[str]
) -> None:
    # Each gave empty masks, no number, or one failure per sample.
    point = one(f"method={method}")
    data = dataset_of(point.values)
    for option in options:
        key, _, word = option.partition("=")
        with pytest.raises(ConfigError, match=f"'{key}' is"):
            build_method(with_option(point.values, key, word), data)
    # As the command line brings it.
    with pytest.raises(ConfigError, match=f"'{key}' is"):
        build_method(one(f"method={method}", option).values, data)


def test_frozen_config_round_trips(tmp_path: Path) -> None:
    point = one(f"paths.runs={tmp_path}", "method=empty", "seed=5")
    store = freeze(point)
    values = read_sealed_yaml(store.config_path)
    assert values == point.values
    assert configs.digest(values) == point.digest
    assert configs.load(values).seed == 5


def test_a_torn_frozen_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(StoreError, match="config.yaml"):
        read_sealed_yaml(tmp_path / "config.yaml")


def test_an_outside_package_adds_a_method_with_a_searchpath(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs/method").mkdir(parents=True)
    (tmp_path / "theirs/method/mine.yaml").write_text("_target_: tests.fakes.FakeMethod\nside: 3\n")
    point = one(f"hydra.searchpath=[file://{tmp_path}/theirs]", "method=mine", "method.side=4")
    assert point.values["method"]["side"] == 4
    assert point.name == "mine-shapes"
    (tmp_path / "theirs/method").rename(tmp_path / "theirs/lab")
    (tmp_path / "theirs/method").mkdir()
    (tmp_path / "theirs/lab").rename(tmp_path / "theirs/method/lab")
    assert one(f"hydra.searchpath=[file://{tmp_path}/theirs]", "method=lab/mine").name == "lab-mine-shapes"


@pytest.mark.slow
def test_every_group_member_composes() -> None:
    """Whatever ships under conf/ can be chosen. Members of different groups share a composition."""
    for name in names("method"):
        assert one(f"method={name}", "segmenter=grabcut").choices["method"] == name
    groups = {"method": ["decaf"]} | {
        group: names(group) for group in ("dataset", "backbone", "segmenter", "cluster", "paths", "debug")
    }
    for turn in range(max(map(len, groups.values()))):
        chosen = {group: members[turn % len(members)] for group, members in groups.items()}
        point = one(*(f"{group}={name}" for group, name in chosen.items()))
        assert {group: point.choices[group] for group in chosen} == chosen


def test_an_outside_package_adds_a_protocol_with_a_searchpath(tmp_path: Path) -> None:
    """What is typed stays on the search path, for scoring and reporting look it up again."""
    theirs = tmp_path / "theirs/protocol"
    theirs.mkdir(parents=True)
    lavt = "refseg_bench.scoring.protocols.image.RefcocoLavt"
    (theirs / "my-rules.yaml").write_text(f"_target_: {lavt}\nresolution: null\n")
    point = one(
        f"hydra.searchpath=[file://{tmp_path}/theirs]", "protocols=['my-rules@1:resolution=48',rvos-expr]"
    )
    mine, shipped = point.values["protocols"]
    assert (mine, shipped) == ("my-rules@1:resolution=48", "rvos-expr")
    made = open_protocol(mine)
    assert isinstance(made, RefcocoLavt)
    assert made.resolution == 48


def test_an_unknown_protocol_is_told_before_anything_is_predicted() -> None:
    with pytest.raises(ConfigError, match="No protocol 'nope'") as told:
        one("protocols=[nope]")
    assert "rvos-expr" in (told.value.allowed or [])


@pytest.mark.parametrize("count", [0, -1])
def test_a_limit_below_one_is_told(count: int) -> None:
    with pytest.raises(ConfigError, match=r"limit\.clips"):
        one(f"limit.clips={count}")


def test_an_unknown_option_beside_a_choice_is_told_as_the_option() -> None:
    with pytest.raises(ConfigError) as told:
        one("method=random_point", "method.nope=1")
    assert told.value.what == "Unknown option 'method.nope'."
    assert {"_target_", *(told.value.allowed or [])} == set(one("method=random_point").values["method"])


def test_an_option_of_a_part_that_is_not_chosen_is_told() -> None:
    with pytest.raises(ConfigError, match="No backbone is chosen"):
        one("method=lexical", "backbone.path=elsewhere")


def test_a_torn_override_has_a_hint() -> None:
    with pytest.raises(ConfigError) as told:
        one("method=[")
    assert told.value.hint


def test_a_result_names_the_rules_that_made_it() -> None:
    """Protocols of other packages, and options, are found again without a search path."""
    node = {"_target_": "refseg_bench.scoring.protocols.image.RefcocoLavt", "resolution": 48}
    made = protocol_of(Result("theirs@1", {}, 0, 0, 0, 0, details={"rules": node}))
    assert isinstance(made, RefcocoLavt)
    assert made.resolution == 48
    assert protocol_of(Result("rvos-expr@1", {}, 0, 0, 0, 0)).name == "rvos-expr@1"


# ── what stands beside a run ─────────────────────────────────────────────────


#: Beside an attention method on ``shapes``, after its raw attention.
OTHERS = ["refam_tiny", "lexical", "oracle_point", "oracle"]


def baselines(*overrides: str) -> list[configs.Composed]:
    return configs.baselines_of(one(*overrides))


def test_the_default_run_has_its_raw_attention_and_the_controls_beside_it() -> None:
    point = one()
    assert (point.choices["method"], point.choices["backbone"]) == ("decaf_tiny", "tiny_mllm")
    raw, *others = configs.baselines_of(point)
    assert raw.name == "decaf_tiny_raw-shapes"
    assert raw.values["method"]["fusion"]["contrast"] == "obj_only"
    assert {**raw.values["method"], "fusion": None} == {**point.values["method"], "fusion": None}
    assert [o.folder for o in others] == [one(f"method={m}", "segmenter=tiny_sam2").folder for m in OTHERS]


@pytest.mark.slow
def test_controls_take_over_what_was_typed() -> None:
    typed = [
        "method=refam",
        "backbone=tiny_dit",
        "name=mine",
        "seed=3",
        "limit.clips=2",
        "method.np.mode=off",
    ]
    raw, *others = baselines(*typed)
    assert raw.values["method"]["magnets"] == "none"
    assert raw.values["method"]["np"]["mode"] == "off"
    for baseline in (raw, *others):
        assert baseline.values["seed"] == 3
        assert baseline.values["limit"]["clips"] == 2
        assert not baseline.name.startswith("mine")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=lexical"],
        ["baselines=[]"],
        ["cluster=slurm"],
        ["experiment=decaf/table2", "dataset=shapes", "backbone=tiny_mllm", "segmenter=grabcut"],
        ["dataset=mevis"],
        ["method=refam", "baselines=[]"],
    ],
)
def test_runs_without_controls(overrides: list[str]) -> None:
    assert baselines(*overrides) == []


@pytest.mark.slow
def test_a_control_that_is_the_run_itself_is_not_repeated() -> None:
    raw = next(iter(baselines()))
    assert [o.choices["method"] for o in baselines(*raw.overrides)] == OTHERS
    # Nor under another name.
    other = ["method=refam", "backbone=tiny_dit"]
    assert one(*other).digest == one("method=refam_tiny", "segmenter=grabcut").digest
    assert "refam_tiny" not in [o.choices["method"] for o in baselines(*other)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["segmenter=grabcut", "segmenter.working_size=128"],
        ["~segmenter", "method.mask=attention"],
        ["segmenter=null", "method.mask=attention"],
        ["segmenter.fill_holes=off"],
        ["segmenter=sam2_hf"],
    ],
)
def test_controls_compose_whatever_the_run_needs(overrides: list[str]) -> None:
    raw, *others, oracle = baselines(*overrides)
    mine = one(*overrides).values["segmenter"]
    assert raw.values["segmenter"] == mine
    assert [o.choices["method"] for o in (*others, oracle)] == OTHERS
    for other in others:
        own = one(f"method={other.choices['method']}").values["segmenter"]
        assert other.values["segmenter"] == (own if mine is None else mine)
    assert oracle.values["segmenter"] is None


def test_controls_can_be_chosen_and_a_wrong_one_is_told() -> None:
    assert [o.choices["method"] for o in baselines("baselines=[lexical]")] == ["lexical"]
    for wrong in ("baselines=[lexicl]", "baselines=lexical"):
        with pytest.raises(ConfigError) as error:
            baselines(wrong)
        assert "lexic" in str(error.value)


@pytest.mark.parametrize(
    "path",
    quick_first(
        ["/x/[a] b#=ü", "/x/a,b", "/x/a\\'b", '/x/a"b',
         "/x/a b", "/x/a=b", "/x/a(b)", "/x/a'b", "/x/a{b}", "/x/a ",
         "./日本", "../a!", "/x/a&b;c", "/x/a`b", "ü/b", "/x/a\tb"], 4,
    ),
)  # fmt: skip
def test_a_path_needs_no_quotes(path):
    (point,) = configs.compose(["dataset=shapes", "method=empty", f"dataset.root={path}"])
    assert str(point.values["dataset"]["root"]) == path


def test_what_hydra_reads_is_left_to_it():
    for item in (
        "a=[1,2]",
        "a=1,2",
        "a={b: 1}",
        "a='x y'",
        "~a",
        "a=${b}/[c]",
        "a=/x/\\[a\\]",
        "hydra.searchpath=[/x]",
    ):
        assert configs.quoted(item) == item
    assert configs.quoted("a=/x,/y", multirun=True) == "a=/x,/y"


def test_numbers_out_of_their_range_are_told() -> None:
    values = one().values
    for word in (
        "score.confidence=2", "score.confidence=0", "score.bootstrap=-1", "score.seed=-1", "score.jobs=-2",
        "cluster.shards=0", "cluster.parallel=0", "cluster.gpus=-1", "cluster.cpus=0", "cluster.minutes=0",
        "cluster.target_minutes=0", "cluster.mem_gb=-1", "max_failures=-1",
    ):  # fmt: skip
        key, _, number = word.partition("=")
        with pytest.raises(ConfigError, match=key):
            configs.checked(with_option(values, key, number), Path("config.yaml"))
    with pytest.raises(ConfigError, match=key):
        configs.compose([word])

"""Configs of agents and of the rivals that read attention: options, experiments, and runs on tiny weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refseg_bench.cli import main
from refseg_bench.config import schema
from refseg_bench.config.components import names, options
from refseg_bench.config.compose import compose
from refseg_bench.run.store import runs_in
from tests.backbones.test_chat import Server, spoken
from tests.methods.test_sam3_agent import call
from tools import tiny_sam

METHODS = ["agent_rvos", "evol_sam3", "loc_head", "mllm_box", "refer_agent", "sam3_agent", "tam"]
POINTS = {
    "agents/agent_rvos": 3, "agents/agent_rvos_ablation": 11, "agents/evol_sam3": 5, "agents/loc_head": 9,
    "agents/refer_agent": 4, "agents/sam3_agent": 5, "agents/sam3_agent_video": 1,
    "agents/sam3_phrase": 1, "decaf/images": 7,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_options_are_its_classs_defaults(name: str) -> None:
    full = options("method", name)
    assert full == schema.complete({"_target_": full["_target_"]}, "method")


def test_every_experiment_is_known() -> None:
    assert {name for name in names("experiment") if name.startswith("agents/")} == {
        name for name in POINTS if name.startswith("agents/")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(POINTS))
def test_experiments_compose_and_can_be_built(name: str) -> None:
    points = compose([f"experiment={name}"])
    assert len(points) == POINTS[name] == len({point.digest for point in points})
    for point in points:
        wanted = [part for part in ("backbone", "segmenter") if point.values[part] is not None]
        parts = {part: schema.build(point.values[part], part) for part in wanted}
        schema.build(point.values["method"], "method", **parts)


@pytest.mark.slow
def test_localization_heads_are_scored_as_decaf_beside_them() -> None:
    for dataset in ("ref_davis17", "reasonvos", "revos"):
        heads, decaf = (
            compose([f"experiment={name}", f"dataset={dataset}", "backbone=qwen2_5_vl_7b"])[0]
            for name in ("agents/loc_head", "decaf/table2")
        )
        assert heads.values["protocols"] == decaf.values["protocols"] != []


@pytest.mark.slow
def test_a_models_heads_become_the_methods() -> None:
    (plain,) = compose(["method=loc_head", "dataset=shapes"])
    (told,) = compose(["method=loc_head", "dataset=shapes", "backbone.loc_heads=[[3,1],[4,2]]"])
    assert plain.values["method"]["heads"] == []
    assert told.values["method"]["heads"] == [[3, 1], [4, 2]]
    assert plain.digest != told.digest
    # To a method that doesn't read single heads they are nothing.
    decaf = [
        compose(["method=decaf_tiny", "dataset=shapes", *more])[0].digest
        for more in ([], ["backbone.loc_heads=[]"])
    ]
    assert decaf[0] == decaf[1]


def _said(body: dict) -> str:
    """What a model would say that plays along with every agent."""
    parts = body["messages"][-1]["content"]
    asked = parts if isinstance(parts, str) else " ".join(part.get("text", "") for part in parts)
    system = str(body["messages"][0]["content"])
    replies = {
        "list every instance": '[{"instance": "dog", "best_frame": 1, "description": "a red disc"}]',
        "name it by one": '{"phrase": "a red disc"}',
        "other noun phrases": '{"phrases": ["disc", "red dog"]}',
        "which shows better": '{"winner": "A"}',
        "how well does": '{"score": 1.0}',
        "rewrite this query": '{"statement": "a disc", "type": 3}',
        "yes-or-no": '{"questions": ["Is it red?"]}',
        "how well can it be told": '{"scores": [1, 2, 3, 4, 5, 6, 7, 8]}',
        "describe each target": '{"count": 1, "descriptions": ["the disc"]}',
        "give one point": '{"point": [400, 400]}',
        "left: the key frame; right": '{"absent": false, "clearer_elsewhere": false, "occluded": false}',
        "should hold": '{"yes": true}',
        "locate": '[{"bbox_2d": [200, 200, 600, 600]}]',
        "describe this instance": '{"description": "the dog"}',
        '"match"': '{"match": true}',
    }
    if "by tools" in system:
        if "gives" in asked:
            return call("select_masks_and_return", final_answer_masks=[1, 2])
        return call("segment_phrase", text_prompt="a red disc")
    return next((reply for words, reply in replies.items() if words in asked.lower()), "?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random weights of what the agents need beside the chat model."""
    return {
        "sam3": tiny_sam.write_sam3(tmp_path_factory.mktemp("sam3"), seed=2) / "video",
        "clip": tiny_sam.write_clip(tmp_path_factory.mktemp("clip")),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam3_agent", "evol_sam3", "refer_agent"])
def test_an_agent_runs_on_the_sample_with_tiny_weights(
    name: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    server = Server(lambda body: (200, spoken(_said(body))))
    words = [
        f"method={name}",
        "backbone=chat",
        "backbone.model=m",
        f"backbone.url={server.model(tmp_path).url}",
    ]
    if name == "refer_agent":
        words += [f"method.clip.model={folders['clip']}", "segmenter=tiny_sam2"]
    else:
        words += [f"segmenter.model={folders['sam3']}", "segmenter.text_threshold=0.1"]
        words += ["method.fail_below=0", "method.least_pixels=1"] if name == "evol_sam3" else []
    small = ["dataset=shapes", "limit.clips=1", "limit.expressions=2", "baselines=[]"]
    assert main(["run", *words, *small]) == 0
    assert "J&F" in capsys.readouterr().out
    (store,) = runs_in(tmp_path / "runs")
    for prediction in store.some(store.index().values()):
        assert prediction.ok
        assert prediction.details["cost"]["calls"] > 1
    server.close()


@pytest.mark.slow
def test_decaf_answers_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The experiment's method and protocol on images that ship, with the models that ship."""
    monkeypatch.chdir(tmp_path)
    words = ["experiment=decaf/images", "dataset=photos", "backbone=tiny_mllm", "segmenter=tiny_sam2"]
    assert main(["run", *words, "limit.clips=2", "limit.expressions=1", "method.video_tokens=48"]) == 0
    assert "oIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_refam_answers_videos_nobody_has_published_numbers_of(
    sam2_package_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    architecture, checkpoint = sam2_package_files["sam2.1"]
    words = ["experiment=refam/beyond", "dataset=shapes", "backbone=tiny_dit"]
    words += [f"segmenter.architecture={architecture}", f"segmenter.checkpoint={checkpoint}"]
    assert main(["run", *words, "limit.clips=1", "limit.expressions=1"]) == 0
    assert len(runs_in(tmp_path / "runs")) == 2
    assert "J&F" in capsys.readouterr().out

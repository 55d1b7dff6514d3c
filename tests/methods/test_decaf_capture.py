"""The attention-capture stage: what it fills serves every fusion, and its digest says which runs share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from refseg_bench import schema
from refseg_bench.methods.decaf import ATTENTION_KNOBS, DecAF, Fusion
from refseg_bench.schema import knob
from tests.methods.test_decaf import FakeMLLM, clip_of, expressions


@dataclass
class Model:
    """A backbone's knobs."""

    path: str = "tiny"
    batch_size: int = knob(4, transient=True)


def values(**method):
    node = schema.complete({"_target_": "refseg_bench.methods.decaf.DecAF", **method}, "method")
    return {"method": node, "backbone": {"_target_": f"{__name__}.Model", "path": "tiny", "batch_size": 4}}


def test_after_a_capture_no_fusion_needs_the_model(tmp_path):
    clip = clip_of(tmp_path, np.zeros((20, 48, 64, 3), np.uint8))
    texts = expressions("the dog", "the red thing")
    first = DecAF(FakeMLLM(), mask="attention", fusion=Fusion(contrast="obj_only"))
    first.cache_root = tmp_path / "cache"
    first.capture(clip, texts)
    assert first.fusion.contrast == "obj_only"
    for fusion in (Fusion(), Fusion(contrast="obj_only"), Fusion(branch="video", frame_kernel=1)):
        later = DecAF(FakeMLLM(), mask="attention", fusion=fusion)
        later.cache_root = tmp_path / "cache"
        assert len(list(later.predict(clip, texts))) == 2
        assert later.backbone.asked == []


@pytest.mark.parametrize(
    "same",
    [
        {"tau_pq": 0.5},
        {"fusion": {"contrast": "obj_only"}},
        {"mask": "attention"},
        {"ac": "none"},
        {"sb": None},
    ],
)
def test_what_is_made_of_the_attention_does_not_part_runs(same):
    assert DecAF.capture_digest(values(**same)) == DecAF.capture_digest(values())


@pytest.mark.parametrize(
    "other", [{"n_frames": 8}, {"rollout": "rollout"}, {"prompt_bg_text": "What is around {obj_name}?"}]
)
def test_another_attention_is_another_capture(other):
    assert set(other) <= set(ATTENTION_KNOBS)
    assert DecAF.capture_digest(values(**other)) != DecAF.capture_digest(values())


def test_another_model_is_another_capture_but_another_batch_is_not():
    mine, batch, model = values(), values(), values()
    batch["backbone"]["batch_size"] = 1
    model["backbone"]["path"] = "other"
    assert DecAF.capture_digest(mine) == DecAF.capture_digest(batch)
    assert DecAF.capture_digest(mine) != DecAF.capture_digest(model)
    assert DecAF.capture_digest(values(use_cache=False)) is None


def test_the_attention_knobs_are_knobs():
    assert set(ATTENTION_KNOBS) <= set(schema.knobs(DecAF))

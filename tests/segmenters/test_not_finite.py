"""A model whose answer is no number has no masks; one whose weights are not all there isn't loaded."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from refseg_bench.backbones.mllm import MLLM
from refseg_bench.backbones.weights import ModelError, shipped
from refseg_bench.errors import RefsegError
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.grounding_dino import GroundingDino
from refseg_bench.segmenters.sam1 import Sam1
from refseg_bench.segmenters.sam2_hf import Sam2Hf
from refseg_bench.segmenters.sam3 import Sam3
from tools import tiny_sam as tiny

CLICK = Prompt.click(0.3, 0.5)


def spoil(module):
    """Every weight of a part is NaN, as after a damaged download or an overflow."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(float("nan"))


def test_sam1(tmp_path, make_clip):
    segmenter = Sam1(model=str(tiny.write_sam1(tmp_path)), device="cpu")
    with segmenter.open(make_clip(length=1)) as session:
        spoil(session._model.mask_decoder)
        with pytest.raises(RefsegError, match="NaN"):
            session.segment(0, [CLICK])


@pytest.mark.parametrize("part", ["mask_decoder", "memory_attention", "mask_decoder.pred_obj_score_head"])
def test_a_tracker(sam2_folder, clip, part):
    segmenter = Sam2Hf(model=str(sam2_folder["sam2.1"]), device="cpu")
    with segmenter.open(clip) as session:
        spoil(session._core.model.get_submodule(part))
        with pytest.raises(RefsegError, match="NaN"):
            list(session.propagate(2, [CLICK]))
        if part != "memory_attention":
            with pytest.raises(RefsegError, match="NaN"):
                session.segment(2, [CLICK])


@pytest.mark.slow
def test_words_to_instances(tmp_path, clip):
    sam3 = Sam3(model=str(tiny.write_sam3(tmp_path / "sam3", seed=2) / "video"), device="cpu")
    spoil(sam3.concept_detector.detr_decoder)
    spoil(sam3.concept_tracker.detector_model.detr_decoder)
    with sam3.open(clip) as session:
        for look in (lambda: session.segment(0, [Prompt(text="dog")]), lambda: session.find("dog")):
            with pytest.raises(RefsegError, match="NaN"):
                look()
    masks = {
        "_target_": "refseg_bench.segmenters.sam2_hf.Sam2Hf",
        "model": str(tiny.write_sam2(tmp_path / "sam2", seed=4)),
    }
    folder = tiny.write_grounding_dino(tmp_path / "dino", seed=2)
    dino = GroundingDino(masks=masks, model=str(folder), device="cpu")
    spoil(dino.loaded[0].model.decoder)
    with dino.open(clip) as session, pytest.raises(RefsegError, match="NaN"):
        session.segment(0, [Prompt(text="dog")])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, (3, 3)])
def test_weights_that_a_checkpoint_lacks_are_not_drawn_at_random(tmp_path, sam2_folder, clip, shape):
    opened = {
        shipped("tiny_mllm"): lambda path: MLLM(path=path, device="cpu").loaded(),
        sam2_folder["sam2"]: lambda path: Sam2Hf(model=path, device="cpu").open(clip),
    }
    for number, (folder, load) in enumerate(opened.items()):
        place = shutil.copytree(folder, tmp_path / str(number))
        file = place / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in sorted(tensors) if name.endswith("q_proj.weight"))
        del tensors[name]
        save_file(tensors | ({name: torch.zeros(shape)} if shape else {}), file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 of the weights .* random: .*q_proj"):
            load(str(place))

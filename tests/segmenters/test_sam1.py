"""SAM for images against transformers' own processor and model call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refseg_bench.errors import ConfigError
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.sam1 import Sam1
from tools import tiny_sam as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_sam1(tmp_path_factory.mktemp("sam1"))


def test_points_and_boxes_as_through_the_processor(folder, make_clip):
    from transformers import SamImageProcessorPil, SamModel

    image = make_clip(length=1, size=(60, 90))
    model = SamModel.from_pretrained(folder).eval()
    processor = SamImageProcessorPil(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    inputs = processor(images=image.load([0])[0], return_tensors="pt")
    (height, width) = (int(v) for v in inputs["reshaped_input_sizes"][0])
    prompts = [Prompt.click(0.3, 0.5), Prompt.click(0.8, 0.2), Prompt(box=(0.1, 0.2, 0.6, 0.9))]
    with Sam1(model=str(folder), device="cpu").open(image) as session:
        got = session.segment(0, prompts)
        single = session.segment(0, prompts, multimask=False)
        assert session.counters.frame_encodings == 1
        assert session.counters.decoder_calls == 4
    asked = [
        {"input_points": torch.tensor([[[[0.3 * width, 0.5 * height]], [[0.8 * width, 0.2 * height]]]])},
        {"input_boxes": torch.tensor([[[0.1 * width, 0.2 * height, 0.6 * width, 0.9 * height]]])},
    ]
    rows = []
    for arguments in asked:
        with torch.inference_mode():
            output = model(inputs["pixel_values"], multimask_output=True, **arguments)
        masks = processor.post_process_masks(
            [output.pred_masks[0]], inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0]
        rows += list(zip(masks.numpy(), output.iou_scores[0].numpy(), strict=True))
    for candidates, (masks, ious) in zip(got, rows, strict=True):
        assert candidates.masks_KHW.shape == (3, 60, 90)
        assert candidates.ious_K == pytest.approx(ious, abs=1e-4)
        assert (candidates.masks_KHW != masks).mean() < 2e-3
    assert any(0 < c.masks_KHW.mean() < 1 for c in got)
    assert all(len(c) == 1 for c in single)


def test_a_side_that_shrinks_to_nothing_keeps_a_pixel(folder, make_clip):
    # The model's canvas has 128 pixels here: a height of 1 among 500 would be a quarter of one.
    with Sam1(model=str(folder), device="cpu").open(make_clip(length=1, size=(1, 500))) as session:
        assert session.segment(0, [Prompt.click(0.3, 0.5)])[0].masks_KHW.shape == (3, 1, 500)


def test_image_only(folder, make_clip):
    segmenter = Sam1(model=str(folder), device="cpu")
    with segmenter.open(make_clip(length=1)) as session:
        ((frame, masks),) = session.propagate(0, [Prompt.click(0.3, 0.5), Prompt.click(0.6, 0.5)])
        assert frame == 0
        assert masks.shape == (2, 60, 90)
        assert masks.dtype == np.bool_
    with segmenter.open(make_clip(length=3)) as session:
        with pytest.raises(ConfigError, match="can't follow"):
            session.propagate(0, [Prompt.click(0.3, 0.5)])
        with pytest.raises(ConfigError, match="takes no mask prompt"):
            session.segment(0, [Prompt(mask=np.zeros((60, 90), bool))])

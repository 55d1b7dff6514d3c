"""SAM 3: its tracker against transformers' own loop, its concept detector against the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refseg_bench.errors import DataError
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.sam3 import Sam3
from refseg_bench.segmenters.sam_base import square_pixels
from tools import tiny_sam as tiny

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_sam3(tmp_path_factory.mktemp("sam3"), seed=2)


@pytest.fixture
def ours(folder):
    return Sam3(
        model=str(folder / "tracker"), detector=str(folder / "detector"), device="cpu", text_threshold=0.1
    )


CLICKS = [Prompt.click(0.2, 0.5), Prompt.click(0.45, 0.4), Prompt.click(0.8, 0.9)]


@pytest.mark.slow
def test_clicks_propagate_as_in_transformers_own_loop(ours, folder, clip):
    from transformers import Sam3TrackerVideoInferenceSession, Sam3TrackerVideoModel

    model = Sam3TrackerVideoModel.from_pretrained(folder / "tracker").eval()
    cpu = torch.device("cpu")
    pixels = torch.cat([square_pixels(f, 112, "bilinear", cpu, HALF, HALF) for f in clip.load()])
    session = Sam3TrackerVideoInferenceSession(
        video=pixels, video_height=clip.size[0], video_width=clip.size[1], dtype=torch.float32
    )
    for number, prompt in enumerate(CLICKS):
        inputs = {
            "point_coords": torch.tensor(prompt.points)[None, None] * 112,
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
        session.add_point_inputs(session.obj_id_to_idx(number), 3, inputs)
        session.obj_with_new_inputs.append(number)
    model(session, frame_idx=3)
    want = {}
    for reverse in (False, True):
        for step in model.propagate_in_video_iterator(session, start_frame_idx=3, reverse=reverse):
            enlarged = torch.nn.functional.interpolate(step.pred_masks, clip.size, mode="bilinear")
            want.setdefault(step.frame_idx, enlarged[:, 0].numpy())
    with ours.open(clip) as opened:
        got = dict(opened.propagate(3, CLICKS))
        assert opened.counters.frame_encodings == len(clip)
    for frame in range(len(clip)):
        unsure = np.abs(want[frame]) < 0.02
        assert unsure.mean() < 0.2
        assert np.all((got[frame] == (want[frame] > 0)) | unsure)
    assert any(m.any() and not m.all() for m in got.values())


def test_words_give_the_processors_instances(ours, folder, clip):
    from transformers import AutoTokenizer, Sam3ImageProcessor, Sam3Model

    model = Sam3Model.from_pretrained(folder / "detector").eval()
    tokens = AutoTokenizer.from_pretrained(folder / "detector")(
        "a red disc", return_tensors="pt", padding="max_length", max_length=32
    )
    pixels = square_pixels(clip.load([2])[0], 112, "bilinear", torch.device("cpu"), HALF, HALF)
    with torch.inference_mode():
        output = model(pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    (want,) = Sam3ImageProcessor().post_process_instance_segmentation(
        output, threshold=0.1, target_sizes=[clip.size]
    )
    order = want["scores"].argsort(descending=True)
    assert len(order) > 1
    with ours.open(clip) as session:
        (got,) = session.segment(2, [Prompt(text="a red disc")])
        (union,) = session.segment(2, [Prompt(text="a red disc")], multimask=False)
        session.segment(2, [Prompt(text="dog")])
        assert session.counters.frame_encodings == 1
    assert got.ious_K == pytest.approx(want["scores"][order].numpy(), abs=1e-5)
    assert (got.masks_KHW != want["masks"][order].numpy().astype(bool)).mean() < 1e-3
    assert np.array_equal(union.masks_KHW[0], got.masks_KHW.any(0))


def test_absent_concept_is_an_empty_mask(folder, clip):
    strict = Sam3(
        model=str(folder / "tracker"), detector=str(folder / "detector"), device="cpu", text_threshold=1.0
    )
    with strict.open(clip) as session:
        (got,) = session.segment(0, [Prompt(text="dog")])
        mask, score = got.best()
        assert not mask.any()
        assert 0 < score < 1
        assert not dict(session.propagate(0, [Prompt(text="dog")], frames=(0,)))[0].any()


@pytest.mark.slow
def test_words_through_a_video_follow_the_instances_of_the_frame(ours, clip):
    with ours.open(clip) as session:
        (found,) = session.segment(2, [Prompt(text="a red disc")])
        masks = [Prompt(mask=mask) for mask in found.masks_KHW]
        parts = dict(session.propagate(2, masks))
        got = dict(session.propagate(2, [Prompt(text="a red disc"), Prompt.click(0.2, 0.5)]))
        # Detector and tracker each encode a frame once.
        assert session.counters.frame_encodings == len(clip) + 1
    for frame in range(len(clip)):
        assert got[frame].shape == (2, *clip.size)
        assert (got[frame][0] != parts[frame].any(0)).mean() < 5e-3


def test_text_stands_alone(ours, clip):
    with ours.open(clip) as session, pytest.raises(DataError, match="is empty"):
        session.find(" ")
    with ours.open(clip) as session, pytest.raises(DataError, match="stands alone"):
        session.segment(0, [Prompt(text="dog", box=(0.1, 0.1, 0.5, 0.5))])

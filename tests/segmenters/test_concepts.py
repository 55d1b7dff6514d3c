"""Words to instances: SAM 3 over a video, Grounding-DINO before another segmenter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from refseg_bench.errors import ConfigError
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.grounding_dino import GroundingDino
from refseg_bench.segmenters.sam2_hf import Sam2Hf
from refseg_bench.segmenters.sam3 import _HALF, Sam3, _Kernel
from refseg_bench.segmenters.sam_base import square_pixels
from tools import tiny_sam as tiny


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    folder = tiny.write_sam3(tmp_path_factory.mktemp("sam3"), seed=2) / "video"
    return Sam3(model=str(folder), device="cpu", text_threshold=0.1)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tiny.write_grounding_dino(tmp_path_factory.mktemp("dino"), seed=2)
    masks = tiny.write_sam2(tmp_path_factory.mktemp("sam2"), seed=4)
    node = {"_target_": "refseg_bench.segmenters.sam2_hf.Sam2Hf", "model": str(masks), "device": "cpu"}
    return GroundingDino(masks=node, model=str(folder), device="cpu", box_threshold=2e-5)


@pytest.mark.slow
def test_a_concept_is_tracked_as_by_transformers_with_all_frames_in_memory(sam3, clip):
    from transformers import Sam3VideoInferenceSession
    from transformers.models.sam3_video.processing_sam3_video import Sam3VideoProcessor

    model, tokenizer = sam3.concept_tracker, sam3.tokenizer
    pixels = [square_pixels(f, 112, "bilinear", torch.device("cpu"), _HALF, _HALF) for f in clip.load()]
    state = Sam3VideoInferenceSession(
        video=torch.cat(pixels), video_height=clip.size[0], video_width=clip.size[1], dtype=torch.float32
    )
    processor = object.__new__(Sam3VideoProcessor)
    processor.tokenizer = tokenizer
    processor.add_text_prompt(state, "a red disc")
    want: dict[int, dict[int, np.ndarray]] = {}
    for step in model.propagate_in_video_iterator(state):
        shown = processor.postprocess_outputs(state, step)
        for one, mask in zip(shown["object_ids"].tolist(), shown["masks"].numpy(), strict=True):
            want.setdefault(one, {})[step.frame_idx] = mask
    assert want
    with sam3.open(clip) as session:
        found = session.find("a red disc")
    assert len(found) == len(want)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    got = [[mask.tobytes() for mask in one.track.masks()] for one in found]
    blank = np.zeros(clip.size, bool)
    for masks in want.values():
        assert [masks.get(frame, blank).tobytes() for frame in range(len(clip))] in got


def test_an_image_gives_the_detectors_instances(sam3, make_clip):
    with sam3.open(make_clip(length=1)) as session:
        (seen,) = session.segment(0, [Prompt(text="dog")])
        found = session.find("dog")
    assert [one.score for one in found] == pytest.approx(seen.ious_K[seen.masks_KHW.any(axis=(1, 2))])
    assert np.array_equal(found[0].track.mask(0), seen.masks_KHW[0])


def test_duplicates_are_removed_in_order_of_score():
    ious = torch.tensor([[1, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 1]])
    kernel = _Kernel()
    assert kernel.generic_nms(ious, torch.tensor([0.2, 0.9, 0.5]), 0.4).tolist() == [1, 2]
    assert kernel.generic_nms(ious, torch.tensor([0.2, 0.9, 0.5]), 0.1).tolist() == [1]
    assert kernel.generic_nms(ious, torch.tensor([0.9, 0.2, 0.5]), 0.4).tolist() == [0, 2]


def test_components_are_counted_with_their_corners():
    masks = np.random.default_rng(0).random((3, 1, 17, 12)) < 0.4
    labels, counts = _Kernel().cc_2d(torch.from_numpy(masks))
    for row in range(3):
        want, _ = ndimage.label(masks[row, 0], np.ones((3, 3)))
        sizes = np.bincount(want.ravel())
        sizes[0] = 0
        assert np.array_equal(counts[row, 0].numpy(), sizes[want])
        assert np.array_equal(labels[row, 0].numpy() > 0, masks[row, 0])


@pytest.mark.slow
def test_its_boxes_are_the_processors(dino, clip):
    model, processor = dino.loaded
    inputs = processor(images=clip.load([2])[0], text="a red disc.", return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    (want,) = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=2e-5, target_sizes=[(1, 1)]
    )
    order = want["scores"].argsort(descending=True)
    with dino.open(clip) as session:
        boxes, scores = session._detect(2, " A red DISC")
        (masks,) = session.segment(2, [Prompt(text="a red disc")])
        (union,) = session.segment(2, [Prompt(text="a red disc")], multimask=False)
        inner = Sam2Hf(model=dino.masks["model"], device="cpu").open(clip)
        drawn = inner.segment(2, [Prompt(box=box) for box in boxes])
    assert len(boxes) == len(order) > 1
    assert scores == pytest.approx(want["scores"][order].numpy())
    assert np.array(boxes) == pytest.approx(want["boxes"][order].clamp(0, 1).numpy(), abs=1e-6)
    assert np.array_equal(masks.masks_KHW, np.stack([one.best()[0] for one in drawn]))
    assert np.array_equal(union.masks_KHW[0], masks.masks_KHW.any(axis=0))
    assert session.counters.frame_encodings == 1
    assert [one.repo for one in dino.weights()] == [dino.model, dino.masks["model"]]


@pytest.mark.slow
def test_what_is_found_on_the_best_frame_is_tracked(dino, clip):
    with dino.open(clip) as session:
        found = session.find("a red disc")
        assert found
        totals = [float(session._detect(f, "a red disc")[1].sum()) for f in (0, 2, 3, 5)]
        best = (0, 2, 3, 5)[int(np.argmax(totals))]
        (seen,) = session.segment(best, [Prompt(text="a red disc")])
        masks = seen.masks_KHW[seen.masks_KHW.any(axis=(1, 2))]
        tracked = dict(session.propagate(best, [Prompt(mask=mask) for mask in masks]))
    for frame in range(len(clip)):
        got = np.stack([one.track.mask(frame) for one in found])
        assert np.array_equal(got, tracked[frame])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_a_picture_as_low_as_it_has_channels_is_read_as_a_picture(dino, make_clip, size):
    # The processor guesses which axis holds the colours of an array.
    low = make_clip(length=1, size=size)
    with dino.open(low) as session:
        (found,) = session.segment(0, [Prompt(text="a red disc")])
    assert found.masks_KHW.shape[1:] == size


def test_nothing_above_the_threshold_is_nothing(dino, clip):
    strict = GroundingDino(masks=dino.masks, model=dino.model, device="cpu", box_threshold=0.99)
    with strict.open(clip) as session:
        assert session.find("dog") == []
        assert not any(m.any() for _, m in session.propagate(0, [Prompt(text="dog")], frames=(0, 1)))
        clicked = dict(session.propagate(0, [Prompt(text="dog"), Prompt.click(0.3, 0.5)], frames=(0, 1)))
    assert clicked[1].shape[0] == 2
    assert not clicked[1][0].any()


def test_a_segmenter_without_words_says_so(dino, clip):
    with dino.inner.open(clip) as session, pytest.raises(ConfigError, match="takes no text prompt"):
        session.find("dog")

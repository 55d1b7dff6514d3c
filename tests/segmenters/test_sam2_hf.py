"""The transformers port: against transformers' own loop, against Meta's package, and batched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.memory_tracking import TrackingSession
from refseg_bench.segmenters.sam2 import Sam2
from refseg_bench.segmenters.sam2_hf import Sam2Hf
from refseg_bench.segmenters.sam_base import square_pixels
from tests.quick import quick_first


@pytest.fixture(params=quick_first(["sam2.1", "sam2"]))
def release(request):
    return request.param


@pytest.fixture
def ours(sam2_folder, release):
    return Sam2Hf(model=str(sam2_folder[release]), device="cpu")


CLICKS = [Prompt.click(0.2, 0.5), Prompt.click(0.45, 0.4), Prompt.click(0.8, 0.9)]


def box_mask(size):
    mask = np.zeros(size, bool)
    mask[15:45, 20:60] = True
    return mask


@pytest.mark.slow
def test_image_model_of_transformers_gives_the_same_candidates(ours, sam2_folder, release, clip):
    from transformers import Sam2Model

    ours.fill_holes = "off"
    model = Sam2Model.from_pretrained(sam2_folder[release]).eval()
    pixels = square_pixels(clip.load([2])[0], 128, "bicubic", torch.device("cpu"))
    with ours.open(clip) as session:
        for several in (True, False):
            got = session.segment(2, CLICKS, multimask=several)
            points = torch.tensor([[[[x * 128, y * 128]] for p in CLICKS for x, y in p.points]])
            with torch.inference_mode():
                want = model(pixels, input_points=points, multimask_output=several)
            present = want.object_score_logits[0, :, 0] > 0
            assert present.any()
            for row, candidates in enumerate(got):
                assert candidates.ious_K == pytest.approx(want.iou_scores[0, row].numpy(), abs=2e-5)
                logits = torch.nn.functional.interpolate(
                    want.pred_masks[0, row][None], clip.size, mode="bilinear", align_corners=False
                )[0].numpy()
                # The image model shows the mask of an absent object too; the video model doesn't.
                mask = (logits > 0) & bool(present[row])
                assert (candidates.masks_KHW != mask).mean() < 1e-3


def stock_track(model, clip, start, masks=None):
    """transformers' own session and loop over the same pixels; logits (n, H, W) by frame."""
    from transformers import Sam2VideoInferenceSession

    pixels = torch.cat([square_pixels(f, 128, "bicubic", torch.device("cpu")) for f in clip.load()])
    session = Sam2VideoInferenceSession(
        video=pixels, video_height=clip.size[0], video_width=clip.size[1], dtype=torch.float32
    )
    for number in range(len(CLICKS) if masks is None else len(masks)):
        index = session.obj_id_to_idx(number)
        if masks is None:
            x, y = CLICKS[number].points[0]
            inputs = {
                "point_coords": torch.tensor([[[[x * 128, y * 128]]]]),
                "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
            }
            session.add_point_inputs(index, start, inputs)
        else:
            session.add_mask_inputs(index, start, masks[number])
        session.obj_with_new_inputs.append(number)
    model(session, frame_idx=start)
    out = {}
    for reverse in (False, True):
        for step in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            enlarged = torch.nn.functional.interpolate(
                step.pred_masks, clip.size, mode="bilinear", align_corners=False
            )
            out.setdefault(step.frame_idx, enlarged[:, 0].numpy())
    return out


def agree(mask, logits, slack=0.02):
    unsure = np.abs(logits) < slack
    return unsure.mean() < 0.2 and bool(np.all((mask == (logits > 0)) | unsure))


@pytest.mark.slow
def test_clicks_propagate_as_in_transformers_own_loop(ours, sam2_folder, release, clip):
    """Clicks without hole filling: here its loop and the official predictor agree."""
    from transformers import Sam2VideoModel

    ours.fill_holes = "off"
    model = Sam2VideoModel.from_pretrained(sam2_folder[release]).eval()
    want = stock_track(model, clip, 3)
    with ours.open(clip) as session:
        got = dict(session.propagate(3, CLICKS))
    assert all(agree(got[frame], want[frame]) for frame in range(len(clip)))


@pytest.fixture
def both(ours, sam2_package_files, release):
    architecture, checkpoint = sam2_package_files[release]
    return ours, Sam2(architecture=architecture, checkpoint=checkpoint, device="cpu")


def all_prompts(size):
    noise = np.random.default_rng(0).random(size) > 0.4
    return [
        Prompt(mask=box_mask(size)),
        *CLICKS,
        Prompt(mask=noise),
        Prompt(box=(0.1, 0.2, 0.7, 0.8)),
        Prompt(mask=np.zeros(size, bool)),
        Prompt(points=((0.4, 0.5), (0.9, 0.1)), labels=(1, 0)),
        Prompt(points=((0.4, 0.5),), labels=(1,), box=(0.1, 0.2, 0.7, 0.8)),
    ]


def test_parity_of_candidates_with_the_package(both, clip):
    results = []
    for segmenter in both:
        with segmenter.open(clip) as session:
            results.append([session.segment(2, all_prompts(clip.size), multimask=m) for m in (True, False)])
    for mine, theirs in zip(*results, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.ious_K == pytest.approx(b.ious_K, abs=2e-5)
            assert (a.masks_KHW != b.masks_KHW).mean() < 1e-3
    assert any(c.best()[0].any() and not c.best()[0].all() for c in results[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("frames", [None, (0, 2, 3, 5)])
def test_parity_of_propagation_with_the_package(both, clip, monkeypatch, frames):
    """Logits, memories and pointers of every frame and object, at one go."""
    steps = ([], [])
    for segmenter, kept in zip(both, steps, strict=True):
        for name in ("_begin", "_follow"):
            original = getattr(TrackingSession, name)
            monkeypatch.setattr(
                TrackingSession, name, lambda *a, o=original, k=kept, **kw: k.append(o(*a, **kw)) or k[-1]
            )
        with segmenter.open(clip) as session:
            list(session.propagate(3, all_prompts(clip.size), frames=frames))
        monkeypatch.undo()
    assert len(steps[0]) == len(steps[1]) > 0
    for mine, theirs in zip(*steps, strict=True):
        # Memories are bfloat16, which near 4 steps by 0.03; what falls on either side differs by processor.
        for name in ("logits_N1hw", "pointer_NC", "presence_N1", "memory_NChw"):
            most = 0.05 if name == "memory_NChw" else 0.01
            difference = (getattr(mine, name).float() - getattr(theirs, name).float()).abs()
            assert difference.quantile(0.99) < most
            assert difference.max() < 10 * most


@pytest.mark.slow
def test_the_shipped_model_gives_the_same_masks_through_the_package(tmp_path):
    """Trained weights, on a clip of the world they know: a click's masks, and tracked both ways."""
    from refseg_bench.backbones.weights import shipped
    from refseg_bench.config.components import open_dataset
    from tools import sam2_layout

    architecture, checkpoint = sam2_layout.write(shipped("tiny_sam2"), tmp_path)
    data = open_dataset("shapes")
    clip = data.clips()[0]
    first = data.target(clip, data.expressions(clip)[0]).objects[0]
    frame = max(range(len(clip)), key=lambda t: first.mask(t).sum())
    rows, columns = np.nonzero(first.mask(frame))
    middle = len(rows) // 2
    click = Prompt.click((columns[middle] + 0.5) / clip.size[1], (rows[middle] + 0.5) / clip.size[0])
    found = []
    for segmenter in (
        Sam2Hf(model="shipped:tiny_sam2", device="cpu"),
        Sam2(architecture=architecture, checkpoint=checkpoint, device="cpu"),
    ):
        with segmenter.open(clip) as session:
            candidates = session.segment(frame, [click])[0]
            found.append((candidates, dict(session.propagate(frame, [click]))))
    (mine, my_track), (theirs, their_track) = found
    assert mine.ious_K == pytest.approx(theirs.ious_K, abs=1e-4)
    assert (mine.masks_KHW != theirs.masks_KHW).mean() < 1e-3
    for t in range(len(clip)):
        assert (my_track[t] != their_track[t]).mean() < 1e-3
    inside = my_track[frame][0] & first.mask(frame)
    assert inside.sum() > 0.8 * (my_track[frame][0] | first.mask(frame)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("release", ["sam2.1"])
def test_objects_together_equal_one_by_one(ours, clip):
    prompts = all_prompts(clip.size)
    with ours.open(clip) as session:
        together = dict(session.propagate(2, prompts))
        candidates = session.segment(2, prompts)
        alone = [dict(session.propagate(2, [prompt])) for prompt in prompts]
        single = [session.segment(2, [prompt])[0] for prompt in prompts]
        assert session.counters.frame_encodings == len(clip)
    for row, track in enumerate(alone):
        for frame in range(len(clip)):
            assert (together[frame][row] != track[frame][0]).mean() < 5e-3
    for a, b in zip(candidates, single, strict=True):
        assert a.ious_K == pytest.approx(b.ious_K, abs=2e-5)
        assert (a.masks_KHW != b.masks_KHW).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("release", ["sam2.1"])
@pytest.mark.parametrize("expressions", [1, 20])
def test_encoder_passes_are_the_frames_used(ours, clip, expressions):
    with ours.open(clip) as session:
        for number in range(expressions):
            x = 0.1 + 0.8 * number / 20
            best = [c.best()[0] for frame in (0, 2) for c in session.segment(frame, [Prompt.click(x, 0.5)])]
            list(session.propagate(2, [Prompt(mask=best[1])], frames=(0, 2, 4)))
        assert session.counters.frame_encodings == 3
        list(session.propagate(2, CLICKS))
        assert session.counters.frame_encodings == len(clip)
        assert session.counters.recomputed_frames == 0


@pytest.mark.slow
@pytest.mark.parametrize("release", ["sam2.1"])
def test_that_there_is_no_prompt_is_encoded_once(ours, clip):
    with ours.open(clip) as session:
        encoder, encoded = session._core.model.prompt_encoder, []
        hook = encoder.register_forward_hook(lambda *_: encoded.append(1))
        for click in (Prompt.click(0.5, 0.5), Prompt.click(0.3, 0.6)):
            assert len(list(session.propagate(0, [click]))) == len(clip) > 2
        hook.remove()
    assert len(encoded) == 2 + 1, "two clicks, and what the tracked frames have instead"


@pytest.mark.slow
def test_recomputed_and_offloaded_features_change_nothing(sam2_folder, release, clip):
    tracks = []
    for host_mb in (12000.0, 0.7, 0.0):
        segmenter = Sam2Hf(model=str(sam2_folder[release]), device="cpu", feature_host_mb=host_mb)
        with segmenter.open(clip) as session:
            tracks.append(dict(session.propagate(3, CLICKS)))
            list(session.propagate(3, CLICKS[::-1]))  # the same again would be remembered
            kept = session.features.megabytes
            assert kept <= host_mb
            assert (session.counters.recomputed_frames > 0) == (host_mb < 12000)
    for frame in range(len(clip)):
        assert np.array_equal(tracks[0][frame], tracks[1][frame])
        assert np.array_equal(tracks[0][frame], tracks[2][frame])


@pytest.mark.slow
@pytest.mark.parametrize("release", ["sam2.1"])
def test_runs_are_deterministic_and_sessions_independent(ours, clip, make_clip):
    other = make_clip(length=4, size=(50, 70), seed=9)
    runs = []
    for _ in range(2):
        with ours.open(clip) as session:
            runs.append(dict(session.propagate(3, CLICKS)))
        with ours.open(other) as session:
            assert dict(session.propagate(0, CLICKS))[3].shape == (3, 50, 70)
    assert all(np.array_equal(runs[0][f], runs[1][f]) for f in range(len(clip)))


@pytest.mark.slow
@pytest.mark.parametrize("release", ["sam2.1"])
def test_bf16_is_near_fp32_and_declared(both, clip):
    prompts = [*CLICKS, Prompt(mask=box_mask(clip.size))]
    for segmenter in both:
        half = dataclasses.replace(segmenter, precision="bf16")
        assert half.report()["precision"] == "bf16"
        with segmenter.open(clip) as full_session, half.open(clip) as half_session:
            full = full_session.segment(3, CLICKS)
            rough = half_session.segment(3, CLICKS)
            masks = dict(half_session.propagate(3, prompts, frames=(1, 2, 3, 4)))
        assert masks[1].shape == (4, *clip.size)
        for a, b in zip(full, rough, strict=True):
            assert a.ious_K == pytest.approx(b.ious_K, abs=0.1)
            assert not np.array_equal(a.ious_K, b.ious_K)


def test_image_is_a_clip_of_one_frame(ours, make_clip):
    image = make_clip(length=1)
    with ours.open(image) as session:
        assert [f for f, _ in session.propagate(0, [Prompt.click(0.3, 0.5)])] == [0]


def test_resampling_is_pillows(clip):
    from PIL import Image

    frame = clip.load([0])[0]
    for name, method in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        got = square_pixels(frame, 64, name, torch.device("cpu"))[0].numpy()
        resized = np.asarray(Image.open(clip.frame_paths[0]).resize((64, 64), method)) / 255.0
        want = (resized - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        assert np.allclose(got, want.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("release", ["sam2.1"])
def test_where_transformers_own_loop_leaves_the_official_predictor(both, sam2_folder, release, clip):
    """A mask prompt: what docs/segmenters.md lists. Equality here means the list needs an update."""
    from transformers import Sam2VideoInferenceSession, Sam2VideoModel

    rough = np.random.default_rng(0).random((128, 128)) > 0.4
    mask = torch.from_numpy(rough)[None, None].float()
    model = Sam2VideoModel.from_pretrained(sam2_folder[release]).eval()
    pixels = square_pixels(clip.load([0])[0], 128, "bicubic", torch.device("cpu"))
    session = Sam2VideoInferenceSession(video=pixels, video_height=60, video_width=90, dtype=torch.float32)
    session.add_mask_inputs(session.obj_id_to_idx(0), 0, mask)
    session.obj_with_new_inputs.append(0)
    model(session, frame_idx=0)
    stock = session.output_dict_per_obj[0]["cond_frame_outputs"][0]

    steps = []
    for segmenter in both:
        with segmenter.open(clip) as opened, torch.inference_mode():
            features = opened.features.get(0)
            heads = opened._core.take_mask(features, mask)
            logits = opened._filled(heads.best_N1hw)
            large = torch.nn.functional.interpolate(logits, (128, 128), mode="bilinear", align_corners=False)
            memory = opened._core.memorise(features, large, heads.presence_N1, from_prompt=True)
            steps.append((heads, logits, memory))
    (ours, filled, memory), (package, package_filled, package_memory) = steps
    for a, b in (
        (ours.pointer_NC, package.pointer_NC),
        (filled, package_filled),
        (memory, package_memory),
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    # 1. The pointer comes from three-mask decoding instead of a single mask.
    assert (stock["object_pointer"] - package.pointer_NC).abs().max() > 0.01
    # 2. No hole filling.
    assert torch.equal(stock["pred_masks"], package.best_N1hw)
    assert (stock["pred_masks"] != package_filled).any()
    # 3. The memory is made from the full mask, not from the low-resolution one that is shown.
    stock_memory = stock["maskmem_features"].float().permute(1, 2, 0).view(package_memory.shape)
    assert (stock_memory - package_memory).abs().max() > 0.1

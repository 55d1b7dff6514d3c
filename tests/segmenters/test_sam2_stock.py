"""Our driver of Meta's package against the package's own video predictor, object by object."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from scipy.ndimage import label as scipy_label

from refseg_bench.segmenters import sam2
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.sam2 import Sam2
from tests.quick import quick_first


def components(mask):
    """Stands in for the compiled kernel: labels and areas of 8-connected components, by SciPy."""
    labels, areas = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.int64)
    for index in np.ndindex(*mask.shape[:2]):
        labels[index], _ = scipy_label(mask[index].numpy(), structure=np.ones((3, 3)))
        areas[index] = np.bincount(labels[index].ravel())[labels[index]] * (labels[index] > 0)
    return torch.from_numpy(labels), torch.from_numpy(areas)


@pytest.fixture(params=quick_first(["sam2.1", "sam2"]))
def release(request):
    return request.param


@pytest.fixture
def ours(sam2_package_files, release):
    architecture, checkpoint = sam2_package_files[release]
    return Sam2(architecture=architecture, checkpoint=checkpoint, device="cpu")


@pytest.fixture
def stock(sam2_package_files, release, monkeypatch):
    """The package's predictor with the published post-processing; holes are filled without CUDA."""
    sam2.import_sam2()
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    architecture, checkpoint = sam2_package_files[release]
    node = OmegaConf.load(architecture).model
    node._target_ = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    node.fill_hole_area = 8
    node.binarize_mask_from_pts_for_mem_enc = True
    node.sam_mask_decoder_extra_args = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    predictor = instantiate(node, _recursive_=True).eval()
    predictor.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    monkeypatch.setattr("sam2.utils.misc.get_connected_components", components)
    return predictor


@pytest.fixture(scope="module")
def jpegs(make_clip):
    return make_clip(length=9, suffix=".jpg")


def state_of(predictor, clip, folder, frames=None):
    """The predictor's state over a folder that holds just the wanted frames."""
    folder.mkdir()
    for row, frame in enumerate(range(len(clip)) if frames is None else frames):
        shutil.copy(clip.frame_paths[frame], folder / f"{row:05d}.jpg")
    return predictor.init_state(str(folder))


def track(predictor, state, start):
    """Forward, then backward without a reset: position → logits (n, H, W)."""
    out = {}
    for reverse in (False, True):
        for position, _, logits in predictor.propagate_in_video(
            state, start_frame_idx=start, reverse=reverse
        ):
            out.setdefault(position, logits[:, 0].numpy())
    return out


def agree(mask, logits, slack=0.02):
    """Equal masks, but for pixels whose logit is so near 0 that rounding decides."""
    unsure = np.abs(logits) < slack
    return unsure.mean() < 0.2 and bool(np.all((mask == (logits > 0)) | unsure))


CLICKS = [(0.2, 0.5), (0.45, 0.4), (0.8, 0.9)]


def test_clicks_give_the_predictors_masks_and_its_best_iou(ours, stock, jpegs, tmp_path, monkeypatch):
    state = state_of(stock, jpegs, tmp_path / "video")
    seen = []
    heads = stock._forward_sam_heads
    monkeypatch.setattr(stock, "_forward_sam_heads", lambda **kw: seen.append(heads(**kw)) or seen[-1])
    height, width = jpegs.size
    for number, (x, y) in enumerate(CLICKS):
        _, _, logits = stock.add_new_points_or_box(
            state, 3, 100 + number, points=[[x * width, y * height]], labels=[1]
        )
    with ours.open(jpegs) as session:
        got = session.segment(3, [Prompt.click(x, y) for x, y in CLICKS])
        assert session.counters.decoder_calls == 1
    assert any(candidates.best()[0].any() for candidates in got)
    for candidates, row, head in zip(got, logits[:, 0], seen, strict=True):
        mask, iou = candidates.best()
        assert agree(mask, row.numpy())
        assert iou == pytest.approx(head[2].max().item(), abs=2e-5)
        assert candidates.ious_K == pytest.approx(head[2][0].numpy(), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [pytest.param(None, marks=pytest.mark.slow), (0, 2, 3, 5, 8)])
def test_masks_propagate_as_in_the_predictor_on_any_subset(ours, stock, jpegs, tmp_path, frames):
    rng = np.random.default_rng(0)
    height, width = jpegs.size
    masks = np.zeros((3, height, width), bool)
    masks[0, 10:40, 30:60] = True
    masks[1] = rng.random((height, width)) > 0.4  # full of small holes
    # The third object's mask is empty: "not in this frame".
    start = 3
    position = start if frames is None else frames.index(start)
    state = state_of(stock, jpegs, tmp_path / "video", frames)
    for number, mask in enumerate(masks):
        stock.add_new_mask(state, position, 100 + number, mask)
    want = track(stock, state, position)
    with ours.open(jpegs) as session:
        got = dict(session.propagate(start, [Prompt(mask=m) for m in masks], frames=frames))
    video = range(len(jpegs)) if frames is None else frames
    assert sorted(got) == sorted(video)
    for row, frame in enumerate(video):
        assert agree(got[frame], want[row]), frame
    assert any(m.any() and not m.all() for frame, m in got.items() if frame != start)


def test_points_and_boxes_propagate_as_in_the_predictor(ours, stock, jpegs, tmp_path):
    state = state_of(stock, jpegs, tmp_path / "video")
    height, width = jpegs.size
    stock.add_new_points_or_box(state, 2, 1, points=[[0.4 * width, 0.5 * height]], labels=[1])
    stock.add_new_points_or_box(state, 2, 2, box=[0.1 * width, 0.2 * height, 0.7 * width, 0.8 * height])
    stock.add_new_points_or_box(
        state, 2, 3, points=[[0.4 * width, 0.5 * height], [0.9 * width, 0.1 * height]], labels=[1, 0]
    )
    want = track(stock, state, 2)
    prompts = [
        Prompt.click(0.4, 0.5),
        Prompt(box=(0.1, 0.2, 0.7, 0.8)),
        Prompt(points=((0.4, 0.5), (0.9, 0.1)), labels=(1, 0)),
    ]
    with ours.open(jpegs) as session:
        got = dict(session.propagate(2, prompts))
    assert all(agree(got[frame], want[frame]) for frame in range(len(jpegs)))


@pytest.mark.slow
def test_long_track_forgets_nothing_it_needs(sam2_package_files, stock, release, make_clip, tmp_path):
    """Longer than memory and pointers reach, both ways from the middle."""
    clip = make_clip(length=40, suffix=".jpg", size=(40, 60))
    mask = np.zeros(clip.size, bool)
    mask[10:30, 20:40] = True
    state = state_of(stock, clip, tmp_path / "video")
    stock.add_new_mask(state, 20, 1, mask)
    want = track(stock, state, 20)
    architecture, checkpoint = sam2_package_files[release]
    with Sam2(architecture=architecture, checkpoint=checkpoint, device="cpu").open(clip) as session:
        got = dict(session.propagate(20, [Prompt(mask=mask)]))
    assert all(agree(got[frame], want[frame]) for frame in range(40))

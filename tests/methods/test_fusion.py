"""Sampling, smoothing, contrast, normalisation and fusion against plain loops and torch one-liners."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.errors import DataError
from refseg_bench.methods.base import highest
from refseg_bench.methods.decaf.fusion import (
    Fusion,
    Maps,
    attention_volume,
    candidate_points,
    coarse_masks,
    contrast,
    fuse,
    gaussian_kernel,
    keypoints,
    minmax,
    otsu,
    repeat_in_time,
    resize,
    sample_frames,
    smooth,
)


def volume(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, (0,)),
        (2, (0, 1)),
        (16, tuple(range(16))),
        (17, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16)),
        (50, (0, 3, 6, 9, 13, 16, 19, 22, 26, 29, 32, 35, 39, 42, 45, 49)),
    ],
)
def test_sampled_frames(length, expected):
    assert sample_frames(length) == expected


@given(st.integers(1, 3000), st.integers(2, 40))
def test_sampling_keeps_both_ends_and_order(length, count):
    found = sample_frames(length, count)
    assert found[0] == 0
    assert found[-1] == length - 1
    assert len(found) == min(length, count)
    assert list(found) == sorted(set(found))


@pytest.mark.parametrize("size", [3, 5, 7])
def test_smoothing_is_a_zero_padded_gaussian(size):
    attn = volume((2, 6, 9))
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.exp(-(x**2 + y**2) / 2.0)
    kernel /= kernel.sum()
    np.testing.assert_allclose(gaussian_kernel(size), kernel, rtol=1e-6)
    found = smooth(attn, size)
    padded = np.pad(attn, ((0, 0), (half, half), (half, half)))
    for t in range(2):
        for r in range(6):
            for c in range(9):
                expected = (padded[t, r : r + size, c : c + size] * kernel).sum()
                assert found[t, r, c] == pytest.approx(expected, rel=1e-5)
    assert found[0, 0, 0] < smooth(np.ones_like(attn), size)[0, 3, 4]
    assert smooth(attn, 1) is attn


def test_contrast_subtracts_raw_values_before_any_scaling():
    obj, bg = volume((2, 3, 4), 1) * 1e-3, volume((2, 3, 4), 2) * 1e-3
    np.testing.assert_array_equal(contrast(obj, bg), np.maximum(obj - bg, 0))
    np.testing.assert_array_equal(contrast(obj, None), obj)
    with pytest.raises(DataError, match="differ in size"):
        contrast(obj, bg[:, :2])


def test_minmax_of_a_constant_is_zero_not_nan():
    np.testing.assert_array_equal(minmax(np.full((2, 3, 3), 0.25, np.float32)), np.zeros((2, 3, 3)))
    mixed = np.stack([np.full((2, 2), 3, np.float32), np.array([[0, 1], [2, 4]], np.float32)])
    found = minmax(mixed, per_frame=True)
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_array_equal(found[1], np.array([[0, 0.25], [0.5, 1]]))
    assert minmax(mixed)[0, 0, 0] == 0.75


@pytest.mark.parametrize(
    ("cells", "frames", "expected"),
    [
        (8, 16, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
        (3, 5, [0, 0, 1, 1, 2]),
        (1, 1, [0]),
        (1, 2, [0, 0]),
        (2, 3, [0, 0, 1]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_time_repetition(cells, frames, expected):
    base = np.arange(cells, dtype=np.float32)[:, None, None]
    assert repeat_in_time(base, frames)[:, 0, 0].tolist() == expected


def test_time_repetition_refuses_other_counts():
    with pytest.raises(DataError, match="can't belong"):
        repeat_in_time(np.zeros((3, 1, 1), np.float32), 9)


@given(st.integers(0, 10**6), st.sampled_from([(8, 16), (3, 5), (4, 4), (1, 1)]))
def test_fusion_is_the_formula(seed, lengths):
    video, frame = volume((lengths[0], 3, 5), seed), volume((lengths[1], 6, 10), seed + 1)
    v = torch.from_numpy(video)
    if len(v) != len(frame):
        v = v.repeat_interleave(2, 0)
    if len(v) != len(frame):
        v = v[:-1]
    up = torch.nn.functional.interpolate(v[None], size=(6, 10), mode="bilinear", align_corners=False)[0]
    mean = (up + torch.from_numpy(frame)) / 2
    expected = ((mean - mean.min()) / (mean.max() - mean.min())).numpy()
    found = fuse(video, frame)
    np.testing.assert_array_equal(found, expected)
    assert found.max() == 1
    assert found.min() == 0
    np.testing.assert_array_equal(fuse(video, frame, final_minmax=False), mean.numpy())
    np.testing.assert_array_equal(fuse(video, frame, "frame"), minmax(frame))
    np.testing.assert_array_equal(fuse(video, frame, "video"), minmax(up.numpy()))


def test_the_whole_volume_in_official_order():
    rng = np.random.default_rng(3)
    ov, bv = (rng.random((2, 4, 5), np.float32) * 1e-4 for _ in range(2))
    of, bf = (rng.random((4, 8, 10), np.float32) * 1e-4 for _ in range(2))

    def conv(a, k):
        g = torch.exp(-((torch.arange(k) - k // 2) ** 2) / 2.0)
        g = torch.outer(g, g)
        return torch.nn.functional.conv2d(
            torch.tensor(a)[:, None], (g / g.sum())[None, None], padding=k // 2
        )[:, 0]

    cv = (conv(ov, 3) - conv(bv, 3)).clamp(0, 1)
    cf = (conv(of, 7) - conv(bf, 7)).clamp(0, 1)
    cv = (cv - cv.min()) / (cv.max() - cv.min())
    low, high = cf.amin((1, 2), True), cf.amax((1, 2), True)
    cf = (cf - low) / (high - low)
    up = torch.nn.functional.interpolate(cv.repeat_interleave(2, 0)[None], size=(8, 10), mode="bilinear")[0]
    v = (up + cf) / 2
    expected = (v - v.min()) / (v.max() - v.min())
    obj, bg = Maps(ov, of), Maps(bv, bf)
    np.testing.assert_allclose(attention_volume(obj, bg, Fusion()), expected.numpy(), atol=2e-5)
    alone = attention_volume(obj, bg, Fusion(contrast="obj_only"))
    np.testing.assert_array_equal(alone, attention_volume(obj, None, Fusion()))
    assert np.abs(alone - expected.numpy()).max() > 0.1


def test_a_background_that_wins_everywhere_gives_a_constant_volume():
    obj, bg = (Maps(make((1, 4, 4), np.float32), make((2, 8, 8), np.float32)) for make in (np.zeros, np.ones))
    zeros = attention_volume(obj, bg, Fusion())
    assert not zeros.any()
    assert candidate_points(zeros, (0, 1)) == []
    assert highest(zeros, (0, 1)) is None


def otsu_by_hand(grey):
    """The threshold with the largest between-class variance, by exhaustive search."""
    best, level = -1.0, 0
    values = grey.ravel().astype(np.float64)
    for t in range(256):
        low, high = values[values <= t], values[values > t]
        if len(low) and len(high):
            variance = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if variance > best * (1 + 1e-12):
                best, level = variance, t
    return level


@given(st.integers(0, 10**6))
def test_otsu_is_opencvs_and_the_definition(seed):
    rng = np.random.default_rng(seed)
    field = rng.random((12, 17)).astype(np.float32) ** rng.integers(1, 5)
    grey = (field * 255).astype(np.uint8)
    level, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    found = otsu(field)
    np.testing.assert_array_equal(found, grey > level)
    np.testing.assert_array_equal(found, grey > otsu_by_hand(grey))


def test_coarse_masks_are_per_frame_at_full_size():
    field = volume((3, 6, 8))
    masks = list(coarse_masks(field, (48, 70)))
    up = torch.nn.functional.interpolate(torch.tensor(field)[None], size=(48, 70), mode="bilinear")[0].numpy()
    for mask, frame in zip(masks, up, strict=True):
        grey = (frame * 255).astype(np.uint8)
        _, expected = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        np.testing.assert_array_equal(mask, expected > 0)
    assert not otsu(np.zeros((5, 5), np.float32)).any()


def test_points_are_cell_centres_in_row_major_order():
    field = np.zeros((2, 2, 4), np.float32)
    field[1, 0, 3] = 0.8
    field[1, 1, 0] = 1.0
    field[1, 1, 1] = 0.79999
    found = candidate_points(field, (0, 7), 0.8)
    assert [(p.frame, p.x, p.y) for p in found] == [(7, 0.875, 0.25), (7, 0.125, 0.75)]
    assert [p.value for p in found] == pytest.approx([0.8, 1.0])


def test_keypoints_are_the_highest_cells_on_the_clips_frames():
    field = volume((3, 4, 5))
    found = keypoints(field, (0, 7, 15), 10)
    assert found.shape == (10, 4)
    np.testing.assert_array_equal(found[:, 3], np.sort(field.ravel())[::-1][:10])
    t, y, x = np.unravel_index(field.argmax(), field.shape)
    assert found[0].tolist() == [(0, 7, 15)[t], (y + 0.5) / 4, (x + 0.5) / 5, float(field.max())]
    assert len(keypoints(field, (0, 7, 15), 1000)) == 60
    point = highest(field, (0, 7, 15))
    assert (point.frame, point.y, point.x) == (found[0, 0], found[0, 1], found[0, 2])


def test_resize_to_the_same_size_changes_nothing():
    field = volume((2, 4, 5))
    np.testing.assert_array_equal(resize(field, (4, 5)), field)

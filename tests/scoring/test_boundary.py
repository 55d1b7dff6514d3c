"""The plain kernel against the definition, vos-benchmark and TrackEval."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import disk
from trackeval.metrics.j_and_f import JAndF
from vos_benchmark.evaluator import Evaluator

from refseg_bench.scoring import boundary
from refseg_bench.types import encode_rle

SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (48, 64), (60, 61), (130, 97)]


def definition(truth, answer):
    """Counts written down from the definition, pixel by pixel where it matters."""
    radius = math.ceil(0.008 * np.linalg.norm(truth.shape))

    def edges(mask):
        grown = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        block = np.stack([grown[:-1, :-1], grown[:-1, 1:], grown[1:, :-1], grown[1:, 1:]])
        return block.any(0) & ~block.all(0)

    edge_g, edge_p = edges(truth), edges(answer)

    def hits(points, other):
        oy, ox = np.nonzero(other)
        return sum(
            bool(((oy - y) ** 2 + (ox - x) ** 2 <= radius**2).any())
            for y, x in zip(*np.nonzero(points), strict=True)
        )

    return (
        int((truth & answer).sum()),
        int(truth.sum()),
        int(answer.sum()),
        int(edge_g.sum()),
        int(edge_p.sum()),
        hits(edge_g, edge_p) if edge_p.any() else 0,
        hits(edge_p, edge_g) if edge_g.any() else 0,
    )


def draw_mask(rng, size, kind):
    height, width = size
    mask = np.zeros(size, bool)
    if kind == "empty":
        return mask
    if kind == "full":
        return ~mask
    if kind == "pixel":
        mask[rng.integers(height), rng.integers(width)] = True
    elif kind == "noise":
        mask = rng.random(size) < rng.random()
    elif kind == "edge":
        mask[:, : rng.integers(1, width + 1)] = True
    else:
        canvas = np.zeros(size, np.uint8)
        for _ in range(rng.integers(1, 4)):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            axes = (int(rng.integers(1, width + 1) // 2), int(rng.integers(1, height + 1) // 2))
            cv2.ellipse(canvas, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
        mask = canvas.astype(bool)
    return mask


@st.composite
def mask_pairs(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from(SIZES))
    kinds = st.sampled_from(["empty", "full", "pixel", "noise", "edge", "blob", "blob", "shifted"])
    first = draw_mask(rng, size, draw(kinds))
    kind = draw(kinds)
    second = (
        np.roll(first, rng.integers(-4, 5, 2), (0, 1)) if kind == "shifted" else draw_mask(rng, size, kind)
    )
    return first, second


def plain(truth, answer):
    radius = boundary.boundary_radius(truth.shape)
    return boundary.compare(boundary.from_mask(truth), boundary.from_mask(answer), radius)


@given(mask_pairs())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_counts_equal_the_definition(pair):
    assert plain(*pair) == definition(*pair)


@given(mask_pairs())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_run_lengths_give_the_same_counts(pair):
    truth, answer = pair
    radius = boundary.boundary_radius(truth.shape)
    regions = [boundary.from_rle(encode_rle(m), *m.shape[::-1]) for m in pair]
    assert boundary.compare(*regions, radius) == plain(truth, answer)


@given(mask_pairs())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_j_and_f_equal_vos_benchmark_and_trackeval(pair):
    truth, answer = pair
    counts = np.array([plain(truth, answer)])
    j, f = boundary.jaccard(counts)[0], boundary.boundary_f(counts)[0]
    oracle = Evaluator()
    if truth.any() or answer.any():
        oracle.feed_frame(answer.astype(np.uint8), truth.astype(np.uint8))
        assert j == pytest.approx(oracle.object_iou[1][0], abs=1e-12)
        assert f == pytest.approx(oracle.boundary_f[1][0], abs=1e-12)
    else:
        assert (j, f) == (1, 1)
    coded = [{"size": list(m.shape), "counts": encode_rle(m)} for m in pair]
    assert f == pytest.approx(JAndF._compute_f([[coded[0]]], [[coded[1]]], 0, 0, 0.008)[0], abs=1e-12)
    assert j == pytest.approx(JAndF._compute_j([[coded[0]]], [[coded[1]]], 1, 1, 1)[0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("size", "radius"),
    [((480, 854), 8), ((720, 1280), 12), ((1080, 1920), 18), ((180, 320), 3), ((96, 96), 2)],
)
def test_radius(size, radius):
    assert boundary.boundary_radius(size) == radius == boundary.boundary_radius(size[::-1])


def test_a_full_mask_has_no_boundary():
    full, empty = np.ones((20, 30), bool), np.zeros((20, 30), bool)
    counts = np.array([plain(full, empty)])
    assert boundary.jaccard(counts)[0] == 0
    assert boundary.boundary_f(counts)[0] == 1


def test_large_frames_with_dense_boundaries():
    rng = np.random.default_rng(3)
    truth, answer = rng.random((2, 480, 854)) < 0.01
    kernel = disk(8)
    got = plain(truth, answer)
    edges = [boundary.boundary_map(m).astype(np.uint8) for m in (truth, answer)]
    spread = [cv2.dilate(e, kernel) for e in edges]
    assert got[5:] == (int((edges[0] & spread[1]).sum()), int((edges[1] & spread[0]).sum()))

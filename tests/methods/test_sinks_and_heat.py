"""Sinks, aggregation, placing, peaks and the choice of a mask, on cases whose answer is known."""

import numpy as np
import pytest
import torch

from refseg_bench.backbones.attention_maps import (
    MapObserver,
    MapOptions,
    SoftmaxTokens,
    TokenLayout,
    TokenMaps,
    sink_statistics,
)
from refseg_bench.backbones.sdpa_tap import SdpaCall
from refseg_bench.methods.pointing import (
    aggregate,
    choose,
    content_cells,
    place,
    resized,
    threshold,
    unit_range,
)
from refseg_bench.methods.refam.filters import Gas, act, find_sinks, redistribute
from refseg_bench.segmenters.base import Candidates

N, D = 30, 16


def planted(sink=None, layers=3, heads=2, tokens=6, seed=0):
    """Token maps of random queries; the planted token's key is long along the mean query."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.ones(D) / D**0.5
    recorder = MapObserver(
        TokenLayout(slice(tokens, tokens + N), (), (tuple(range(tokens)),)),
        MapOptions(),
        [{"all": SoftmaxTokens(tuple(range(tokens)))}],
    )
    for layer in range(layers):
        query = 3 * mean + 0.3 * torch.randn(1, heads, tokens + N, D, generator=generator)
        key = 0.5 * torch.randn(1, heads, tokens + N, D, generator=generator)
        key -= (key @ mean)[..., None] * mean
        if sink is not None:
            key[:, :, sink] = 5 * mean
        recorder(SdpaCall(layer, query, key, query, D**-0.5))
    return recorder.results((5, 6))[0]["all"]


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("sink", [0, 4])
def test_a_planted_sink_is_found(sink, per_layer):
    assert find_sinks(planted(sink), Gas(per_layer=per_layer)) == (sink,)


def test_no_sink_is_found_where_none_is():
    assert find_sinks(planted(None), Gas()) == ()
    assert find_sinks(planted(2), Gas(enabled=False)) == ()


def test_each_threshold_counts():
    maps = planted(3)
    g, u, v = sink_statistics(maps.maps_TN, maps.text_TT)[:, 3]
    assert find_sinks(maps, Gas(tau_text=g + 0.01)) == ()
    assert find_sinks(maps, Gas(tau_image=u + 0.01)) == ()
    assert find_sinks(maps, Gas(cv_max=v - 0.01)) == ()
    assert find_sinks(maps, Gas(tau_text=g - 0.01, tau_image=u - 0.01, cv_max=v + 0.01)) == (3,)


def test_without_text_attention_the_image_side_decides():
    maps = planted(1)
    blind = TokenMaps(maps.maps_TN, None, maps.layer_stats_L3T, maps.layers, maps.grid)
    assert find_sinks(blind, Gas()) == (1,)


def test_never_all_tokens_are_sinks():
    text, stats = np.full((2, 2), 0.5, np.float32), np.ones((1, 3, 2), np.float32)
    flat = TokenMaps(np.full((2, N), 0.5, np.float32), text, stats, (0,), (5, 6))
    found = find_sinks(flat, Gas(tau_text=0.5, tau_image=0.5, cv_max=1.0))
    assert len(found) == 1


def test_redistribution_is_the_softmax_without_the_sink():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, N))
    A = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    kept = np.delete(logits, 2, 0)
    expected = np.exp(kept) / np.exp(kept).sum(0)
    out = redistribute(A, (2,))
    np.testing.assert_allclose(np.delete(out, 2, 0), expected, rtol=1e-5)
    assert (out[2] == 0).all()


def test_the_four_actions():
    A = np.full((4, N), 0.25, np.float32)
    maps, gone = act(A, (0, 2), content=(2, 3), action="drop")
    np.testing.assert_array_equal(maps, A)
    assert gone == (0, 2)
    maps, gone = act(A, (0, 2), content=(2, 3), action="redistribute")
    np.testing.assert_allclose(maps[[1, 3]], 0.5)
    assert gone == (0, 2)
    maps, gone = act(A, (0, 2), content=(2, 3), action="keep_content")
    np.testing.assert_allclose(maps[[1, 2, 3]], 1 / 3, rtol=1e-6)
    assert gone == (0,)
    maps, gone = act(A, (0, 2), content=(2, 3), action="mask_logits")
    np.testing.assert_array_equal(maps, A)
    assert gone == (0, 2)


def test_aggregation_is_an_equal_weight_mean_of_probabilities():
    maps = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(aggregate(maps, (0, 2), "mean"), maps[[0, 2]].mean(0))
    np.testing.assert_allclose(aggregate(maps, (0, 2), "sum"), 2 * aggregate(maps, (0, 2), "mean"))
    np.testing.assert_allclose(aggregate(maps, (0, 2), "max"), maps[2])


@pytest.mark.parametrize("size", [(7, 11), (64, 64), (480, 854), (5, 1), (1, 9)])
@pytest.mark.parametrize("grid", [(5, 6), (1, 1)])
def test_bilinear_is_torchs(size, grid):
    rng = np.random.default_rng(1)
    map_hw = rng.random(grid, np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(map_hw)[None, None], size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resized(map_hw, size, "bilinear", (1, 1)), expected[0, 0], atol=1e-6)


def test_padded_canvases_are_cropped():
    """An image on the left half of the canvas: the right half of the map is not on it."""
    map_hw = np.array([[1, 2, 8, 9]], np.float32)
    np.testing.assert_allclose(resized(map_hw, (1, 2), "nearest", (1, 0.5)), [[1, 2]])
    np.testing.assert_allclose(content_cells(map_hw, (1, 0.5)), [[1, 2]])
    assert place(map_hw, (4, 4), "none", (1, 0.1)).shape == (1, 1)


@pytest.mark.parametrize("grid", [(64, 64), (30, 53)])
def test_the_peak_of_a_cell_is_its_centre(grid):
    """Row-major maps of the published grids: the upsampled peak lies within half a cell of the centre."""
    for row, column in [(0, 0), (grid[0] // 2, 3), (grid[0] - 1, grid[1] - 1)]:
        flat = np.zeros(grid[0] * grid[1], np.float32)
        flat[row * grid[1] + column] = 1
        size = (427, 640)
        big = place(flat.reshape(grid), size, "bilinear", (1.0, 1.0))
        y, x = np.unravel_index(int(big.argmax()), size)
        # At a border the map is flat outside the outermost centres, so the first of the equal pixels wins.
        assert abs((y + 0.5) / size[0] - (row + 0.5) / grid[0]) <= 0.5 / grid[0] + 1e-6
        assert abs((x + 0.5) / size[1] - (column + 0.5) / grid[1]) <= 0.5 / grid[1] + 1e-6


def test_choice_among_candidates():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :1], masks[1, :2], masks[2, :3] = True, True, True
    candidates = Candidates(masks, np.array([0.2, 0.1, 0.9], np.float32))
    heat = np.zeros((4, 4), np.float32)
    heat[:2] = 1
    assert choose(candidates, "best_iou", 0, heat)[0] == 2
    assert choose(candidates, "index", 0, heat)[0] == 0
    assert choose(candidates, "index", 7, heat)[0] == 2
    assert choose(candidates, "heat", 0, heat)[0] == 1
    empty = Candidates(np.zeros((2, 4, 4), bool) | (np.arange(2) == 1)[:, None, None], np.ones(2, np.float32))
    assert choose(empty, "heat", 0, heat)[0] == 1, "an empty mask is never the best"


@pytest.mark.parametrize("how", ["best_iou", "index", "heat"])
def test_a_segmenter_may_offer_nothing(how):
    nothing = Candidates(np.zeros((0, 4, 4), bool), np.zeros(0, np.float32))
    chosen, mask = choose(nothing, how, 2, np.ones((4, 4), np.float32))
    assert chosen is None
    assert (mask.shape, mask.any()) == ((4, 4), False)


def test_constant_maps_have_no_threshold_mask():
    assert not threshold(np.full((3, 3), 0.7, np.float32), 0.5).any()
    assert threshold(np.array([[0, 1, 3]], np.float32), 1 / 3).tolist() == [[False, True, True]]
    np.testing.assert_array_equal(unit_range(np.full((2, 2), 3, np.float32)), 0)

"""Rollout: dense against plain numpy, streamed and shared against dense, in fp32 and fp64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import rollout_forms
from benchmarks.rollout_forms import streamed_rollout
from refseg_bench.backbones.base import layer_range, weighting
from refseg_bench.backbones.rollout import (
    LayerQK,
    dense_rollout,
    shared_rollout,
)
from refseg_bench.errors import RefsegError

MODES = ["v_max", "rollout_max", "rollout"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def stack(tokens, layers=4, heads=6, groups=2, dim=8, seed=0, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(layers):
        q = torch.randn(heads, tokens, dim, generator=generator, dtype=torch.float64) * sharp
        k = torch.randn(groups, tokens, dim, generator=generator, dtype=torch.float64)
        made.append(LayerQK(q, k, dim**-0.5))
    return made


def numpy_rollout(layers, visual, mode, residual=0.5):
    """The definition with loops over rows and heads, sharing no code with the package."""
    visual = np.asarray(visual)
    total = None
    for layer in layers:
        q, k = layer.q_HND.double().numpy(), layer.k_GND.double().numpy()
        heads, size, _ = q.shape
        maps = np.zeros((heads, size, size))
        for h in range(heads):
            key = k[h // (heads // k.shape[0])]
            for i in range(size):
                e = np.exp(layer.scale * (key[: i + 1] @ q[h, i]))
                maps[h, i, : i + 1] = e / e.sum()
        if mode == "rollout":
            weights = np.ones(heads)
        else:
            keys = visual if mode == "v_max" else np.ones(size, bool)
            weights = maps[:, :, keys].max(-1).mean(-1)
            weights = weights / weights.max()
        mixed = (1 - residual) * np.tensordot(weights, maps, 1) / heads + residual * np.eye(size)
        total = mixed if total is None else mixed @ total
    return total[-1]


def close(a, b, dtype):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_is_the_definition(mode, dtype):
    layers = stack(23)
    visual = torch.zeros(23, dtype=torch.bool)
    visual[4:15] = True
    close(dense_rollout(layers, visual, mode, dtype=dtype), numpy_rollout(layers, visual, mode), dtype)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    tokens=st.integers(2, 40),
    layers=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 6]),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    block=st.sampled_from([1, 3000, 10**7]),
    residual=st.sampled_from([0.5, 0.0, 0.3]),
    data=st.data(),
)
def test_streamed_is_dense(tokens, layers, groups, mode, dtype, block, residual, data):
    made = stack(tokens, layers, groups=groups, seed=tokens * 7 + layers)
    visual = torch.tensor(
        [*data.draw(st.lists(st.booleans(), min_size=tokens - 1, max_size=tokens - 1)), False]
    )
    visual[data.draw(st.integers(0, tokens - 2))] = True
    expected = dense_rollout(made, visual, mode, residual, torch.float64)
    found = streamed_rollout(made, visual, mode, residual, dtype, block)
    assert found.dtype == dtype
    close(found, expected, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size_P", [0, 1, 17])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("block", [2000, 10**7])
def test_prompts_on_one_prefix_equal_prompts_alone(mode, dtype, size_P, together, block):
    lengths = (1, 5, 9)
    base = stack(size_P, seed=1)
    visual_P = torch.zeros(size_P, dtype=torch.bool)
    visual_P[size_P // 3 : max(1, size_P - 1)] = True
    tails = [
        LayerQK(torch.stack([one.q_HND] * 3), torch.stack([one.k_GND] * 3), one.scale)
        for one in stack(9, seed=10)
    ]
    for tail in tails:  # other queries and keys for every prompt, and wild ones at the padding
        for k, length in enumerate(lengths):
            tail.q_HND[k] *= 1 + k
            tail.q_HND[k, :, length:] = 50
            tail.k_GND[k, :, length:] = 50
    if mode == "v_max" and size_P == 0:
        with pytest.raises(RefsegError, match="no visual tokens"):
            shared_rollout([base], [tails], [lengths], visual_P, mode)
        return
    cuts = [slice(0, 3)] if together else [slice(k, k + 1) for k in range(3)]
    # On a second prefix the prompts' own tokens are twice as strong.
    bases, own = [base, stack(size_P, seed=2)], (1, 2)
    passes = [
        [
            LayerQK(
                torch.cat([one.q_HND[cut, :, : max(lengths[cut])] * strong for strong in own]),
                torch.cat([one.k_GND[cut, :, : max(lengths[cut])]] * 2),
                one.scale,
            )
            for one in tails
        ]
        for cut in cuts
    ]
    ends = [lengths[cut] for cut in cuts]
    rows = shared_rollout(bases, passes, ends, visual_P, mode, 0.5, dtype, block)
    assert rows.shape == (2, 3, size_P + 9)
    for first, strong, found in zip(bases, own, rows, strict=True):
        for k, length in enumerate(lengths):
            whole = [
                LayerQK(
                    torch.cat([a.q_HND, b.q_HND[k, :, :length] * strong], 1),
                    torch.cat([a.k_GND, b.k_GND[k, :, :length]], 1),
                    a.scale,
                )
                for a, b in zip(first, tails, strict=True)
            ]
            visual = torch.cat([visual_P, torch.zeros(length, dtype=torch.bool)])
            expected = dense_rollout(whole, visual, mode, 0.5, torch.float64)
            close(found[k, : size_P + length], expected, dtype)
            assert not found[k, size_P + length :].any()


def test_the_scale_of_the_rows_is_kept():
    """Weights are divided by their largest, then by H: rows are sub-stochastic, never renormalised."""
    layers = stack(20, sharp=4.0)
    visual = torch.zeros(20, dtype=torch.bool)
    visual[3:12] = True
    assert float(streamed_rollout(layers, visual, "v_max").sum()) < 0.999
    assert float(streamed_rollout(layers, visual, "rollout").sum()) == pytest.approx(1.0, abs=1e-5)


def test_rows_before_the_visual_block_count_in_the_mean_only():
    """m is 0 there, and N stays the divisor: a longer preamble changes all heads alike."""
    layers = stack(12, layers=1)
    visual = torch.zeros(12, dtype=torch.bool)
    visual[6:9] = True
    close(streamed_rollout(layers, visual), numpy_rollout(layers, visual, "v_max"), torch.float32)


def test_half_precision_keys_are_widened_before_the_product():
    layers = [LayerQK(a.q_HND.bfloat16(), a.k_GND.bfloat16(), a.scale) for a in stack(30)]
    visual = torch.ones(30, dtype=torch.bool)
    visual[-1] = False
    wide = [LayerQK(a.q_HND.double(), a.k_GND.double(), a.scale) for a in layers]
    close(streamed_rollout(layers, visual), dense_rollout(wide, visual, dtype=torch.float64), torch.float32)
    rough = streamed_rollout(layers, visual, dtype=torch.bfloat16)
    assert rough.dtype == torch.bfloat16


def test_both_spellings_of_a_mode():
    assert weighting("plain") == weighting("rollout")
    assert weighting("max_all_keys") == weighting("rollout_max")
    assert weighting("v_max") == "v_max"


def test_layer_ranges():
    assert layer_range(14, -1, 28) == range(14, 28)
    assert layer_range(0, 3, 28) == range(3)
    assert [layer_range(-1, -1, n).start for n in (28, 36, 48)] == [14, 18, 24]
    for start, end in ((28, -1), (5, 5), (-2, 3), (-1, 3), (0, 29)):
        with pytest.raises(RefsegError, match="no range"):
            layer_range(start, end, 28)


def test_no_visual_token_is_an_error():
    with pytest.raises(RefsegError, match="no visual tokens"):
        streamed_rollout(stack(5), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(RefsegError, match="no visual tokens"):
        dense_rollout(stack(5), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(RefsegError, match="no layer"):
        shared_rollout([[]], [[]], [[1]], torch.ones(5, dtype=torch.bool))


def test_prompts_together_take_fewer_operations_and_no_sync():
    found = {}
    for together in (False, True):
        call, _ = rollout_forms.form(
            2, (4, 2, 8), (30, 5), 4, torch.float32, torch.device("cpu"), together=together
        )
        found[together] = rollout_forms.launches(call, torch.device("cpu"))
    assert found[True][0] < found[False][0]
    assert found[True][1] <= 1  # where the visual runs begin and end, once

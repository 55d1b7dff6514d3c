"""Streamed maps against dense softmaxes written out with numpy, and the identities that must hold."""

import itertools

import numpy as np
import pytest
import torch

from refseg_bench.backbones.attention_maps import (
    MapObserver,
    MapOptions,
    SoftmaxTokens,
    TokenLayout,
    sink_statistics,
)
from refseg_bench.backbones.sdpa_tap import AttentionError, SdpaCall
from refseg_bench.errors import ConfigError

N, T, P, H, D, LAYERS = 12, 5, 3, 4, 8, 3


def calls(seed=0, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    return [
        SdpaCall(layer, *torch.randn(3, 1, H, P + T + N, D, generator=generator), scale)
        for layer in range(LAYERS)
    ]


LAYOUT = TokenLayout(slice(P + T, P + T + N), tuple(range(P)), (tuple(range(P, P + T)),))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def record(options, readings=None, layout=LAYOUT, seed=0, **more):
    recorder = MapObserver(layout, options, [readings or {"all": SoftmaxTokens(tuple(range(T)))}], **more)
    for call in calls(seed):
        recorder(call)
    return recorder


def dense(options, seed=0, tokens=range(T)):
    """A and B in float64 from the full joint attention of every layer and head."""
    tokens = np.asarray(list(tokens))
    text, image = P + tokens, np.arange(P + T, P + T + N)
    heads = range(H) if options.heads is None else options.heads
    maps, texts, logits, text_logits = [], [], [], []
    for call in calls(seed):
        for h in heads:
            q, k = call.query[0, h].double().numpy(), call.key[0, h].double().numpy()
            scores = q @ k.T * call.scale
            L = (
                scores[np.ix_(image, text)]
                if options.direction == "img2txt"
                else scores[np.ix_(text, image)].T
            )
            B = scores[np.ix_(text, text)]
            logits.append(L)
            text_logits.append(B)
            joint = options.softmax_axis == "joint" or options.head_agg == "joint_renorm"
            if not joint:
                maps.append(softmax(L, -1 if options.softmax_axis == "tokens" else 0))
            elif options.direction == "img2txt":
                keys = np.concatenate([image, np.arange(P), text])
                maps.append(softmax(scores[np.ix_(image, keys)], -1)[:, -len(text) :])
            else:
                maps.append(softmax(scores[np.ix_(text, np.concatenate([image, text]))], -1)[:, :N].T)
            if options.head_agg == "joint_renorm":
                texts.append(softmax(scores[np.ix_(text, np.concatenate([image, text]))], -1)[:, N:])
            else:
                texts.append(softmax(B, -1))
    if options.head_agg == "mean_logits_then_softmax":
        A = softmax(np.mean(logits, 0), -1 if options.softmax_axis == "tokens" else 0)
        return A.T, softmax(np.mean(text_logits, 0), -1)
    A, B = np.mean(maps, 0), np.mean(texts, 0)
    if options.head_agg == "joint_renorm":
        B = B / B.sum(1, keepdims=True)
        if options.softmax_axis != "joint":
            A = A / A.sum(-1 if options.softmax_axis == "tokens" else 0, keepdims=True)
    return A.T, B


COMBINATIONS = [
    MapOptions(agg, direction, axis, heads)
    for agg, direction, axis, heads in itertools.product(
        ("softmax_then_mean", "mean_logits_then_softmax", "joint_renorm"),
        ("img2txt", "txt2img"),
        ("tokens", "image", "joint"),
        (None, (1, 3)),
    )
    if not (agg == "mean_logits_then_softmax" and axis == "joint")
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
@pytest.mark.parametrize("chunk", [10**9, 1])
def test_streamed_equals_dense(options, chunk, monkeypatch):
    monkeypatch.setattr("refseg_bench.backbones.attention_maps.CHUNK", chunk)
    maps = record(options).results((3, 4))[0]["all"]
    A, B = dense(options)
    np.testing.assert_allclose(maps.maps_TN, A, atol=2e-6)
    np.testing.assert_allclose(maps.text_TT, B, atol=2e-6)
    np.testing.assert_allclose(maps.text_TT.sum(1), 1, atol=1e-5)
    if options.softmax_axis == "tokens":
        np.testing.assert_allclose(maps.maps_TN.sum(0), 1, atol=1e-5)
    if options.softmax_axis == "image":
        np.testing.assert_allclose(maps.maps_TN.sum(1), 1, atol=1e-5)
    assert maps.maps_THW.shape == (T, 3, 4)
    assert maps.layers == (0, 1, 2)


def test_single_head_and_layer_make_two_orders_coincide():
    """softmax_then_mean and joint_renorm agree where there is nothing to average."""
    results = []
    for agg in ("softmax_then_mean", "joint_renorm"):
        recorder = MapObserver(LAYOUT, MapOptions(agg, heads=(2,)), [{"all": SoftmaxTokens(tuple(range(T)))}])
        recorder(calls()[0])
        results.append(recorder.results((3, 4))[0]["all"])
    np.testing.assert_allclose(results[0].maps_TN, results[1].maps_TN, atol=1e-6)
    np.testing.assert_allclose(results[0].text_TT, results[1].text_TT, atol=1e-6)


def test_fewer_tokens_are_a_subset_softmax_and_obey_the_gate_identity():
    """A' = A · Z_E / (Z_E + Z_M): per head and layer, so one of each."""
    options = MapOptions(heads=(1,))
    readings = {"expression": SoftmaxTokens((0, 1, 2)), "all": SoftmaxTokens(tuple(range(T)))}
    recorder = MapObserver(LAYOUT, options, [readings])
    recorder(calls()[1])
    found = recorder.results((3, 4))[0]
    q, k = calls()[1].query[0, 1].double().numpy(), calls()[1].key[0, 1].double().numpy()
    z = np.exp(0.4 * q[P + T :] @ k[P : P + T].T)
    gate = z[:, :3].sum(1) / z.sum(1)
    np.testing.assert_allclose(found["all"].maps_TN[:3], found["expression"].maps_TN * gate, rtol=1e-5)


@pytest.mark.parametrize("agg", ["softmax_then_mean", "joint_renorm", "mean_logits_then_softmax"])
def test_excluded_tokens_get_nothing_and_the_rest_renormalises(agg):
    options = MapOptions(agg)
    readings = {"masked": SoftmaxTokens(tuple(range(T)), exclude=(1, 4)), "kept": SoftmaxTokens((0, 2, 3))}
    found = record(options, readings).results((3, 4))[0]
    assert (found["masked"].maps_TN[[1, 4]] == 0).all()
    np.testing.assert_allclose(found["masked"].maps_TN[[0, 2, 3]], found["kept"].maps_TN, atol=2e-6)


def test_several_sets_are_read_apart():
    layout = TokenLayout(LAYOUT.image, LAYOUT.prompt, ((P, P + 1), (P + 2, P + 3, P + 4)))
    recorder = MapObserver(
        layout, MapOptions(), [{"all": SoftmaxTokens((0, 1))}, {"all": SoftmaxTokens((0, 1, 2))}]
    )
    for call in calls():
        recorder(call)
    first, second = (r["all"].maps_TN for r in recorder.results((3, 4)))
    np.testing.assert_allclose(first, dense(MapOptions(), tokens=(0, 1))[0], atol=2e-6)
    np.testing.assert_allclose(second, dense(MapOptions(), tokens=(2, 3, 4))[0], atol=2e-6)


def test_output_space_is_the_inner_product_of_outputs():
    recorder = MapObserver(LAYOUT, MapOptions(space="output"), [{"all": SoftmaxTokens(tuple(range(T)))}])
    for call in calls():
        recorder(call)
    expected = []
    for call in calls():
        flat = call.output[0].permute(1, 0, 2).reshape(P + T + N, H * D).double().numpy()
        expected.append(softmax(flat[P + T :] @ flat[P : P + T].T, -1))
    found = recorder.results((3, 4))[0]["all"]
    np.testing.assert_allclose(found.maps_TN, np.mean(expected, 0).T, atol=1e-5)
    assert found.text_TT is None


@pytest.mark.slow
def test_nothing_dense_is_ever_made():
    """The largest tensor of a reading is heads × image × tokens, or the chunk; never image × image."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor._base is None:
                    self.elements = max(self.elements, tensor.numel())
            return out

    image, tokens, heads, width = 600, 4, 2, 8
    layout = TokenLayout(slice(tokens, tokens + image), (), (tuple(range(tokens)),))
    call = SdpaCall(0, *torch.randn(3, 1, heads, tokens + image, width), 1.0)
    recorder = MapObserver(layout, MapOptions(), [{"all": SoftmaxTokens(tuple(range(tokens)))}])
    with Largest() as seen:
        recorder(call)
    assert seen.elements <= heads * (image + tokens) * max(width, tokens)


def test_nan_in_a_layer_names_the_layer():
    bad = calls()
    bad[1].key[0, 2, P, 3] = float("nan")
    recorder = MapObserver(LAYOUT, MapOptions(), [{"all": SoftmaxTokens(tuple(range(T)))}])
    for call in bad:
        recorder(call)
    with pytest.raises(AttentionError, match="Layer 1 gives NaN"):
        recorder.results((3, 4))


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="no joint softmax"):
        MapOptions("mean_logits_then_softmax", softmax_axis="joint")
    with pytest.raises(ConfigError, match="no queries and keys"):
        MapOptions("joint_renorm", space="output")
    with pytest.raises(ConfigError, match="no attention head 9"):
        record(MapOptions(heads=(0, 9)))


def test_sink_statistics_of_a_known_case():
    maps = np.array([[0.5, 0.5, 0.5, 0.5], [0.4, 0.1, 0.4, 0.1], [0.1, 0.4, 0.1, 0.4]], np.float32)
    text = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.7, 0.2, 0.1]], np.float32)
    g, u, v = sink_statistics(maps, text)
    np.testing.assert_allclose(g, [2.1, 0.5, 0.4], rtol=1e-5)
    np.testing.assert_allclose(u, [1.5, 0.75, 0.75], rtol=1e-5)
    np.testing.assert_allclose(v, [0, 0.6, 0.6], rtol=1e-5)

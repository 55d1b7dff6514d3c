"""The tap: nothing changes, nothing goes unseen."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refseg_bench.backbones.attention_maps import HIDDEN, PROMPT, SoftmaxTokens, one_way_mask
from refseg_bench.backbones.dit import TokenRequest, assemble
from refseg_bench.backbones.dit.families import ForwardInputs
from refseg_bench.backbones.dit.text import tokenise
from refseg_bench.backbones.sdpa_tap import AttentionError, SdpaTap, _in_parts, parts_of, refuse_bypass

FAMILIES = ["flux", "sd3", "sd35m", "mochi", "cogvideox", "cogvideox2b", "wan"]
CALLS = {"flux": 4, "sd3": 3, "sd35m": 5, "mochi": 4, "cogvideox": 2, "cogvideox2b": 2, "wan": 4}


def question(dit, expression="a largest orange goldfish", magnets=("_", "with"), prompt="a cat on the left"):
    tokens = tokenise(dit.tokenizer, expression, magnets)
    return TokenRequest(tokens, prompt, {"all": SoftmaxTokens(tuple(range(len(tokens))))})


def forward_of(dit, picture, queries, mode="prompt", text=None):
    """A closure running one forward pass, and its token layout."""
    scene, loaded = dit.open(picture), dit._load()
    dit = dit.variant(text_mode=mode)
    text = text or assemble(dit, loaded, queries)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(scene.latents.shape, generator=generator)
    pooled = dit._pooled(loaded, queries[0])
    inputs = ForwardInputs(latents, text.embeddings[None], pooled, 0.5, 1.0, text.prompt_tokens)
    return lambda: loaded.family.forward(loaded.transformer, inputs), text, scene


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_bit_identical_and_calls_are_counted(family, make_dit, picture):
    dit = make_dit(family)
    forward, _, _ = forward_of(dit, picture, [question(dit)])
    schedule = dit.adapter.schedule(dit._load().transformer)
    assert len(schedule) == CALLS[family]
    seen = []
    with torch.inference_mode():
        plain = forward()
        tap = SdpaTap(schedule, dit.wanted(), seen.append, early_exit=False)
        tapped = tap.run(forward)
    assert torch.equal(plain, tapped)
    assert [call.layer for call in seen] == list(dit.wanted())
    assert tap.calls == CALLS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_image_tokens_stand_row_major(family, make_dit, picture):
    """Two inputs that differ in one patch differ in one query of the first layer: row · width + column."""
    dit = make_dit(family)
    forward, text, scene = forward_of(dit, picture, [question(dit)])
    loaded, (rows, columns) = dit._load(), scene.grid
    assert (rows, columns) == (4, 6)
    layout = text.layout(rows * columns, loaded.family)
    row, column = 2, 4
    first = []
    for bump in (0.0, 1.0):
        inputs = forward.__closure__[0].cell_contents
        latents = inputs.latents.clone()
        latents[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += bump
        changed = ForwardInputs(latents, inputs.text, inputs.pooled, 0.5, 1.0, inputs.prompt_tokens)
        schedule = loaded.family.schedule(loaded.transformer)
        if family == "wan":  # its cross-attention comes after the image has mixed: look at the self-attention
            schedule = [0, None, None, None]
        tap = SdpaTap(schedule, [0], lambda call: first.append(call.query[0, :, layout.image]))
        with torch.inference_mode():
            tap.run(lambda x=changed: loaded.family.forward(loaded.transformer, x))
    differs = (first[0] != first[1]).any(-1).any(0)
    assert differs.nonzero().flatten().tolist() == [row * columns + column]


def test_forward_ends_after_the_last_wanted_layer(make_dit, picture):
    dit = make_dit("flux", layers=[1])
    forward, _, _ = forward_of(dit, picture, [question(dit)])
    tap = SdpaTap(range(4), [1], lambda call: None)
    assert tap.run(forward) is None
    assert tap.calls == 2


def test_a_bypassing_kernel_is_an_error(make_dit, picture, monkeypatch):
    dit = make_dit("sd3")
    forward, _, _ = forward_of(dit, picture, [question(dit)])
    sdpa = F.scaled_dot_product_attention

    def private(query, key, value, **kwargs):
        with torch._C.DisableTorchFunction():
            return sdpa(query, key, value)

    import diffusers.models.attention_processor as processors

    monkeypatch.setattr(processors.F, "scaled_dot_product_attention", private)
    with pytest.raises(AttentionError, match="0 attention calls passed.*3 were expected"):
        SdpaTap(range(3), [0, 2], lambda call: None).run(forward)


@pytest.mark.parametrize("family", ["flux", "mochi"])
def test_the_environments_back_end_does_not_move_attention_away(family, make_dit, picture, monkeypatch):
    from diffusers.models import attention_dispatch

    dit = make_dit(family, n_noise=2)
    scene, seen, run = dit.open(picture), [], SdpaTap.run
    monkeypatch.setattr(SdpaTap, "run", lambda tap, forward: (run(tap, forward), seen.append(tap.calls)))
    plain = dit.attend(scene, [question(dit)])[0]["all"].maps_TN
    # As DIFFUSERS_ATTN_BACKEND sets it when diffusers is imported.
    flash = attention_dispatch.AttentionBackendName.FLASH
    monkeypatch.setattr(attention_dispatch._AttentionBackendRegistry, "_active_backend", flash)
    np.testing.assert_array_equal(dit.attend(scene, [question(dit)])[0]["all"].maps_TN, plain)
    assert attention_dispatch._AttentionBackendRegistry._active_backend is flash
    assert len(set(seen)) == 1
    assert len(seen) == dit.counters.dit_forwards == 4


def test_more_calls_than_the_schedule_is_an_error(make_dit, picture):
    dit = make_dit("sd35m")
    forward, _, _ = forward_of(dit, picture, [question(dit)])
    with pytest.raises(AttentionError, match="attention calls passed"):
        SdpaTap(range(3), [0], lambda call: None, early_exit=False).run(forward)


@pytest.mark.slow
def test_compiled_models_and_other_back_ends_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    refuse_bypass(model)
    with pytest.raises(AttentionError, match="compiled"):
        refuse_bypass(torch.compile(model))
    inner = torch.nn.Linear(2, 2)
    inner.compile()
    with pytest.raises(AttentionError, match="compiled"):
        refuse_bypass(torch.nn.Sequential(inner))
    model[0].processor = type("P", (), {"_attention_backend": "flash"})()
    with pytest.raises(AttentionError, match="'flash' bypasses"):
        refuse_bypass(model)


def test_unknown_layers_are_refused():
    with pytest.raises(AttentionError, match="no attention layer 9"):
        SdpaTap([None, 0, 1], [1, 9], lambda call: None)


@pytest.mark.parametrize("given", [None, "boolean", "additive"])
def test_a_mask_is_joined_to_the_models_own(given):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=generator)
    ours = torch.rand(5, 5, generator=generator) > 0.3
    theirs = torch.rand(5, 5, generator=generator) > 0.3
    ours |= torch.eye(5, dtype=torch.bool)
    theirs |= torch.eye(5, dtype=torch.bool)
    argument = {
        None: None,
        "boolean": theirs,
        "additive": torch.zeros(5, 5).masked_fill(~theirs, float("-inf")),
    }[given]
    joined = ours if given is None else ours & theirs
    tap = SdpaTap([0], [0], lambda call: None, mask=ours, early_exit=False)
    out = tap.run(lambda: F.scaled_dot_product_attention(q, k, v, argument))
    scores = (q @ k.mT / 2).masked_fill(~joined, float("-inf"))
    np.testing.assert_allclose(out, scores.softmax(-1) @ v, atol=1e-6)


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_queries_that_see_the_same_go_without_a_mask_on_an_accelerator(text_first, cross):
    roles, image = [PROMPT, PROMPT, 0, 0, 1, HIDDEN], 7
    mask = one_way_mask(roles, image, text_first=text_first, cross=cross)
    generator, masks = torch.Generator().manual_seed(0), []
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator) for n in (len(mask), *[len(mask.T)] * 2))

    def attend(*given, **more):
        masks.append(more.get("attn_mask"))
        return F.scaled_dot_product_attention(*given, **more)

    parts = parts_of(mask, image - 1 if cross or not text_first else len(roles))
    found = _in_parts(attend, parts, q, k, v, attn_mask=mask)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert masks[0] is None
    assert [len(one) for one in masks[1:]] == ([] if cross else [3])


def test_a_mask_of_another_size_is_an_error():
    q = torch.zeros(1, 1, 3, 2)
    tap = SdpaTap([0], [0], lambda call: None, mask=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(AttentionError, match="3 × 3 tokens, the mask 4 × 4"):
        tap.run(lambda: F.scaled_dot_product_attention(q, q, q))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_concept_stream_leaves_the_image_output_unchanged(family, make_dit, picture):
    dit = make_dit(family)
    watchers = [question(dit), question(dit, "pink cow", ("the",))]
    forward, text, scene = forward_of(dit, picture, watchers, "concept_stream")
    loaded, image = dit._load(), scene.grid[0] * scene.grid[1]
    mask = text.mask(image, loaded.family)
    inputs = forward.__closure__[0].cell_contents
    alone = ForwardInputs(
        inputs.latents, inputs.text[:, : text.prompt_tokens], inputs.pooled, 0.5, 1.0, text.prompt_tokens
    )
    if family == "cogvideox2b":  # needs its 64 text tokens, so the bare prompt is padded and masked as well
        padding = torch.zeros(1, 64 - text.prompt_tokens, inputs.text.shape[-1])
        alone = ForwardInputs(
            inputs.latents, torch.cat([alone.text, padding], 1), None, 0.5, None, text.prompt_tokens
        )
        roles = [PROMPT] * text.prompt_tokens + [HIDDEN] * padding.shape[1]
        bare = SdpaTap(
            range(2),
            [0],
            lambda call: None,
            mask=one_way_mask(roles, image, text_first=True),
            early_exit=False,
        )
        run_alone = lambda call: bare.run(call)  # noqa: E731
    else:
        run_alone = lambda call: call()  # noqa: E731
    schedule = loaded.family.schedule(loaded.transformer)
    tap = SdpaTap(schedule, [0], lambda call: None, mask=mask, early_exit=False)
    with torch.inference_mode():
        expected = run_alone(lambda: loaded.family.forward(loaded.transformer, alone))
        with loaded.family.prompt_only_conditioning(loaded.transformer, text.prompt_tokens):
            watched = tap.run(forward)
        unmasked = forward()
    np.testing.assert_allclose(watched, expected, atol=5e-6)
    assert float((unmasked - expected).abs().max()) > 1e-3, "without the mask the watchers would be seen"

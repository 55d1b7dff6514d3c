"""The backbone on tiny random models of every family: capture, shared prefixes, answers, refusals."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from refseg_bench.backbones import capture
from refseg_bench.backbones.base import MLLMSession, RolloutSettings, VisualSettings
from refseg_bench.backbones.mllm import MLLM, Session, answer_rules
from refseg_bench.backbones.mllm.families import family_of
from refseg_bench.errors import ConfigError, RefsegError
from tests.quick import quick_first
from tests.tiny_mllm import FAMILIES, LAYERS, backbone, build, clip_frames, tokenizer

QUICK_FIRST = quick_first(FAMILIES)

VISUAL = VisualSettings(video_tokens=12)
PROMPTS = ["the left dog. \nwhich?", "a cat that jumps over the fence. \nwhat is it? "]

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("shared_passes")


@functools.cache
def shared(name):
    # The oracle is transformers' own pass, positions included.
    return backbone(name, positions="transformers")


@functools.cache
def eager(name):
    model = build(name)
    model.set_attn_implementation("eager")
    return model


def whole_inputs(name, model, where, text, frames):
    """Inputs of one full prompt, put together without the code under test where the model has its own way."""
    family = family_of(model.config, {})
    block = family.video(frames, VISUAL) if where == "video" else family.frame(frames[where], VISUAL)
    pieces = []
    for piece in block.head:
        pieces += (
            tokenizer()(piece, add_special_tokens=False)["input_ids"]
            if isinstance(piece, str)
            else [piece[0]] * piece[1]
        )
    pieces += tokenizer()(block.tail[0] + text + block.tail[1], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([pieces])
    if name.startswith("qwen"):
        kinds = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
        inputs = {"input_ids": ids, "mm_token_type_ids": kinds, **block.inputs}
        if name == "qwen2_5_vl" and where == "video":
            inputs["second_per_grid_ts"] = torch.tensor([1.0])
    elif name == "internvl":
        inputs = {"input_ids": ids, **block.inputs}
    else:
        embeds = model.get_input_embeddings()(ids)
        values = block.inputs["pixel_values"]
        if where == "video":
            features = model.model.get_video_features(values[None]).pooler_output[0, :-1]
        else:
            # The model's own packing, then the base image and the newline column taken out.
            with_base = torch.cat([values[:1], values])[None]
            packed = model.model.get_image_features(with_base, block.inputs["image_sizes"]).pooler_output[0]
            _, height, width = block.grid
            features = packed[9:].view(height, width + 1, -1)[:, :-1].flatten(0, 1)
        mask = (ids == block.token)[..., None].expand_as(embeds)
        inputs = {"inputs_embeds": embeds.masked_scatter(mask, features)}
    return inputs, ids, block


def rolled(maps, visual, mode):
    """The definition on eager attention matrices, in numpy fp64."""
    total = None
    for layer in maps:
        layer = layer[0].double().numpy()
        heads, size, _ = layer.shape
        if mode == "rollout":
            weights = np.ones(heads)
        else:
            keys = visual if mode == "v_max" else np.ones(size, bool)
            weights = layer[:, :, keys].max(-1).mean(-1)
            weights = weights / weights.max()
        mixed = 0.5 * np.tensordot(weights, layer, 1) / heads + 0.5 * np.eye(size)
        total = mixed if total is None else mixed @ total
    return total[-1]


@pytest.mark.parametrize("where", ["video", 2])
@pytest.mark.parametrize("name", QUICK_FIRST)
def test_maps_equal_the_eager_oracle(name, where):
    frames = clip_frames(5)
    model = eager(name)
    family = family_of(model.config, {})
    for mode, start in (("v_max", -1), ("rollout_max", 1), ("rollout", 0)):
        settings = RolloutSettings(mode=mode, start=start)
        with shared(name).open(frames, VISUAL, settings) as session:
            found = session.read(where, PROMPTS, answer=False)
        first = LAYERS // 2 if start == -1 else start
        for prompt, reading in zip(PROMPTS, found, strict=True):
            with torch.no_grad():
                inputs, ids, block = whole_inputs(name, model, where, prompt, frames)
                out = model(**inputs, output_attentions=True)
            assert len(out.attentions) == LAYERS
            visual = (ids[0] == block.token).numpy()
            row = rolled(out.attentions[first:], visual, mode)
            expected = family.unpack(row[visual].astype(np.float32), block)
            assert reading.map_Thw.dtype == np.float32
            np.testing.assert_allclose(reading.map_Thw, expected, atol=1e-5 * expected.max(), rtol=1e-4)
            assert reading.answer is None


@pytest.mark.parametrize("where", ["video", 2])
@pytest.mark.parametrize("name", QUICK_FIRST)
def test_single_heads_equal_the_eager_oracle(name, where):
    frames, model = clip_frames(5), eager(name)
    family = family_of(model.config, {})
    with shared(name).open(frames, VISUAL, RolloutSettings(start=0, end=0)) as session:
        whole = session.heads(where, PROMPTS)
    with shared(name).open(frames, VISUAL, RolloutSettings(start=1, end=3)) as session:
        some = session.heads(where, PROMPTS, [(2, 3), (1, 0)])
        for wrong in ((3, 0), (1, 4), (1, -1)):
            with pytest.raises(ConfigError, match=r"no head that is read(.|\n)*layer 1 … 2, head 0 … 3"):
                session.heads(where, PROMPTS, [wrong])
    for prompt, maps, chosen in zip(PROMPTS, whole, some, strict=True):
        with torch.no_grad():
            inputs, ids, block = whole_inputs(name, model, where, prompt, frames)
            out = model(**inputs, output_attentions=True)
        visual = (ids[0] == block.token).numpy()
        rows = [head[-1].numpy()[visual] for layer in out.attentions for head in layer[0]]
        expected = np.stack([family.unpack(row, block) for row in rows])
        np.testing.assert_allclose(maps.reshape(expected.shape), expected, atol=1e-6, rtol=1e-4)
        assert np.array_equal(
            chosen.reshape(2, *expected.shape[1:])[0], maps.reshape(expected.shape)[2 * 4 + 3]
        )
        assert np.array_equal(chosen.reshape(2, *expected.shape[1:])[1], maps.reshape(expected.shape)[1 * 4])


@pytest.mark.parametrize("name", QUICK_FIRST)
def test_activations_are_those_of_the_output_layer(name):
    frames, model, made = clip_frames(3), build(name), backbone(name, positions="transformers")
    with made.open(frames, VISUAL, RolloutSettings()) as session:
        found = session.activations(1, PROMPTS)
        answers = [one.answer for one in session.read(1, PROMPTS, answer=True)]
    family = family_of(model.config, {})
    assert [one.text for one in found] == answers
    for prompt, one in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            inputs, ids, block = whole_inputs(name, model, 1, prompt, frames)
            logits = model(**inputs).logits[0].clamp_min(0).numpy()
        visual = (ids[0] == block.token).numpy()
        tail = ids[0, int(np.flatnonzero(visual)[-1]) + 1 :].tolist()
        # The pass over the bare prompt knows all but the answer.
        assert list(one.ids[: one.answer.start]) == tail
        assert len(one.ids) == one.answer.stop > one.answer.start
        maps = np.stack([family.unpack(logits[visual][:, token], block) for token in one.ids])
        np.testing.assert_allclose(one.maps_NThw, maps, atol=1e-4, rtol=1e-3)
        scores = logits[-len(tail) :][:, list(one.ids)]
        np.testing.assert_allclose(one.scores_NN[: len(tail)], scores, atol=1e-4, rtol=1e-3)


def test_a_session_without_heads_or_output_layer_says_so():
    with pytest.raises(ConfigError, match="tells no heads apart"):
        MLLMSession.heads(SimpleNamespace(), 0, PROMPTS)
    with pytest.raises(ConfigError, match="shows no output layer"):
        MLLMSession.activations(SimpleNamespace(), 0, PROMPTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_bit_equal_with_capture(name):
    frames = clip_frames(4)
    made = shared(name).loaded()
    stock, tapped = build(name), made.model
    assert not stock.config.get_text_config()._attn_implementation.startswith("refseg")
    with torch.no_grad():
        inputs, _, _ = whole_inputs(name, stock, "video", PROMPTS[0], frames)
        off = stock(**inputs, use_cache=True)
        idle = tapped(**inputs, use_cache=True)
        with capture.recording(range(LAYERS)) as seen:
            on = tapped(**inputs, use_cache=True)
        assert torch.equal(off.logits, idle.logits)
        assert torch.equal(off.logits, on.logits)
        assert sorted(seen.kept) == list(range(LAYERS))
        step = torch.tensor([[7]])
        a = stock(input_ids=step, **made.on(off.past_key_values))
        with capture.recording(range(LAYERS)) as seen:
            b = tapped(input_ids=step, **made.on(on.past_key_values))
        assert torch.equal(a.logits, b.logits)
        assert all(kept.q_HND.shape[2] == kept.k_GND.shape[2] == 1 for kept in seen.kept.values())


@pytest.mark.parametrize("name", QUICK_FIRST)
def test_answers_are_those_of_generate(name):
    frames = clip_frames(5)
    made = backbone(name, max_new_tokens=8, positions="transformers")
    model = made.loaded().model
    model.generation_config.repetition_penalty = 1.3
    made.loaded().rules = answer_rules(model.generation_config)
    stock = build(name)
    stock.generation_config.repetition_penalty = 1.3
    for where in ("video", 1):
        with made.open(frames, VISUAL, RolloutSettings()) as session:
            found = [r.answer for r in session.read(where, PROMPTS, answer=True)]
        for prompt, answer in zip(PROMPTS, found, strict=True):
            inputs, ids, _ = whole_inputs(name, stock, where, prompt, frames)
            if "inputs_embeds" in inputs:
                inputs["input_ids"] = ids
            with torch.no_grad():
                out = stock.generate(**inputs, max_new_tokens=8, num_beams=1, do_sample=False)
            expected = tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert answer == expected
            assert answer


def test_text_only_answers_are_those_of_generate():
    made = backbone("qwen2_5_vl")
    stock = build("qwen2_5_vl")
    with made.open(clip_frames(1), VISUAL, RolloutSettings()) as session:
        found = session.ask(["one", "a longer question?"])
    before, after = made.loaded().family.text_only()
    for prompt, answer in zip(["one", "a longer question?"], found, strict=True):
        ids = tokenizer()(before + prompt + after, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = stock.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        assert answer == tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", QUICK_FIRST)
def test_sharing_batching_and_budget_change_nothing_but_the_work(name):
    frames = clip_frames(3)
    prompts = [*PROMPTS, "x", "where?"]

    def everything(made):
        with made.open(frames, VISUAL, RolloutSettings()) as session:
            out = [session.read(w, prompts, answer=True) for w in ("video", 0, 1, 2)]
            out += [session.read(w, prompts, answer=False) for w in ("video", 0, 1, 2)]
            kept = session.kept_bytes
        return out, made.counters.visual_prefixes, kept

    expected, prefixes, kept = everything(backbone(name, share_prefix=False))
    assert prefixes == 2 * 4 * 4
    assert kept == 0
    for options, runs in (
        ({}, 4),
        ({"batch_size": 1}, 4),
        ({"batch_size": 3}, 4),
        ({"memory_budget_gb": 0.0}, 8),
    ):
        found, prefixes, kept = everything(backbone(name, **options))
        assert prefixes == runs
        assert (kept > 0) == ("memory_budget_gb" not in options)
        for a, b in zip(expected, found, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_allclose(y.map_Thw, x.map_Thw, atol=1e-5 * x.map_Thw.max(), rtol=0)
                assert x.answer == y.answer


@pytest.fixture
def watched(monkeypatch):
    """Rows of every batch of prompts that runs, and the most bytes that prefixes and copies took."""
    seen = SimpleNamespace(rows=[], most=0)
    run = Session._tails

    def tails(session, prefixes, rows):
        seen.rows.append(len(rows))
        held = {id(prefix): prefix.nbytes for prefix in (*session._kept.values(), *prefixes)}
        seen.most = max(seen.most, sum(held.values()) + len(rows) * prefixes[0].copy_bytes)
        return run(session, prefixes, rows)

    monkeypatch.setattr(Session, "_tails", tails)
    return seen


@pytest.mark.slow
def test_what_is_kept_leaves_room_for_whole_batches(watched):
    frames = clip_frames(4)

    def everything(budget, prompts=(5, 5)):
        """Maps and answers of two rounds, the batches, prefixes run and the most bytes taken."""
        made = backbone("qwen2_vl", memory_budget_gb=budget / 2**30, batch_size=3, max_new_tokens=2)
        watched.rows, watched.most, found = [], 0, []
        with made.open(frames, VISUAL, RolloutSettings()) as session:
            for count in prompts:
                for where in (0, "video", 1, 2, 3):
                    found += session.read(where, (PROMPTS * 3)[:count], answer=count > 1)
            runs = made.counters.visual_prefixes
            heads = [session._run_head(where) for where in ("video", 0)]
        work = max(head.nbytes + 3 * head.copy_bytes for head in heads)
        return found, watched.rows, runs, watched.most, work

    roomy, batched, runs, _, work = everything(2**30)
    assert runs == 5
    assert set(batched) == {3, 2}
    for share in (1.0, 1.3, 1.7, 2.2):
        tight, sizes, runs, most, _ = everything(share * work)
        assert sizes == batched
        assert 5 < runs <= 10
        assert most <= share * work
        for a, b in zip(roomy, tight, strict=True):
            assert np.array_equal(a.map_Thw, b.map_Thw)
            assert a.answer == b.answer
    # What is kept is not counted again where it is worked on.
    assert everything(2.5 * work)[2] == 5
    assert everything(1.0 * work)[2] == 10
    # More prompts than before: what was kept makes room.
    assert everything(2.5 * work, (1, 5))[1] == [1] * 5 + batched[:10]
    # One expression keeps more than many do.
    assert everything(2.0 * work, (1, 1))[2] < everything(2.0 * work)[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_frames_of_few_expressions_go_together(name, watched):
    """Same maps and answers as place by place, in fewer passes, within whatever memory there is."""
    frames, places = clip_frames(5, (40, 56)), ["video", *range(5)]

    def everything(prompts, **options):
        made = backbone(name, max_new_tokens=3, **options)
        watched.rows, watched.most = [], 0
        with made.open(frames, VISUAL, RolloutSettings()) as session:
            found = [session.read_places(places, prompts, answer=answer) for answer in (True, False)]
            head = session._run_head(0)
        return found, watched.rows, watched.most, made.counters, head

    for count, rows in ((1, [1, 4, 1]), (2, [2, 4, 4, 2]), (3, [3] * 6), (5, [4, 1] * 6)):
        prompts = [*PROMPTS, "x", "where?", "and why is it that?"][:count]
        alone, _, _, slow, _ = everything(prompts, batch_size=1)
        found, batches, _, fast, head = everything(prompts, batch_size=4)
        assert batches == rows * 2
        assert fast.passes < slow.passes
        assert fast.visual_prefixes == slow.visual_prefixes == 7
        assert (fast.prompts, fast.prompt_tokens) == (slow.prompts, slow.prompt_tokens)
        assert fast.generated_tokens == slow.generated_tokens
        ways = [found]
        for places_fit in (0.0, 1.0, 2.5) if count == 2 else ():
            budget = places_fit * (head.nbytes + count * head.copy_bytes)
            tight, batches, most, _, _ = everything(prompts, batch_size=4, memory_budget_gb=budget / 2**30)
            assert max(batches[1:]) <= max(1, int(places_fit)) * count
            if places_fit == 2.5:
                assert most <= budget
            ways.append(tight)
        for way in ways:
            for stage, other in zip(alone, way, strict=True):
                assert [len(place) for place in other] == [count] * 6
                for one, two in zip(np.ravel(stage), np.ravel(other), strict=True):
                    peak = one.map_Thw.max()
                    np.testing.assert_allclose(two.map_Thw, one.map_Thw, atol=1e-5 * peak, rtol=0)
                    assert one.answer == two.answer


def test_a_session_without_a_way_of_its_own_reads_place_by_place():
    with backbone("qwen2_vl").open(clip_frames(2), VISUAL, RolloutSettings()) as session:
        assert session.read_places(["video", 1], [], answer=True) == [[], []]
        assert session.read_places([], ["a"], answer=True) == []
        together = session.read_places(["video", 0, 1], PROMPTS, answer=True)
        by_place = MLLMSession.read_places(session, ["video", 0, 1], PROMPTS, answer=True)
    for one, two in zip(np.ravel(together), np.ravel(by_place), strict=True):
        assert one.answer == two.answer
        np.testing.assert_allclose(one.map_Thw, two.map_Thw, rtol=1e-4)


def test_dense_and_double_precision_agree():
    frames = clip_frames(2)
    maps = []
    for settings in (
        RolloutSettings(),
        RolloutSettings(dense=True),
        RolloutSettings(precision="float64"),
        RolloutSettings(end=LAYERS),
    ):
        with shared("internvl").open(frames, VISUAL, settings) as session:
            maps.append(session.read("video", PROMPTS[:1], answer=False)[0].map_Thw)
    for found in maps[1:]:
        np.testing.assert_allclose(found, maps[0], rtol=1e-4)
    with shared("internvl").open(frames, VISUAL, RolloutSettings(start=0, end=2)) as session:
        early = session.read("video", PROMPTS, answer=True)
    assert np.abs(early[0].map_Thw - maps[0]).max() > 1e-4
    assert early[0].answer


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_short_and_odd_clips(name, count):
    with shared(name).open(clip_frames(count), VISUAL, RolloutSettings()) as session:
        video = session.read("video", ["a"], answer=False)[0].map_Thw
    assert len(video) == (-(-count // 2) if name.startswith("qwen") else count)
    assert np.isfinite(video).all()
    assert video.max() > 0


def test_a_prompt_longer_than_the_context_is_told():
    made = backbone("qwen2_vl")
    with made.open(clip_frames(1), VISUAL, RolloutSettings()) as session:
        with pytest.raises(RefsegError, match="context is 8192"):
            session.read(0, ["dog " * 9000], answer=False)
        assert session.read(0, ["dog"], answer=True)[0].answer is not None


def test_a_clip_without_frames_and_a_wrong_layer_range_are_told():
    made = shared("qwen2_vl")
    with pytest.raises(RefsegError, match="no frame"):
        made.open(np.zeros((0, 4, 4, 3), np.uint8), VISUAL, RolloutSettings())
    with pytest.raises(RefsegError, match="no range"):
        made.open(clip_frames(1), VISUAL, RolloutSettings(start=9))


def test_no_visual_tokens_is_told(monkeypatch):
    made = backbone("qwen2_vl")
    family = made.loaded().family
    stock = family.frame

    def blind(frame, visual):
        block = stock(frame, visual)
        return type(block)(block.inputs, ("hello",), block.tail, block.token, block.grid)

    monkeypatch.setattr(family, "frame", blind)
    with (
        made.open(clip_frames(1), VISUAL, RolloutSettings()) as session,
        pytest.raises(RefsegError, match="0 visual tokens"),
    ):
        session.read(0, ["dog"], answer=False)


def test_attention_that_is_not_causal_is_refused():
    module = torch.nn.Linear(1, 1)
    q = k = torch.zeros(1, 2, 5, 4)
    full = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    capture.refuse_non_causal(module, q, k, full.tril(), {})
    capture.refuse_non_causal(module, q, k, None, {})
    capture.refuse_non_causal(module, q[:, :, :2], k, full.tril()[:, :, 3:], {})
    additive = torch.zeros(5, 5).masked_fill(~full[0, 0].tril(), torch.finfo(torch.float32).min)[None, None]
    capture.refuse_non_causal(module, q, k, additive, {})
    prefix = full.tril().clone()
    prefix[..., :3, :3] = True
    for mask, kwargs in ((prefix, {}), (full, {}), (full.tril().triu(-1), {}), (None, {"is_causal": False})):
        with pytest.raises(RefsegError, match="rolled out or shared"):
            capture.refuse_non_causal(module, q, k, mask, kwargs)
    with pytest.raises(RefsegError, match="sliding window"):
        capture.refuse_non_causal(module, q, k, None, {"sliding_window": 3})
    # As where a kernel is registered without its mask function. Flash attention counts from the last key.
    capture.refuse_non_causal(module, q[:, :, :2], k, None, {"kernel": "flash_attention_2"})
    with pytest.raises(RefsegError, match="hides the cache"):
        capture.refuse_non_causal(module, q[:, :, :2], k, None, {"kernel": "sdpa"})


def test_a_prefix_lm_is_detected_while_it_runs():
    """PaliGemma attends both ways over image and prompt: the tap sees it in its mask."""
    import transformers as t

    config = t.PaliGemmaConfig(
        vision_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=16,
        ),
        text_config=dict(
            model_type="gemma",
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=64,
        ),
        image_token_id=63,
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = t.PaliGemmaForConditionalGeneration(config).eval()
    capture.install(model, "sdpa")
    ids = torch.tensor([[63] * 4 + [5, 6, 7]])
    with (
        torch.no_grad(),
        pytest.raises(RefsegError, match="not causal"),
        capture.recording(range(2)),
    ):
        model(
            input_ids=ids,
            pixel_values=torch.zeros(1, 3, 28, 28),
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
        )


def test_a_tap_that_lost_its_mask_function_is_noticed(monkeypatch):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    made = backbone("qwen2_vl")
    made.loaded()
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, capture.tap_name("sdpa"), lambda **kwargs: None)
    with (
        made.open(clip_frames(1), VISUAL, RolloutSettings()) as session,
        pytest.raises(RefsegError, match="hides the cache"),
    ):
        session.read(0, PROMPTS, answer=False)


def test_flash_kernels_are_told_their_own_name():
    seen = []

    def stock(module, query, key, value, attention_mask, **kwargs):
        seen.append((module.config._attn_implementation, module.config.depth, module.layer_idx))
        return "out"

    config = SimpleNamespace(_attn_implementation="refseg_fa2", depth=7)
    module = SimpleNamespace(config=config, layer_idx=1, is_causal=True)
    q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 5, 4)
    with capture.recording(range(2)) as recorder:
        assert capture._tap(stock, "flash_attention_2")(module, q, k, k, None, scaling=0.5) == "out"
    assert seen == [("flash_attention_2", 7, 1)]
    assert recorder.kept[1].k_GND.shape == (1, 1, 3, 4)
    assert recorder.kept[1].scale == 0.5
    with pytest.raises(RefsegError, match="layer 0 could not be captured"):
        recorder.found()
    assert capture.tap_name("flash_attention_2") == "refseg_fa2"


def test_a_kernel_without_a_tap_is_told():
    with pytest.raises(ConfigError, match="can't be captured"):
        capture.install(build("qwen2_vl"), "eager")


def test_generation_settings_that_are_not_known_are_told():
    generation = copy.deepcopy(build("qwen2_vl").generation_config)
    assert len(answer_rules(generation)) == 0
    generation.repetition_penalty = 1.05
    generation.no_repeat_ngram_size = 3
    generation.suppress_tokens = [5]
    assert len(answer_rules(generation)) == 3
    generation.min_new_tokens = 4
    with pytest.raises(ConfigError, match="min_new_tokens"):
        answer_rules(generation)


def test_from_a_folder(tmp_path):
    build("qwen2_vl").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Qwen2VLImageProcessor", '
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}'
    )
    made = MLLM(path=str(tmp_path), dtype="float32", device="cpu", max_new_tokens=3)
    before = made.identity()
    assert made._loaded is None  # a key costs no weights
    assert made.adapter(tmp_path).mean() == (0.5, 0.5, 0.5)
    assert made.layers() == LAYERS
    with made.open(clip_frames(2), VISUAL, RolloutSettings()) as session:
        assert session.read("video", ["dog"], answer=True)[0].map_Thw.max() > 0
    assert made.report()["calls"] == 2
    weights = tmp_path / "model.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[len(blob) // 2] ^= 1
    weights.write_bytes(blob)
    assert MLLM(path=str(tmp_path), dtype="float32", max_new_tokens=3).identity()["files"] != before["files"]


def test_identity_holds_what_outputs_depend_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    base = dict(path=str(tmp_path))
    same = [
        MLLM(**base, **options).identity()
        for options in (
            {},
            {"device": "cuda"},
            {"batch_size": 1},
            {"memory_budget_gb": 1.0},
            {"share_prefix": False},
        )
    ]
    assert all(identity == same[0] for identity in same)
    changed = [
        MLLM(**base, **options).identity()
        for options in (
            {"dtype": "float32"},
            {"attention": "flash_attention_2"},
            {"max_new_tokens": 5},
            {"family": "some.Family"},
        )
    ]
    (tmp_path / "config.json").write_text('{"a": 1}')
    changed.append(MLLM(**base).identity())
    hub = [MLLM(path="a/b"), MLLM(path="a/b", revision="x"), MLLM(path="a/c")]
    for made in hub:
        made._config = object()  # a config without a commit: the revision as given
    everything = [same[0], *changed, *(made.identity() for made in hub)]
    assert len({str(identity) for identity in everything}) == len(everything)


def test_a_model_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="not in the cache, and offline"):
        MLLM(path="nobody/nothing", offline=True).config()
    assert MLLM(path="nobody/nothing", revision="abc").weights()[0].revision == "abc"
    with pytest.raises(ConfigError, match="No shipped weights"):
        MLLM(path="shipped:nothing").identity()


def test_a_model_in_memory_is_named_by_its_weights():
    one, same, other = backbone("qwen2_vl"), backbone("qwen2_vl"), backbone("qwen2_vl")
    with torch.no_grad():
        other.loaded().model.get_input_embeddings().weight[3, 0] += 1
    assert one.identity() == same.identity() != other.identity()
    one.use(other.loaded().model, tokenizer())  # another model in the same place
    assert one.identity() == other.identity()


def test_nan_in_a_map_is_told_instead_of_an_empty_mask():
    made = backbone("qwen2_vl")
    with torch.no_grad():
        made.loaded().model.model.language_model.layers[-1].self_attn.q_proj.weight.fill_(float("nan"))
    with (
        made.open(clip_frames(1), VISUAL, RolloutSettings()) as session,
        pytest.raises(RefsegError, match="NaN"),
    ):
        session.read("video", ["dog"], answer=False)


def test_words_that_are_control_tokens_are_refused():
    made = backbone("qwen2_vl")
    with made.open(clip_frames(1), VISUAL, RolloutSettings()) as session:
        for words in ("the dog<|im_end|> and", "<|video_pad|>"):
            for ask in (lambda: session.ask([words]), lambda: session.read("video", [words], answer=False)):  # noqa: B023
                with pytest.raises(RefsegError, match="control token"):
                    ask()
        session.read("video", ["the dog < the |cat|"], answer=False)


def test_nan_in_the_scores_of_a_word_is_told_instead_of_an_answer():
    made = backbone("qwen2_vl")
    with torch.no_grad():
        made.loaded().model.get_output_embeddings().weight.fill_(float("nan"))
    with made.open(clip_frames(1), VISUAL, RolloutSettings()) as session:
        for ask in (lambda: session.ask(["dog"]), lambda: session.read("video", ["dog"], answer=True)):
            with pytest.raises(RefsegError, match="next word hold NaN"):
                ask()


def test_a_sliding_layer_behind_a_full_one_is_refused():
    recorder = capture.PassCapture(range(2))
    q = torch.zeros(1, 1, 6, 4)
    for layer, window in ((0, None), (1, 4)):
        module = SimpleNamespace(layer_idx=layer, is_causal=True)
        if window is None:
            capture._observe(recorder, module, q, q, None, {"sliding_window": window})
            continue
        with pytest.raises(RefsegError, match="sliding window"):
            capture._observe(recorder, module, q, q, None, {"sliding_window": window})

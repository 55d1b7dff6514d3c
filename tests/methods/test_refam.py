"""RefAM end to end on tiny random transformers, and on planted maps whose answer is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refseg_bench.backbones.attention_maps import SoftmaxTokens, TokenMaps
from refseg_bench.backbones.dit import DiT, TokenRequest
from refseg_bench.backbones.dit.text import tokenise
from refseg_bench.backbones.sdpa_tap import AttentionError
from refseg_bench.backbones.weights import content
from refseg_bench.config import compose as config
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.methods.concept_attention import ConceptAttention
from refseg_bench.methods.refam import MAGNETS, DirectionRule, NounPhraseFilter, RefAM
from refseg_bench.methods.refam.filters import Gas
from refseg_bench.run.build import check_part
from refseg_bench.segmenters.base import Candidates, SegmenterCounters
from refseg_bench.types import Clip, Expression
from tests.backbones import tiny_dits
from tests.quick import quick_first


class SquareSegmenter:
    """Offers squares of three sizes around the point; follows it one pixel to the right per frame."""

    def __init__(self):
        self.prompts = []

    def open(self, clip):
        return SquareSession(clip, self.prompts)


class SquareSession:
    def __init__(self, clip, prompts):
        self.clip, self.counters, self.prompts = clip, SegmenterCounters(), prompts

    def square(self, prompt, radius, shift=0):
        if prompt.mask is not None:
            return np.roll(prompt.mask, shift, 1)
        height, width = self.clip.size
        x, y = prompt.points[0]
        rows, columns = np.mgrid[:height, :width]
        near = np.maximum(abs(rows - int(y * height)), abs(columns - int(x * width) - shift)) <= radius
        return near

    def segment(self, frame, prompts, *, multimask=True):
        self.prompts += [("segment", frame, p) for p in prompts]
        return [
            Candidates(
                np.stack([self.square(p, r) for r in (0, 2, 5)]), np.array([0.1, 0.9, 0.3], np.float32)
            )
            for p in prompts
        ]

    def propagate(self, frame, prompts, *, frames=None, direction="both"):
        self.prompts += [(direction, frame, p) for p in prompts]
        order = list(range(frame, len(self.clip)))
        if direction == "both":
            order += list(range(frame - 1, -1, -1))
        for t in order:
            yield t, np.stack([self.square(p, 2, t - frame) for p in prompts])

    def __enter__(self):
        return self

    def __exit__(self, *rest):
        return None


def a_clip(folder, frames=1, size=(40, 60), mode="RGB", seed=0):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for t in range(frames):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
        paths.append(folder / (f"{t:05d}.jpg" if mode == "CMYK" else f"{t:05d}.png"))
        image.save(paths[-1])
    return Clip("clip", tuple(paths), tuple(f"{t:05d}" for t in range(frames)), size)


def said(*texts):
    return [Expression(str(i), text) for i, text in enumerate(texts)]


pytestmark = pytest.mark.usefixtures("shared_passes")

THREE = said("a largest orange goldfish", "cat on the left", "the pink cow")


def test_a_stop_list_in_a_file_is_known_by_its_content(make_dit, tmp_path):
    method = refam(make_dit("sd3"), stopwords=str(tmp_path / "stop.txt"))
    assert method.weights() == ()
    (tmp_path / "stop.txt").write_text("cat")
    (kept,) = method.weights()
    assert kept.component == "method.stopwords"
    known = content(kept)
    (tmp_path / "stop.txt").write_text("")
    with pytest.raises(ConfigError, match=r"(?s)The stop list is empty.*filter_stopwords"):
        check_part(method)
    (tmp_path / "stop.txt").write_text("cow")
    assert content(kept) != known


def refam(dit, cache=None, segmenter=None, **options):
    given = {"prompt_mode": "empty", "np": NounPhraseFilter(parser="rules")}
    method = RefAM(dit, segmenter or SquareSegmenter(), **{**given, **options})
    method.cache_root = cache
    return method


@pytest.mark.parametrize("mask", ["none", "threshold"])
def test_points_and_thresholds_need_no_segmenter(mask, make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    options = {"mask": mask, "prompt_mode": "empty", "np": NounPhraseFilter(parser="rules")}
    found = list(RefAM(make_dit("sd3"), **options).predict(clip, THREE))
    assert all(g.point is not None and (g.track.mask(0) is None) == (mask == "none") for g in found)
    with pytest.raises(ConfigError, match="needs a segmenter"):
        RefAM(make_dit("sd3"))


@pytest.mark.parametrize("family", quick_first(["flux", "sd3", "sd35m", "mochi", "cogvideox", "wan"], 2))
@pytest.mark.parametrize("mode", ["concept_stream", "prompt"])
def test_every_family_grounds(family, mode, make_dit, tmp_path):
    dit = make_dit(family, text_mode=mode)
    clip = a_clip(tmp_path / "clip")
    found = list(refam(dit).predict(clip, THREE))
    assert [g.expression.id for g in found] == ["0", "1", "2"]
    for grounding in found:
        point, mask = grounding.point, grounding.track.mask(0)
        assert point.frame == 0
        assert 0 < point.x < 1
        assert 0 < point.y < 1
        assert mask[int(point.y * 40), int(point.x * 60)]
        assert grounding.maps["heat"].shape == (1, 4, 6)
        assert grounding.maps["heat"].min() == 0
        json.dumps(grounding.details)
    # Latents once per image; in a concept stream one pass for all, in prompt mode one each.
    assert dit.counters.vae_encodings == 1
    assert dit.counters.dit_forwards == (1 if mode == "concept_stream" else 3)


def test_expressions_asked_together_are_as_asked_alone(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    together = refam(make_dit("sd3")).heats(clip, THREE)
    apart = refam(make_dit("sd3", batch_size=1))
    for expression, heats in zip(THREE, together, strict=True):
        alone = apart.heats(clip, [expression])[0][0]
        np.testing.assert_allclose(heats[0].maps.maps_TN, alone.maps.maps_TN, atol=1e-5)
        np.testing.assert_allclose(heats[0].maps.text_TT, alone.maps.text_TT, atol=1e-5)
    assert apart.backbone.counters.dit_forwards == 3


@pytest.mark.slow
def test_filters_sinks_bias_and_segmenter_need_no_second_pass(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    first = refam(make_dit("sd3"), tmp_path / "cache")
    list(first.predict(clip, THREE))
    assert first.backbone.counters.dit_forwards == 1
    swept = [
        {"filter_stopwords": False},
        {"gas": Gas(tau_text=0.5, tau_image=0.5, cv_max=9.0)},
        {"gas": Gas(action="redistribute", per_layer=True)},
        {"np": NounPhraseFilter("off")},
        {"np": NounPhraseFilter("weighted", "rules")},
        {"sb": DirectionRule("half")},
        {"aggregate": "max", "upsample": "none"},
        {"multimask": "heat"},
        {"mask": "threshold"},
        {"absent_below": 0.5},
    ]
    for options in swept:
        again = refam(make_dit("sd3"), tmp_path / "cache", **options)
        list(again.predict(clip, THREE))
        assert again.backbone.report()["dit_forwards"] == 0, options
        assert again.backbone.report()["vae_encodings"] == 0
        assert again.report()["cache_hits"] == 3
    for options in ({"sigma": 0.4}, {"layers": [1]}, {"seed": 1}, {"text_mode": "prompt"}, {"height": 32}):
        other = refam(make_dit("sd3", **options), tmp_path / "cache")
        list(other.predict(clip, THREE))
        assert other.backbone.counters.dit_forwards > 0, options


@pytest.mark.parametrize("family", quick_first(["sd3", "flux", "mochi"]))
def test_magnets_off_is_exact_from_the_cache(family, make_dit, tmp_path):
    """Concepts that don't see each other: the run without magnets is in the run with them."""
    clip = a_clip(tmp_path / "clip")
    options = {"concept_self_attention": False}
    with_magnets = refam(make_dit(family, **options), tmp_path / "cache").heats(clip, THREE)
    off = refam(make_dit(family, **options), tmp_path / "cache", magnets="none")
    cached = off.heats(clip, THREE)
    assert off.backbone.counters.dit_forwards == 0
    fresh = refam(make_dit(family, **options), magnets="none").heats(clip, THREE)
    for (on,), (a,), (b,) in zip(with_magnets, cached, fresh, strict=True):
        np.testing.assert_allclose(a.maps.maps_TN, b.maps.maps_TN, atol=1e-5)
        np.testing.assert_allclose(a.maps.text_TT, b.maps.text_TT, atol=1e-5)
        assert len(on.maps.maps_TN) > len(a.maps.maps_TN)
    # where they see each other, text states change with the magnets and the pass is made
    seeing = refam(make_dit(family), tmp_path / "cache2")
    seeing.heats(clip, THREE)
    changed = refam(make_dit(family), tmp_path / "cache2", magnets="none")
    changed.heats(clip, THREE)
    assert changed.backbone.counters.dit_forwards == 1


def test_masked_sinks_are_read_again_and_get_nothing(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    dit = make_dit("sd3")
    rule = Gas(action="mask_logits", tau_text=1.0, tau_image=1.0, cv_max=9.0)
    (heat,) = refam(dit, gas=rule).heats(clip, THREE[:1])[0]
    assert dit.counters.dit_forwards == 2
    sinks = heat.details["sinks"]
    assert sinks
    assert (heat.maps.maps_TN[sinks] == 0).all()
    np.testing.assert_allclose(heat.maps.maps_TN.sum(0), 1, atol=1e-5)


def test_several_noise_levels_and_samples_are_averaged(make_dit, tmp_path, monkeypatch):
    clip = a_clip(tmp_path / "clip")
    dit = make_dit("sd3", sigma=[0.3, 0.7], n_noise=2)
    averaged = refam(dit).heats(clip, THREE[:1])[0][0]
    assert dit.counters.dit_forwards == 4
    every, single = DiT._noises, []
    for turn in range(4):
        monkeypatch.setattr(DiT, "_noises", lambda *args, turn=turn: [list(every(*args))[turn]])
        single.append(refam(dit).heats(clip, THREE[:1])[0][0].maps.maps_TN)
    np.testing.assert_allclose(averaged.maps.maps_TN, np.mean(single, 0), atol=1e-5)


def test_no_two_seeds_share_a_noise_sample(make_dit, picture):
    noises = []
    for seed in (-1, 0, 1, 2, 2**40):
        dit = make_dit("sd3", seed=seed, n_noise=3)
        noises += [noise for _, noise in dit._noises(dit.open(picture), dit._load())]
    assert len({noise.numpy().tobytes() for noise in noises}) == len(noises) == 15
    # Published numbers are seed 0's, whose first sample is the generator's own seed 0.
    first = torch.randn(noises[3].shape, generator=torch.Generator("cpu").manual_seed(0))
    assert torch.equal(noises[3], first)


def test_joined_magnets_and_padded_encoding_run(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    plain = refam(make_dit("flux"), magnet_encoding="joined").heats(clip, THREE)[0][0]
    assert plain.details["tokens"].count("</s>") == 1
    padded = refam(make_dit("flux", t5_padding="max_length_strip")).heats(clip, THREE)[0][0]
    bare = refam(make_dit("flux")).heats(clip, THREE)[0][0]
    assert padded.maps.maps_TN.shape == bare.maps.maps_TN.shape
    assert abs(padded.maps.maps_TN - bare.maps.maps_TN).max() > 1e-4


@pytest.mark.parametrize("residence", ["cpu", "free"])
def test_text_encoders_may_rest_between_clips(residence, make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    kept = refam(make_dit("sd3")).heats(clip, THREE)
    dit = make_dit("sd3", text_encoders=residence)
    freed = refam(dit).heats(clip, THREE)
    if residence == "free":
        assert not dit._load().text._modules
    for (a,), (b,) in zip(kept, freed, strict=True):
        np.testing.assert_array_equal(a.maps.maps_TN, b.maps.maps_TN)


def test_blocks_after_the_last_layer_are_left_where_they_are(make_dit):
    dit = make_dit("flux", layers=[1], device="meta")
    transformer = dit._load().transformer
    where = [next(b.parameters()).device.type for b in dit.adapter.blocks(transformer)]
    assert where == ["meta", "meta", "cpu", "cpu"]
    assert transformer.x_embedder.weight.device.type == "meta"


# ── planted maps ──


class PlantedDiT(DiT):
    """A backbone whose maps are made up: every frame has its own list of (token piece, row, column)."""

    bumps: tuple = ()
    peaks: dict = {}  # noqa: RUF012

    @property
    def tokenizer(self):
        return tiny_dits.tokenizer()

    def identity(self):
        return {}

    def open(self, image_HWC):
        return int(image_HWC.mean())

    def attend(self, scene, queries, options=None):
        out = []
        for query in queries:
            maps = np.full((len(query.tokens), 6, 8), 0.01, np.float32)
            for piece, row, column, height in self.bumps:
                for i in query.tokens.expression_tokens:
                    if query.tokens.pieces[i] == piece:
                        maps[i, row, column] += height * (1 + scene / 255)
            flat = maps.reshape(len(maps), -1)
            text = np.full((len(flat), len(flat)), 1 / len(flat), np.float32)
            stats = np.ones((1, 3, len(flat)), np.float32)
            out.append({"asked": TokenMaps(flat, text, stats, (0,), (6, 8))})
        return out

    def report(self):
        return {}


def planted(*bumps):
    dit = PlantedDiT("nowhere", "sd3", text_mode="prompt")
    dit.bumps = bumps
    return dit


def cell(point):
    return int(point.y * 6), int(point.x * 8)


def test_the_kept_words_decide(tmp_path):
    clip = a_clip(tmp_path / "clip")
    dit = planted(("▁cat", 1, 2, 0.5), ("▁the", 4, 6, 0.9), ("▁shirt", 5, 1, 0.8))
    said_ = said("the cat in shirt")
    (full,) = refam(dit).predict(clip, said_)
    assert cell(full.point) == (1, 2)
    assert full.details["noun_phrase_parser"] == "rules"
    (no_np,) = refam(dit, np=NounPhraseFilter("off")).predict(clip, said_)
    assert cell(no_np.point) == (5, 1)
    (unfiltered,) = refam(dit, np=NounPhraseFilter("off"), filter_stopwords=False).predict(clip, said_)
    assert cell(unfiltered.point) == (4, 6)
    # 0.5·sentence + 0.5·chunk: cat 0.25·0.5 + 0.5·0.5 against shirt 0.8/2·0.5
    (weighted,) = refam(dit, np=NounPhraseFilter("weighted", "rules")).predict(clip, said_)
    assert cell(weighted.point) == (1, 2)


@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "none"])
def test_direction_words_choose_among_alike(upsample, tmp_path):
    clip = a_clip(tmp_path / "clip", size=(60, 80))
    dit = planted(("▁cat", 3, 1, 0.5), ("▁cat", 3, 6, 0.6))
    for text, mode, expected in [
        ("cat", "ramp", (3, 6)), ("left cat", "ramp", (3, 1)), ("right cat", "ramp", (3, 6)),
        ("left cat", "half", (3, 1)), ("left cat", "off", (3, 6)),
    ]:  # fmt: skip
        method = refam(dit, sb=DirectionRule(mode), upsample=upsample)
        (grounding,) = method.predict(clip, said(text))
        assert cell(grounding.point) == expected, (text, mode)
        if upsample == "none":
            assert (grounding.point.y, grounding.point.x) == (
                (expected[0] + 0.5) / 6,
                (expected[1] + 0.5) / 8,
            )


def test_sb_floor_softens_the_ramp(tmp_path):
    clip = a_clip(tmp_path / "clip")
    dit = planted(("▁cat", 3, 1, 0.5), ("▁cat", 3, 6, 0.6))
    (soft,) = refam(dit, sb=DirectionRule("ramp", floor=0.95)).predict(clip, said("left cat"))
    assert cell(soft.point) == (3, 6)


def test_a_padded_image_maps_back(tmp_path):
    """A tall image on a square canvas covers half of it; the peak lies at the same place of the image."""
    dit = planted(("▁cat", 5, 3, 0.5))
    dit.height, dit.width, dit.resize = 96, 128, "pad"
    clip = a_clip(tmp_path / "clip", size=(96, 64))
    assert dit.content_share(clip.size) == (1.0, 0.5)
    for upsample in ("bilinear", "none"):
        (grounding,) = refam(dit, upsample=upsample).predict(clip, said("cat"))
        assert abs(grounding.point.x - 3.5 / 8 / 0.5) < 0.02
        assert abs(grounding.point.y - 5.5 / 6) < 0.1


def test_video_first_frame_forward(tmp_path):
    clip = a_clip(tmp_path / "clip", frames=4)
    segmenter = SquareSegmenter()
    (grounding,) = refam(planted(("▁cat", 2, 3, 0.5)), segmenter=segmenter).predict(clip, said("cat"))
    assert [(kind, frame) for kind, frame, _ in segmenter.prompts] == [("forward", 0)]
    assert all(mask.any() for mask in grounding.track.masks())
    (grounding,) = refam(
        planted(("▁cat", 2, 3, 0.5)), segmenter=segmenter, multimask="heat", bidirectional=True
    ).predict(clip, said("cat"))
    assert [kind for kind, _, _ in segmenter.prompts[1:]] == ["segment", "both"]
    assert segmenter.prompts[-1][2].mask is not None


def test_best_of_uniform_frames_takes_the_highest_peak_and_goes_both_ways(tmp_path):
    clip = a_clip(tmp_path / "clip", frames=5)
    for t, grey in enumerate((10, 20, 240, 30, 40)):
        Image.new("RGB", (60, 40), (grey,) * 3).save(clip.frame_paths[t])
    segmenter = SquareSegmenter()
    method = refam(
        planted(("▁cat", 2, 3, 0.5)),
        segmenter=segmenter,
        prompt_frame="best_of_uniform_k",
        frame_candidates=3,
    )
    (grounding,) = method.predict(clip, said("cat"))
    assert grounding.point.frame == 2
    assert grounding.details["frame"] == 2
    assert [(kind, frame) for kind, frame, _ in segmenter.prompts] == [("both", 2)]


def test_a_peak_below_the_threshold_is_an_absent_target(tmp_path):
    clip = a_clip(tmp_path / "clip", frames=3)
    (asis,) = refam(planted(("▁cat", 2, 3, 0.5)), segmenter=SquareSegmenter()).predict(clip, said("cat"))
    assert asis.no_target is None
    for shift, flag in ((-1e-3, False), (1e-3, True)):
        segmenter = SquareSegmenter()
        method = refam(
            planted(("▁cat", 2, 3, 0.5)), segmenter=segmenter, absent_below=asis.point.value + shift
        )
        (found,) = method.predict(clip, said("cat"))
        assert found.no_target is flag
        assert found.point == asis.point
        assert (found.track.area() == [0, 0, 0]) is flag
        assert (segmenter.prompts == []) is flag


@pytest.mark.parametrize("text", ["cat", "left cat"])
@pytest.mark.parametrize("options", [{}, {"upsample": "none"}, {"mask": "threshold"}, {"absent_below": 0.5}])
def test_a_constant_map_points_at_nothing(tmp_path, text, options):
    segmenter = SquareSegmenter()
    (found,) = refam(planted(), segmenter=segmenter, **options).predict(a_clip(tmp_path / "clip"), said(text))
    assert (found.point, found.no_target, found.track.area()) == (None, True, [0])
    assert segmenter.prompts == []


def test_a_frame_whose_map_is_constant_is_not_chosen(tmp_path):
    clip = a_clip(tmp_path / "clip", frames=5)
    for t, grey in enumerate((255, 10, 10, 10, 255)):
        Image.new("RGB", (60, 40), (grey,) * 3).save(clip.frame_paths[t])
    # The bump is cancelled where the frame is bright, and what is left is higher everywhere than its peak.
    dit = planted(("▁cat", 2, 3, 0.5))
    attend = dit.attend

    def attended(scene, queries, options=None):
        out = attend(scene, queries, options)
        for seen in out if scene > 200 else ():
            seen["asked"].maps_TN[:] = 0.9
        return out

    dit.attend = attended
    method = refam(dit, prompt_frame="best_of_uniform_k", frame_candidates=3)
    (grounding,) = method.predict(clip, said("cat"))
    assert (grounding.point.frame, grounding.no_target) == (2, None)


def test_threshold_mask_reads_every_frame_and_no_segmenter(tmp_path):
    clip = a_clip(tmp_path / "clip", frames=3)
    method = refam(planted(("▁cat", 2, 3, 0.5)), segmenter=None, mask="threshold")
    (grounding,) = method.predict(clip, said("cat"))
    y, x = int(2.5 / 6 * 40), int(3.5 / 8 * 60)
    assert all(mask[y, x] and mask.sum() < 150 for mask in grounding.track.masks())


# ── bad input ──


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (40, 60)), ("CMYK", (40, 60)), ("RGB", (40, 1)), ("RGBA", (1, 9))]
)
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_odd_images(mode, size, resize, make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip", size=size, mode=mode)
    (grounding,) = refam(make_dit("sd3", resize=resize)).predict(clip, THREE[:1])
    assert grounding.track.size == size
    assert np.isfinite(grounding.point.value)


def test_odd_expressions(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    only_stop, long = said("the of a", " ".join(["cat"] * 300))
    first, second = refam(make_dit("sd3")).predict(clip, [only_stop, long])
    assert np.isfinite(first.point.value)
    assert second.details["truncated_tokens"] > 0
    with pytest.raises(DataError, match="the model takes 256"):
        list(refam(make_dit("sd3"), overlong="error").predict(clip, [long]))


def test_nan_in_a_layer_is_told(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    dit = make_dit("sd3")
    dit._load().transformer.transformer_blocks[1].attn.to_k.weight.fill_(float("nan"))
    with pytest.raises(AttentionError, match="Layer 1 gives NaN"):
        list(refam(dit).predict(clip, THREE))


def test_captions(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"clip": "a cat on the left", "other": " "}))
    with pytest.raises(ConfigError, match="none are given"):
        list(refam(make_dit("sd3"), prompt_mode="caption").predict(clip, THREE))
    captioned = refam(make_dit("sd3"), prompt_mode="caption", captions=file)
    assert captioned.prompt(clip, THREE[0]) == "a cat on the left"
    list(captioned.predict(clip, THREE))
    assert captioned.backbone.counters.dit_forwards == 1
    nameless = replace(clip, id="other", frame_names=("x",))
    with pytest.raises(DataError, match="'other' has no caption"):
        list(captioned.predict(nameless, THREE))
    for choice, expected in (("expression", THREE[0].text), ("empty", "")):
        lenient = refam(make_dit("sd3"), prompt_mode="caption", captions=file, missing_caption=choice)
        assert lenient.prompt(nameless, THREE[0]) == expected
    each = refam(make_dit("sd3"), prompt_mode="expression")
    list(each.predict(clip, THREE))
    assert each.backbone.counters.dit_forwards == 3


def test_presets_and_wrong_options(make_dit):
    dit = make_dit("sd3")
    assert MAGNETS["page"] == (".", "a", "with")
    assert refam(dit, magnets=["x"]).magnet_words == ("x",)
    with pytest.raises(ConfigError, match="No magnet preset 'flux'"):
        refam(dit, magnets="flux")
    with pytest.raises(ConfigError, match="outside"):
        make_dit("sd3", sigma=[0.2, 1.5])
    with pytest.raises(ConfigError, match="No layer group 'middle'"):
        make_dit("sd3", layers="middle").wanted()
    with pytest.raises(ConfigError, match="has no layer 99"):
        make_dit("sd3", layers=[0, 99]).wanted()
    assert make_dit("flux", layers="all_double").wanted() == (0, 1)
    assert make_dit("flux", layers="single").wanted() == (2, 3)
    assert make_dit("flux", layers="late_half").wanted() == (1,)
    with pytest.raises(ConfigError, match=r"type 'SD3Transformer2DModel'(.*\n)*.*Set backbone\.family"):
        DiT(dit.path, "flux").wanted()
    with pytest.raises(ConfigError, match="not there"):
        DiT("./nowhere", "flux").wanted()
    with pytest.raises(ConfigError, match="no CLIP text encoder"):
        list(refam(make_dit("sd3", pooled="expression")).predict(a_clip_here(dit), THREE[:1]))


def a_clip_here(dit):
    return a_clip(Path(dit.path).parent / "clip")


def test_runs_that_share_their_attention_capture_it_once(make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    capturing = refam(make_dit("sd3"), tmp_path / "cache")
    texts = [e.text for e in THREE]
    assert capturing.cached(clip, texts) == 0
    capturing.capture(clip, THREE[:2])
    other = refam(make_dit("sd3"), tmp_path / "cache", aggregate="max")
    assert other.cached(clip, texts) == 2
    assert other.backbone._loaded is None, "asking the cache loads no weights"
    list(other.predict(clip, THREE[:2]))
    assert other.backbone.counters.dit_forwards == 0


@pytest.mark.slow
def test_what_names_a_shared_capture():
    def digest(*overrides):
        (point,) = config.compose(["method=refam", *overrides])
        return RefAM.capture_digest(point.values)

    assert digest() == digest("method.gas.action=redistribute", "method.sb.mode=half", "segmenter=sam2_hf")
    assert digest() == digest("backbone.device=cpu")
    assert digest() != digest("method.magnets=page")
    assert digest() != digest("backbone.sigma=0.7")


# ── ConceptAttention on the same tap ──


@pytest.mark.parametrize("space", ["output", "attention"])
@pytest.mark.parametrize("family", quick_first(["flux", "sd3", "mochi"]))
def test_concept_attention(family, space, make_dit, tmp_path):
    clip = a_clip(tmp_path / "clip")
    dit = make_dit(family, text_mode="prompt")
    method = ConceptAttention(dit, SquareSegmenter(), space, contrast=["cow", "the"], prompt_mode="empty")
    method.parser, method.cache_root = "rules", tmp_path / "cache"
    found = list(method.predict(clip, THREE))
    assert [g.details["concept"] for g in found] == ["goldfish", "cat", "cow"]
    assert dit.counters.dit_forwards == 1
    assert dit.text_mode == "prompt", "the backbone itself is left alone"
    # by hand: the reading of one expression, first tokens alone, softmax over concepts, mean of layers
    stream = dit.variant(text_mode="concept_stream", pooled="zeros")
    tokens = tokenise(stream.tokenizer, "cat", ["cow", "the"]).firsts()
    assert len(tokens) == 3
    query = TokenRequest(tokens, "", {"all": SoftmaxTokens((0, 1, 2))})
    (answer,) = stream.attend(stream.open(clip.load([0])[0]), [query], options=stream.options(space))
    maps = answer["all"].maps_THW
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-5)
    # Maps of random outputs are nearly flat, so the shown range magnifies the batch's rounding.
    shown = found[1].maps["heat"][0].ravel()
    assert np.corrcoef(shown, maps[0].ravel())[0, 1] > 0.95
    again = ConceptAttention(
        make_dit(family, text_mode="prompt"), SquareSegmenter(), space, contrast=["cow", "the"]
    )
    again.prompt_mode, again.parser, again.cache_root = "empty", "rules", tmp_path / "cache"
    list(again.predict(clip, THREE))
    assert again.backbone.counters.dit_forwards == 0


def test_a_concept_without_another_to_compete_with_points_at_nothing(make_dit, tmp_path):
    dit, segmenter = make_dit("sd3", text_mode="prompt"), SquareSegmenter()
    method = ConceptAttention(dit, segmenter, contrast=[], prompt_mode="empty", parser="rules")
    (found,) = method.predict(a_clip(tmp_path / "clip"), THREE[:1])
    assert (found.point, found.no_target, found.track.area()) == (None, True, [0])
    assert segmenter.prompts == []


def test_concept_attention_is_a_small_plug_in():
    from refseg_bench.methods import concept_attention

    assert len(Path(concept_attention.__file__).read_text().splitlines()) <= 80

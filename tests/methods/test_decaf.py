"""The method whole: on fakes whose answers are known, and on tiny random models of every family."""

import numpy as np
import pytest
import torch
from PIL import Image

from refseg_bench.backbones.base import (
    MLLMCounters,
    MLLMSession,
    PromptAttention,
    RolloutSettings,
    VisualSettings,
)
from refseg_bench.config import schema
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.methods.decaf import DecAF
from refseg_bench.methods.decaf.fusion import Fusion, candidate_points, otsu, resize
from refseg_bench.methods.spatial import SpatialBias
from refseg_bench.run.loop import predict_clip
from refseg_bench.segmenters.base import Candidates, Prompt, Segmenter, SegmenterCounters
from refseg_bench.types import Clip, Expression
from tests.quick import quick_first
from tests.tiny_mllm import FAMILIES, backbone, clip_frames

torch.set_num_threads(1)


def clip_of(folder, frames, name="clip"):
    paths = []
    for index, frame in enumerate(frames):
        paths.append(folder / f"{name}-{index:05d}.png")
        Image.fromarray(frame).save(paths[-1])
    return Clip(name, tuple(paths), tuple(p.stem for p in paths), frames.shape[1:3])


def expressions(*texts):
    return [Expression(str(i), text) for i, text in enumerate(texts)]


# ── fakes ────────────────────────────────────────────────────────────────────


class FakeMLLM(MLLMSession):
    """Looks where its table says: maps by (kind, frame), names by expression; counts what it is asked."""

    def __init__(self, grid=(6, 8), words="dog", look=None, constant=False):
        self.grid, self.words, self.look, self.constant = grid, words, look or {}, constant
        self.counters = MLLMCounters()
        self.asked = []

    def identity(self):
        return {"fake": 1, "constant": self.constant}

    def layers(self):
        return 28

    def report(self):
        return {}

    def open(self, frames_THWC, visual, rollout):
        self.frames = len(frames_THWC)
        return self

    def read(self, where, prompts, *, answer):
        self.counters.visual_prefixes += 1
        self.counters.prompts += len(prompts)
        self.asked += [(where, prompt) for prompt in prompts]
        return [
            PromptAttention(self._map(where, prompt), self.words if answer else None) for prompt in prompts
        ]

    def ask(self, prompts):
        self.counters.prompts += len(prompts)
        self.asked += [("ask", prompt) for prompt in prompts]
        return [self.words for _ in prompts]

    def _map(self, where, prompt):
        count = -(-self.frames // 2) if where == "video" else 1
        out = np.full((count, *self.grid), 1e-4, np.float32)
        if prompt.startswith("Describe") or self.constant:
            return out + (np.float32(1e-4) if self.constant and prompt.startswith("Describe") else 0)
        for t in range(count):
            for y, x, value in self.look.get(where if where != "video" else ("video", t), []):
                out[t, y, x] += value
        return out


class ColourSession:
    """Segments the connected colour under a click and follows the colour through the frames."""

    def __init__(self, clip, ious):
        self.clip, self.ious, self.counters = clip, ious, SegmenterCounters()
        self.frames = clip.load()
        self.calls = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def _same(self, frame, colour):
        return (self.frames[frame] == colour).all(-1)

    def segment(self, frame, prompts, *, multimask=True):
        assert multimask
        height, width = self.clip.size
        out = []
        for prompt in prompts:
            ((x, y),) = prompt.points
            assert prompt.labels == (1,)
            colour = self.frames[frame][int(y * height), int(x * width)]
            mask = self._same(frame, colour)
            part = mask.copy()
            part[: height // 2] = False
            out.append(
                Candidates(
                    np.stack([part, mask]), np.array([0.1, self.ious.get(tuple(colour), 0.9)], np.float32)
                )
            )
        self.calls.append(("segment", frame, len(prompts)))
        return out

    def propagate(self, frame, prompts, *, frames=None, direction="both"):
        assert direction == "both"
        chosen = list(range(len(self.clip)) if frames is None else frames)
        self.calls.append(("propagate", frame, len(prompts), frames))
        colours = []
        for prompt in prompts:
            inside = self.frames[frame][prompt.mask]
            colours.append(inside[0] if len(inside) else np.array([1, 2, 3]))
        order = [f for f in chosen if f >= frame] + [f for f in reversed(chosen) if f < frame]
        for index in order:
            yield index, np.stack([self._same(index, colour) for colour in colours])


class ColourSegmenter(Segmenter):
    def __init__(self, ious=None):
        self.ious, self.sessions = ious or {}, []

    def open(self, clip):
        self.sessions.append(ColourSession(clip, self.ious))
        return self.sessions[-1]


RED, BLUE, GREY = (250, 10, 10), (10, 10, 250), (120, 120, 120)


def two_squares(count=20, size=(48, 64)):
    """A red square moving right at the top, a blue one at the bottom, on grey."""
    frames = np.empty((count, *size, 3), np.uint8)
    frames[:] = GREY
    for t in range(count):
        frames[t, 8:20, 4 + t : 16 + t] = RED
        frames[t, 30:44, 40:58] = BLUE
    return frames


def red_cell(frame):
    return (14 * 6 // 48, (10 + frame) * 8 // 64)


def look_at_red(frames):
    look = {t: [(*red_cell(f), 3e-4)] for t, f in enumerate(frames)}
    for cell in range(8):
        look["video", cell] = [(*red_cell(frames[2 * cell]), 3e-4)]
    return look


FRAMES_OF_20 = tuple(int(i) for i in np.linspace(0, 19, 16).astype(int))


@pytest.fixture
def moving(tmp_path):
    return clip_of(tmp_path, two_squares())


def fuse_none(**more):
    """No smoothing, so that a single hot cell stays one point."""
    return Fusion(video_kernel=1, frame_kernel=1, **more)


# ── the segmenter stage on fakes ─────────────────────────────────────────────


def test_attention_on_an_object_gives_its_track(moving):
    model, segmenter = FakeMLLM(look=look_at_red(FRAMES_OF_20)), ColourSegmenter()
    method = DecAF(model, segmenter, fusion=fuse_none())
    (found,) = method.predict(moving, expressions("the red square"))
    truth = two_squares()
    for t in range(20):
        np.testing.assert_array_equal(found.track.mask(t), (truth[t] == RED).all(-1))
    assert found.details["object"] == "dog"
    assert found.details["points"] == len(candidate_points(found.maps["fused"], FRAMES_OF_20)) >= 8
    assert len(found.details["answers"]) == 17
    kept = [k for k in found.details["tracklets"] if k["kept"]]
    assert len(kept) == 1
    assert kept[0]["s_trk"] <= 1
    assert found.point.frame in FRAMES_OF_20
    assert truth[found.point.frame, int(found.point.y * 48), int(found.point.x * 64)].tolist() == list(RED)
    stages = ["object", "background", "contrast"]
    assert list(found.maps) == [*stages, *(f"{stage} (video)" for stage in stages), "fused"], "in their order"
    for name, volume in found.maps.items():
        assert 0 <= volume.min() <= volume.max() <= 1
        video = name.endswith("(video)")
        assert volume.shape == (8 if video else 16, 6, 8)
        assert found.map_frames[name] == (FRAMES_OF_20[::2] if video else FRAMES_OF_20)
    asked, choice, behind = found.details["prompts"]
    assert "red square" in asked
    assert "red square" in choice
    assert "dog" in behind
    assert set(found.seconds) == {"attention", "fusion", "segment"}
    # later frames' clicks on the same object are suppressed: one propagation of the sample, one of the clip
    session = segmenter.sessions[0]
    moved = [call for call in session.calls if call[0] == "propagate"]
    assert moved[0][3] == FRAMES_OF_20
    assert moved[-1][3] is None
    assert len(segmenter.sessions) == 1


def official(clip, session, frames, volume, tau_pq=0.8, tau_trk=0.8):
    """The published procedure written out once more, object by object, on plain arrays."""
    height, width = clip.size
    sampled = len(frames)
    tracks = []  # [masks (T,H,W), s_obj, t]

    def iou(a, b):
        union = (a | b).sum()
        return (a & b).sum() / union if union else 0.0

    for t in range(sampled):
        cells = [
            (y, x)
            for y in range(volume.shape[1])
            for x in range(volume.shape[2])
            if volume[t, y, x] >= tau_pq
        ]
        if not cells:
            continue
        masks, scores = [], []
        for y, x in cells:
            point = ((x + 0.5) / volume.shape[2], (y + 0.5) / volume.shape[1])
            (offer,) = session.segment(frames[t], [Prompt(points=(point,), labels=(1,))])
            best = int(offer.ious_K.argmax())
            masks.append(offer.masks_KHW[best])
            scores.append(float(offer.ious_K[best]) + float(volume[t, y, x]))
        order = sorted(range(len(cells)), key=lambda i: -scores[i])
        gone, keep, delete = set(), [], set()
        for rank, i in enumerate(order):
            if i in gone:
                continue
            keep.append(i)
            for j in order[rank + 1 :]:
                if j not in gone and iou(masks[i], masks[j]) > 0.7:
                    gone.add(j)
            for k, old in enumerate(tracks):
                if iou(masks[i], old[0][t]) > 0.7:
                    if scores[i] > old[1]:
                        delete.add(k)
                    else:
                        keep.remove(i)
                        break
        if not keep:
            continue
        new = []
        for i in keep:
            stack = np.zeros((sampled, height, width), bool)
            for f, moved in session.propagate(frames[t], [Prompt(mask=masks[i])], frames=frames):
                stack[frames.index(f)] = moved[0]
            new.append([stack, scores[i], t])
        tracks = [old for k, old in enumerate(tracks) if k not in delete] + new
    mean = volume.mean((1, 2), keepdims=True)
    front = volume > mean
    peak = np.where(front, volume, 0).max((1, 2), keepdims=True)
    signed = torch.tensor(np.where(front, volume, -peak)).double()
    total = float(volume[front].astype(float).sum()) + 1e-8
    ac = []
    for stack, _, _ in tracks:
        pooled = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(stack).float(), volume.shape[1:])
        ac.append(float((pooled.double() * signed).sum()) / total)
    top = max((a for a in ac if a > 0), default=None)
    ac = [a / (top + 1e-8) if a > 0 else a for a in ac]
    final = [(s + a) / 3 for (_, s, _), a in zip(tracks, ac, strict=True)]
    chosen = [k for k, s in enumerate(final) if s > tau_trk] or ([int(np.argmax(final))] if final else [])
    out = np.zeros((len(clip), height, width), bool)
    for k in chosen:
        stack, _, t = tracks[k]
        for f, moved in session.propagate(frames[t], [Prompt(mask=stack[t])]):
            out[f] |= moved[0]
    return out, final, chosen


@pytest.mark.parametrize("seed", range(6))
def test_the_segmenter_stage_is_the_published_procedure(moving, seed):
    rng = np.random.default_rng(seed)
    volume = rng.random((16, 6, 8)).astype(np.float32) ** 6
    volume[rng.integers(16), rng.integers(6), rng.integers(8)] = 1
    volume[rng.random(16) < 0.4] *= 0.5
    ious = {RED: rng.random(), BLUE: rng.random(), GREY: rng.random()}
    segmenter = ColourSegmenter(ious)
    method = DecAF(FakeMLLM(), segmenter)
    track, found = method.prompt_segmenter(segmenter.open(moving), FRAMES_OF_20, volume)
    expected, scores, chosen = official(moving, segmenter.open(moving), list(FRAMES_OF_20), volume)
    np.testing.assert_array_equal(np.stack(list(track.masks())), expected)
    assert [k["s_trk"] for k in found["tracklets"]] == pytest.approx(scores, abs=2e-6)
    assert [i for i, k in enumerate(found["tracklets"]) if k["kept"]] == chosen


def test_what_a_later_frame_suppresses_is_tracked_no_further(moving, monkeypatch):
    volume = np.zeros((16, 6, 8), np.float32)
    for t, value in ((3, 0.85), (5, 0.9), (6, 1.0)):
        volume[(t, *red_cell(FRAMES_OF_20[t]))] = value
    tracked, plain = [], ColourSession.propagate

    def noted(self, frame, *asked, **how):
        for index, masks_NHW in plain(self, frame, *asked, **how):
            tracked.append((FRAMES_OF_20.index(frame), index))
            yield index, masks_NHW

    monkeypatch.setattr(ColourSession, "propagate", noted)
    method = DecAF(FakeMLLM(), ColourSegmenter())
    track, found = method.prompt_segmenter(method.segmenter.open(moving), FRAMES_OF_20, volume)
    assert [k["frame"] for k in found["tracklets"]] == [FRAMES_OF_20[6]]
    assert [index for t, index in tracked if t == 3] == list(FRAMES_OF_20[3:6])
    assert [index for t, index in tracked if t == 5] == list(FRAMES_OF_20[5:7])
    assert len([index for t, index in tracked if t == 6]) == 16 + 20  # for its score, then on every frame
    assert min(track.area()) > 0


def test_no_score_passes_and_no_fallback_gives_an_empty_track(moving):
    look = look_at_red(FRAMES_OF_20)
    for fallback, empty in ((True, False), (False, True)):
        method = DecAF(
            FakeMLLM(look=look), ColourSegmenter(), tau_trk=2.0, fallback_argmax=fallback, fusion=fuse_none()
        )
        (found,) = method.predict(moving, expressions("x"))
        assert (sum(found.track.area()) == 0) == empty


def test_a_constant_volume_gives_an_empty_prediction(moving):
    for mask in ("sam2", "attention"):
        method = DecAF(FakeMLLM(constant=True), ColourSegmenter(), mask=mask)
        (found,) = method.predict(moving, expressions("x"))
        assert sum(a or 0 for a in found.track.area()) == 0
        assert found.point is None
        assert found.no_target is True  # so that point accuracy counts a miss and refuses nothing
        assert found.details["constant"] is True
        assert not found.maps["fused"].any()


def test_a_constant_volume_can_be_a_failure_of_its_sample_alone(moving):
    class Blind(FakeMLLM):
        def _map(self, where, prompt):
            return super()._map(where, prompt) * (0 if "nothing" in prompt else 1)

    model = Blind(look=look_at_red(FRAMES_OF_20))
    method = DecAF(model, ColourSegmenter(), fusion=fuse_none(), on_constant="failure")
    found = predict_clip(method, moving, expressions("a red one", "nothing", "red"))
    failures = {prediction.expression: prediction.failure for prediction, _ in found}
    assert failures.pop("1").message.startswith("V is constant")
    assert failures == {"0": None, "2": None}


@pytest.mark.parametrize(
    ("rule", "said", "flag"),
    [
        ({}, "Nothing.", None),
        ({"absent_words": ["nothing", "no"]}, " Nothing.", True),
        ({"absent_words": ["nothing", "no"]}, "NO", True),
        ({"absent_words": ["None"]}, "none", True),
        ({"absent_words": ["nothing", "no"]}, "nothing else", False),
        ({"absent_words": ["nothing", "no"]}, "", False),
        ({"absent_words": []}, "nothing", False),
        ({"absent_below": 2.9e-4}, "dog", False),
        ({"absent_below": 3.1e-4}, "dog", True),
        ({"absent_below": 2.9e-4, "absent_words": ["dog"]}, "dog", True),
    ],
)
@pytest.mark.parametrize("mask", ["sam2", "attention"])
def test_absence_rules_answer_with_empty_masks_and_a_flag(moving, mask, rule, said, flag):
    segmenter = ColourSegmenter()
    model = FakeMLLM(words=said, look=look_at_red(FRAMES_OF_20))
    method = DecAF(model, segmenter, mask=mask, fusion=fuse_none(), **rule)
    (found,) = method.predict(moving, expressions("the red square"))
    assert found.no_target is flag
    if flag:
        assert found.track.area() == [0] * 20
        assert segmenter.sessions == []
    else:
        assert any(found.track.area())
    assert found.details["contrast_peak"] == pytest.approx(3e-4, rel=1e-3)  # 4e-4 less the background's 1e-4
    assert found.point is not None


def test_coarse_masks_are_for_the_sampled_frames_only(moving):
    method = DecAF(FakeMLLM(look=look_at_red(FRAMES_OF_20)), mask="attention")
    (found,) = method.predict(moving, expressions("x"))
    for t in range(20):
        mask = found.track.mask(t)
        if t in FRAMES_OF_20:
            field = resize(found.maps["fused"][FRAMES_OF_20.index(t)][None], (48, 64))[0]
            np.testing.assert_array_equal(mask, otsu(field))
        else:
            assert mask is None


def test_every_option_of_the_fusion_reaches_it(moving):
    model = FakeMLLM(look={**look_at_red(FRAMES_OF_20), 3: [(4, 6, 9e-4)], ("video", 2): [(5, 1, 5e-4)]})
    volumes = {}
    for name, options in {
        "default": {},
        "video": {"branch": "video"},
        "frame": {"branch": "frame"},
        "object": {"contrast": "obj_only"},
        "kernel": {"frame_kernel": 5},
        "video kernel": {"video_kernel": 5},
        "sigma": {"sigma": 2.0},
        "raw": {"final_minmax": False},
    }.items():
        (found,) = DecAF(model, mask="attention", fusion=Fusion(**options)).predict(moving, expressions("x"))
        volumes[name] = found.maps["fused"]
        assert ("background" in found.maps) == (name != "object")
    for name, volume in volumes.items():
        assert name in ("default", "object") or not np.array_equal(volume, volumes["default"])
    biased = DecAF(model, mask="attention", sb=SpatialBias())
    (right,) = biased.predict(moving, expressions("the one on the right"))
    assert not np.array_equal(right.maps["fused"], volumes["default"])
    assert right.maps["fused"].max() == 1


def test_object_only_asks_for_no_background(moving):
    model = FakeMLLM(look={})
    list(DecAF(model, mask="attention", fusion=Fusion(contrast="obj_only")).predict(moving, expressions("x")))
    assert [where for where, _ in model.asked] == ["video", *range(16)]


def test_bad_settings_are_told():
    model = FakeMLLM()
    with pytest.raises(ConfigError, match="needs a segmenter"):
        DecAF(model)
    with pytest.raises(ConfigError, match="can't be filled"):
        DecAF(model, ColourSegmenter(), prompt_bg_text="{nothing}")


def test_prompts_reach_the_model_as_published(moving):
    model = FakeMLLM(words=" Dog ", look=look_at_red(FRAMES_OF_20))
    list(DecAF(model, mask="attention").predict(moving, expressions("The Red One")))
    first = [p for w, p in model.asked if w == "video"]
    assert first[0].startswith("the red one. \nWhat is the main object")
    assert first[1] == (
        "Describe the background scene of the video, excluding any dog. Answer the question using a single "
        "word or phrase."
    )
    (choice,) = [p for w, p in model.asked if w == "ask"]
    assert "Candidate object class list: " + ",".join(["dog"] * 17) + "\n" in choice
    assert [w for w, _ in model.asked] == ["video", *range(16), "ask", "video", *range(16)]


@pytest.mark.parametrize("answer", ["", "a very long answer " * 40, "braces {x} and 'quotes'"])
def test_odd_answers_go_through_verbatim(moving, answer):
    model = FakeMLLM(words=answer, look=look_at_red(FRAMES_OF_20))
    (found,) = DecAF(model, mask="attention").predict(moving, expressions("x"))
    assert found.details["object"] == answer.strip().lower()
    assert any(f"excluding any {answer.strip().lower()}." in p for w, p in model.asked if w == "video")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_images_and_short_clips(tmp_path, count):
    clip = clip_of(tmp_path, two_squares(count))
    look = {t: [(*red_cell(t), 3e-4)] for t in range(count)}
    look |= {("video", t): [(*red_cell(2 * t), 3e-4)] for t in range(count)}
    (found,) = DecAF(FakeMLLM(look=look), ColourSegmenter(), fusion=fuse_none()).predict(
        clip, expressions("x")
    )
    for t in range(count):
        np.testing.assert_array_equal(found.track.mask(t), (two_squares(count)[t] == RED).all(-1))
    assert found.maps["fused"].shape == (count, 6, 8)


def test_frames_of_different_sizes_are_told(tmp_path):
    clip = clip_of(tmp_path, two_squares(3))
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(clip.frame_paths[1])
    with pytest.raises(DataError, match="is \\(10, 10\\), its clip"):
        list(DecAF(FakeMLLM(), mask="attention").predict(clip, expressions("x")))


# ── cache ────────────────────────────────────────────────────────────────────


def cached(model, root, segmenter=None, **options):
    method = DecAF(model, segmenter, **({} if segmenter else {"mask": "attention"}), **options)
    method.cache_root = root
    return method


def test_a_sweep_on_a_warm_cache_makes_no_call(moving, tmp_path):
    root = tmp_path / "cache"
    asked = expressions("the red one", "the blue one")
    first = FakeMLLM(look=look_at_red(FRAMES_OF_20))
    (cold, _) = list(cached(first, root).predict(moving, asked))
    assert first.counters.calls > 0
    for options in (
        {},
        {"fusion": Fusion(frame_kernel=5, contrast="obj_only")},
        {"fusion": Fusion(branch="video")},
        {"tau_pq": 0.9, "tau_trk": 0.7, "segmenter": ColourSegmenter()},
        {"ac": "otsu", "nms_iou": 0.5, "segmenter": ColourSegmenter()},
        {"sb": SpatialBias()},
        {"keypoints": 5},
        {"absent_words": ["dog"], "absent_below": 1e-4},
        {"start_layer": 14, "end_layer": 28},
    ):
        model = FakeMLLM(look=look_at_red(FRAMES_OF_20))
        method = cached(model, root, **options)
        (warm, _) = list(method.predict(moving, asked))
        assert model.counters.calls == 0
        assert method.report()["cache_misses"] == 0
        assert method.report()["cache_hits"] > 0
        assert warm.details["answers"] == cold.details["answers"]


@pytest.mark.parametrize(
    "options",
    [
        {"rollout": "rollout"},
        {"start_layer": 3},
        {"end_layer": 20},
        {"residual": 0.4},
        {"precision": "float64"},
        {"rollout_form": "dense"},
        {"n_frames": 8},
        {"video_tokens": 300},
        {"frame_scale": 1},
        {"multiscale": "off"},
        {"max_tiles": 4},
        {"frame_tokens": 100},
        {"prompt_obj": "v1"},
        {"prompt_bg": "v1"},
        {"prompt_choice": "v1"},
        {"prompt_obj_text": "what is {sent}"},
    ],
)
def test_what_changes_the_maps_misses(moving, tmp_path, options):
    root = tmp_path / "cache"
    list(cached(FakeMLLM(), root).predict(moving, expressions("x")))
    model = FakeMLLM()
    list(cached(model, root, **options).predict(moving, expressions("x")))
    assert model.counters.calls > 0


def test_another_model_other_pixels_and_another_text_miss(moving, tmp_path):
    root = tmp_path / "cache"
    list(cached(FakeMLLM(), root).predict(moving, expressions("x")))
    other = FakeMLLM()
    other.identity = lambda: {"fake": 2}
    list(cached(other, root).predict(moving, expressions("x")))
    assert other.counters.calls > 0
    model = FakeMLLM()
    list(cached(model, root).predict(moving, expressions("y")))
    assert model.counters.calls > 0
    frame = two_squares()[0]
    frame[0, 0] = 9
    Image.fromarray(frame).save(moving.frame_paths[0])
    model = FakeMLLM()
    list(cached(model, root).predict(moving, expressions("x")))
    assert model.counters.calls > 0


def test_changing_only_the_background_prompt_keeps_the_object_maps(moving, tmp_path):
    root = tmp_path / "cache"
    list(cached(FakeMLLM(), root).predict(moving, expressions("x")))
    model = FakeMLLM()
    list(cached(model, root, prompt_bg="v1").predict(moving, expressions("x")))
    assert {p.split(".")[0] for _, p in model.asked} == {"Describe the background scene of the video"}


def test_equal_prompts_run_once(moving):
    model = FakeMLLM()
    found = list(DecAF(model, mask="attention").predict(moving, expressions("a", "b", "a")))
    assert [g.expression.id for g in found] == ["0", "1", "2"]
    # two object prompts, two choices, one background prompt (both name the dog)
    assert len([1 for w, _ in model.asked if w == "video"]) == 3
    assert len([1 for w, _ in model.asked if w == "ask"]) == 2


def test_settings_reach_the_model(moving):
    seen = {}

    class Spy(FakeMLLM):
        def open(self, frames_THWC, visual, rollout):
            seen.update(visual=visual, rollout=rollout, frames=len(frames_THWC))
            return super().open(frames_THWC, visual, rollout)

    method = DecAF(
        Spy(),
        mask="attention",
        n_frames=4,
        video_tokens=9,
        frame_scale=3,
        frame_tokens=7,
        max_tiles=2,
        multiscale="off",
        rollout="plain",
        start_layer=1,
        end_layer=3,
        residual=0.1,
        precision="float64",
        rollout_form="dense",
    )
    list(method.predict(moving, expressions("x")))
    assert seen["visual"] == VisualSettings(9, 3, 7, 2, False)
    assert seen["rollout"] == RolloutSettings("plain", 1, 3, 0.1, "float64", dense=True)
    assert seen["frames"] == 4


# ── tiny models of every family ──────────────────────────────────────────────


@pytest.mark.parametrize("name", quick_first(FAMILIES))
def test_every_family_runs_the_whole_pipeline(name, tmp_path):
    clip = clip_of(tmp_path, clip_frames(5))
    made = backbone(name, max_new_tokens=3)
    method = DecAF(made, ColourSegmenter(), video_tokens=12, n_frames=3, keypoints=4)
    method.cache_root = tmp_path / "cache"
    found = list(method.predict(clip, expressions("the left dog", "what jumps?")))
    assert [g.expression.id for g in found] == ["0", "1"]
    for grounding in found:
        assert len(grounding.track) == 5
        assert all(mask is not None for mask in grounding.track.masks())
        fused = grounding.maps["fused"]
        assert len(fused) == 3
        assert fused.max() == (0 if grounding.details["constant"] else 1)
        assert grounding.details["frames"] == [0, 2, 4]
        assert len(grounding.details["keypoints"]) == 4
        assert len(grounding.details["answers"]) == 4
        assert (grounding.point is None) == grounding.details["constant"]
    calls = made.counters.calls
    assert made.counters.visual_prefixes == 4
    again = list(method.predict(clip, expressions("the left dog")))
    assert made.counters.calls == calls
    np.testing.assert_array_equal(again[0].maps["fused"], found[0].maps["fused"])
    # Random weights may attend less to every cell under the object prompt; alone it is never constant.
    alone = DecAF(made, mask="attention", video_tokens=12, n_frames=3, fusion=Fusion(contrast="obj_only"))
    alone.cache_root = method.cache_root
    assert next(alone.predict(clip, expressions("the left dog"))).maps["fused"].max() == 1
    assert made.counters.calls == calls


def test_an_image_on_a_tiny_model(tmp_path):
    clip = clip_of(tmp_path, clip_frames(1))
    for name in ("qwen2_vl", "internvl"):
        method = DecAF(backbone(name, max_new_tokens=2), mask="attention", video_tokens=12)
        (found,) = method.predict(clip, expressions("the dog"))
        assert found.track.mask(0) is not None
        assert found.maps["fused"].shape[0] == 1


@pytest.mark.slow
def test_the_transformers_sam2_session(tmp_path):
    """A real (random) SAM 2 behind the method: shapes, prompts and directions fit."""
    from refseg_bench.segmenters.sam2_hf import Sam2Hf
    from tools import tiny_sam as tiny

    folder = tiny.write_sam2(tmp_path / "sam2", release="2.0")
    clip = clip_of(tmp_path, two_squares(5))
    look = {t: [(*red_cell(t), 3e-4), (4, 6, 3e-4)] for t in range(5)}
    look |= {("video", t): [(*red_cell(2 * t), 3e-4)] for t in range(5)}
    segmenter = Sam2Hf(model=str(folder), device="cpu")
    (found,) = DecAF(FakeMLLM(look=look), segmenter, fusion=fuse_none()).predict(clip, expressions("x"))
    assert len(found.track) == 5
    assert found.details["tracklets"]


# ── before anything runs ─────────────────────────────────────────────────────


def test_what_the_cache_holds_is_told_before_a_run(moving, tmp_path):
    model = FakeMLLM()
    method = cached(model, tmp_path / "cache")
    assert method.cached(moving, ["a", "b"]) == 0
    list(method.predict(moving, expressions("a")))
    calls = model.counters.calls
    assert method.cached(moving, ["a", "b"]) == 1
    assert model.counters.calls == calls
    assert DecAF(model, mask="attention").cached(moving, ["a"]) == 0


def test_a_capture_serves_every_run_of_its_digest(moving, tmp_path):
    def values(**options):
        node = {"_target_": "refseg_bench.methods.decaf.DecAF", **schema.conform(DecAF, options, "method")}
        return {"method": node, "backbone": {"_target_": "refseg_bench.backbones.mllm.MLLM", "path": "a/b"}}

    same = [
        DecAF.capture_digest(values(**options))
        for options in (
            {},
            {"tau_pq": 0.7, "ac": "none"},
            {"fusion": {"contrast": "obj_only"}},
            {"sb": {"floor": 0.5}},
            {"mask": "attention"},
        )
    ]
    assert len(set(same)) == 1
    other = [
        DecAF.capture_digest(values(**options))
        for options in ({"rollout": "plain"}, {"prompt_bg": "v1"}, {"n_frames": 8}, {"use_cache": False})
    ]
    assert len({*same, *other}) == 5
    assert DecAF.capture_digest(values(rollout="rollout")) == other[0]
    root = tmp_path / "cache"
    cached(FakeMLLM(), root, fusion=Fusion(contrast="obj_only")).capture(moving, expressions("a", "b"))
    model = FakeMLLM()
    list(cached(model, root).predict(moving, expressions("a", "b")))
    assert model.counters.calls == 0

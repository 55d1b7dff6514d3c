"""Refer-Agent on planted grades and scripted replies: the choice of frames, and both loops of self-checks."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import numpy as np
import pytest

from refseg_bench.backbones.chat import ChatEndpoint
from refseg_bench.backbones.weights import needs_of
from refseg_bench.config.compose import compose
from refseg_bench.methods.agents import read_boxes, read_point, refer_agent
from refseg_bench.methods.agents.drawing import beside
from refseg_bench.methods.agents.refer_agent import (
    ClipScores,
    ReferAgent,
    best_of_parts,
    chosen_frames,
    standing,
)
from tests.fakes import FakeDataset
from tests.methods.test_agents import Planted, Scripted, run

LENGTH = 40


@pytest.fixture
def clip(tmp_path):
    return FakeDataset(root=tmp_path / "data", n_frames=LENGTH).clips()[0]


@pytest.fixture(autouse=True)
def _small_sheets(monkeypatch):
    """What the frames are stitched to is an eighth as high: nobody here looks at so many pixels."""

    def eighth(images, height):
        assert height == 896
        return beside(images, height // 8)

    monkeypatch.setattr(refer_agent, "beside", eighth)


class Graded(ClipScores):
    """CLIP that likes frames 2, 6, 10 … best."""

    def logits(self, clip, text):
        self.last = text
        return np.array([1.0 if frame % 4 == 2 else 0.0 for frame in range(len(clip))])


def fine(*wrong):
    return json.dumps({name: name in wrong for name in ("absent", "clearer_elsewhere", "occluded")})


def described(*texts):
    return json.dumps({"count": len(texts), "descriptions": texts})


def scores(best: int, count: int = 10):
    return json.dumps({"scores": [9 if place == best else 5 for place in range(count)]})


BOX = '[{"bbox_2d": [250, 250, 500, 500]}]'


def scripts(**changes):
    """Replies by what they answer, in the order of the method."""
    found = {
        "statement": ("Rewrite", ['{"statement": "a dog runs", "type": 1}']),
        "questions": ("yes-or-no", ['{"questions": []}']),
        "frames": ("How well can it be told", [scores(0)]),
        "descriptions": ("Describe each target", [described("the dog")]),
        "box": ("Locate:", [BOX]),
        "point": ("Give one point", ['{"point": [0.4, 0.4]}']),
        "frame": ("Left: the key frame; right", [fine()]),
        "check": ("should hold", ['{"yes": true}']),
    }
    found |= {name: (found[name][0], replies) for name, replies in changes.items()}
    return {words: list(replies) for words, replies in found.values()}


def agent(options=None, **changes):
    model = Scripted(model="m", scripts=scripts(**changes))
    return ReferAgent(model, Planted(), clip=Graded(), **(options or {}))


def steps(p):
    return [turn["step"] for turn in p.details["conversation"]]


def asked(method, words):
    return [(said, pictures) for said, pictures in method.backbone.asked if words in said]


def test_a_query_that_nothing_is_wrong_with(clip):
    method = agent()
    (p,) = run(method, clip, "what runs?")
    assert steps(p) == ["statement", "questions", "frames", "descriptions", "box", "point", "frame check"]
    assert method.clip.last == "what runs?"
    ((frame, (prompt,)),) = method.segmenter.prompted
    assert frame == p.details["key"] == 2
    assert prompt.box == (0.25, 0.25, 0.5, 0.5)
    assert prompt.points == ((0.4, 0.4),)
    assert prompt.labels == (1,)
    assert p.track.area() == [6 * 8] * LENGTH
    assert p.no_target is False
    assert "a dog runs" in asked(method, "How well can it be told")[0][0]
    assert "over time" in asked(method, "Describe each target")[0][0]
    ((_, (picture,)),) = asked(method, "How well can it be told")
    # Ten frames in a mosaic of two rows.
    assert picture.shape == (2 * 24, 5 * 32, 3)


def test_frames_are_chosen_by_both_grades(clip):
    # Without CLIP's share the chat model alone decides; the best is the seventh part's.
    (p,) = run(agent({"clip_share": 0.0}, frames=[scores(6)]), clip, "it")
    assert p.details["key"] == 26
    assert p.details["frames"] == [2, 6, 10, 14, 26]

    class Once(Graded):
        def logits(self, clip, text):
            return np.array([5.0 if frame == 33 else 0.0 for frame in range(len(clip))])

    method = agent({"clip_share": 1.0})
    method.clip = Once()
    (p,) = run(method, clip, "it")
    assert p.details["key"] == 33
    method = agent({"clip_share": 0.0})
    method.clip = Once()
    (p,) = run(method, clip, "it")
    assert p.details["key"] == 0


@pytest.mark.parametrize(
    ("best", "frames"), [(0, [2, 6, 10, 14, 18]), (1, [2, 4, 6, 8, 10, 14, 18]), (2, [2, 6, 10, 14, 18]),
                         (3, [2, 6, 10, 12, 14, 16, 18]), (9, [2, 6, 10, 14, 38])],
)  # fmt: skip
def test_a_second_or_fourth_key_frame_brings_the_frames_between(clip, best, frames):
    (p,) = run(agent(frames=[scores(best)]), clip, "it")
    assert p.details["frames"] == frames
    assert p.details["key"] == 2 + 4 * best


def test_parts_and_choices_of_short_clips():
    assert best_of_parts(np.zeros(3), 10) == [0, 1, 2]
    assert best_of_parts(np.array([0.0, 1, 1, 0]), 1) == [1]
    assert chosen_frames([4], [1], 5) == ([4], 4)
    assert chosen_frames([4, 6], [1, 2], 5) == ([4, 6], 6)
    assert chosen_frames([4, 6, 9], [1, 2, 1], 5) == ([4, 5, 6, 7, 9], 6)
    graded = standing(np.array([0.0] * 30 + [1.0]))
    assert graded.max() == 10
    assert graded.min() >= 1


def test_a_poor_frame_is_told_and_another_chosen(clip):
    method = agent(frames=[scores(0), scores(9)], frame=[fine("absent", "occluded")])
    (p,) = run(method, clip, "it")
    assert p.details["key"] == 38
    first, second = (words for words, _ in asked(method, "How well can it be told"))
    assert "Frame" not in first.replace("Frames", "")
    assert "Frame 2 was tried and is poor: a target is absent, occlusion." in second
    # After the last round there is none to guide.
    assert steps(p).count("frame check") == 1
    assert steps(p).count("frames") == 2
    (p,) = run(agent({"frame_rounds": 1}, frame=[fine("absent")]), clip, "it")
    assert steps(p).count("frame check") == 0
    (p,) = run(agent({"frame_rounds": 3}, frame=[fine("absent")]), clip, "it")
    assert steps(p).count("frames") == 3


def test_a_no_sends_back_to_the_descriptions_with_its_reason(clip):
    method = agent(
        questions=['{"questions": ["Is it brown?", "Is it a dog?", "Is it left?", "Is it a fourth?"]}'],
        descriptions=[described("a cat"), described("the dog")],
        box=[BOX, "[[500, 500, 1000, 1000]]"],
        check=['{"yes": true}', '{"yes": false, "reason": "it is a cat"}', '{"yes": true}'],
    )
    (p,) = run(method, clip, "it")
    assert p.details["questions"] == ["Is it brown?", "Is it a dog?", "Is it left?"]
    assert [target["description"] for target in p.details["targets"]] == ["the dog"]
    assert method.segmenter.prompted[0][1][0].box == (0.5, 0.5, 1.0, 1.0)
    first, second = (words for words, _ in asked(method, "Describe each target"))
    assert "it is a cat" in second
    assert "were wrong" not in first
    assert steps(p).count("box check") == 6
    (p,) = run(agent({"description_rounds": 0}, questions=['{"questions": ["Is it?"]}']), clip, "it")
    assert steps(p).count("box check") == 0
    never = agent(questions=['{"questions": ["Is it?"]}'], check=['{"yes": false, "reason": "no"}'])
    (p,) = run(never, clip, "it")
    assert steps(p).count("box check") == 2
    assert steps(p).count("descriptions") == 3


def test_without_a_new_box_the_last_ones_stay(clip):
    method = agent(
        questions=['{"questions": ["Is it?"]}'], box=[BOX, "[]"], check=['{"yes": false, "reason": "no"}']
    )
    (p,) = run(method, clip, "it")
    assert len(p.details["targets"]) == 1
    (p,) = run(agent(box=["none"]), clip, "it")
    assert p.no_target is True
    assert not any(p.track.area())
    assert "point" not in steps(p)


def test_boxes_of_an_earlier_frame_are_tracked_from_there(clip):
    # The second frame shows nothing: the boxes that count lie on the first.
    method = agent(frames=[scores(0), scores(9)], frame=[fine("absent")], box=[BOX, "[]"])
    (p,) = run(method, clip, "it")
    ((frame, (prompt,)),) = method.segmenter.prompted
    assert prompt.box == (0.25, 0.25, 0.5, 0.5)
    assert frame == p.details["key"] == 2
    assert frame in p.details["frames"]


def test_several_targets_are_tracked_together_and_the_last_box_counts(clip):
    method = agent(
        descriptions=[described("one", "gone", "two")],
        box=["[[0, 0, 100, 100], [0, 0, 500, 500]]", "[]", "[[0.5, 0.5, 1, 1]]"],
    )
    (p,) = run(method, clip, "both")
    ((_, prompts),) = method.segmenter.prompted
    assert [prompt.box for prompt in prompts] == [(0, 0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)]
    assert [target["description"] for target in p.details["targets"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "reply"),
    [("statement", '{"statement": "", "type": 1}'), ("statement", '{"statement": "a", "type": 4}'),
     ("questions", '{"questions": "none"}'), ("frames", '{"scores": [1, 2]}'),
     ("frames", scores(0).replace("9", '"9"')), ("descriptions", '{"descriptions": [""]}'), ("box", "there"),
     ("statement", '{"statement": "a", "type": 1.5}'), ("frames", scores(0).replace("9", "10.5")),
     ("descriptions", described(*["dog"] * 101)),
     ("frames", scores(0).replace("9", "1e300")), ("point", '{"point": [1]}'), ("frame", "{}"),
     ("check", '{"yes": false}')],
)  # fmt: skip
def test_what_cannot_be_read_is_a_failure_after_its_tries(clip, name, reply):
    method = agent(**{"questions": ['{"questions": ["Is it?"]}'], name: [reply]})
    method.backbone.scripts = {"That can't be used": [reply], **method.backbone.scripts}
    (p,) = run(method, clip, "it")
    assert p.failure.kind == "ChatError"
    assert [turn["reply"] for turn in p.details["conversation"]][-3:] == [reply] * 3


def test_numbers_up_to_one_are_shares_already():
    model = ChatEndpoint()
    assert read_boxes("[[0.1, 0.2, 0.3, 1]]", model, (10, 10), shares=True) == [(0.1, 0.2, 0.3, 1.0)]
    assert read_boxes("[[100, 0.2, 300, 400]]", model, (10, 10), shares=True) == [(0.1, 0.2, 0.3, 0.4)]
    # A 1 beside larger numbers is one of a thousand, or a pixel: not the whole side.
    assert read_boxes("[[1, 0, 500, 400]]", model, (10, 10), shares=True) == [(0.001, 0.0, 0.5, 0.4)]
    assert read_point('{"point": [1, 500]}', model, (10, 10), shares=True) == (0.001, 0.5)
    assert read_boxes("[[0, 0, 1, 1]]", model, (10, 10), shares=True) == [(0.0, 0.0, 1.0, 1.0)]
    assert read_point("[[0.5, 250]]", model, (10, 10), shares=True) == (0.5, 0.25)
    assert read_point('{"point_2d": [5, 20], "label": "x"}', ChatEndpoint(boxes="pixels"), (40, 10)) == (
        0.5,
        0.5,
    )


def test_the_published_clip_is_fetched_with_its_weights():
    (point,) = compose(["method=refer_agent", "dataset=shapes"])
    needs = {need.node: need.weights for need in needs_of(point.values)}
    (needed,) = needs["method"]
    assert needed.repo == "openai/clip-vit-base-patch32"
    # Its repository holds no safetensors.
    assert any(fnmatch("pytorch_model.bin", pattern) for pattern in needed.patterns)


@pytest.mark.slow
def test_clip_grades_as_transformers_does(tmp_path, clip):
    import torch
    from transformers import CLIPModel, CLIPProcessor

    from tools.tiny_sam import write_clip

    folder = write_clip(tmp_path / "clip")
    scored = ClipScores(model=str(folder), device="cpu")
    found = scored.logits(clip, "a red disc")
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=["a red disc"], images=list(clip.load()), return_tensors="pt", padding=True)
    with torch.inference_mode():
        want = model(**inputs).logits_per_image[:, 0].numpy()
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert [one.repo for one in scored.weights()] == [str(folder)]
    assert ClipScores(model=None).weights() == ()
    assert not ClipScores(model=None).logits(clip, "dog").any()
    assert len(scored.logits(clip, "a word " * 200)) == LENGTH

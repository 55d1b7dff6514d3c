"""EVOL-SAM3 on planted candidates and scripted replies: gate, duels, breeding, and the last verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refseg_bench.methods.agents import box_iou
from refseg_bench.methods.agents.evol_sam3 import EvolSam3, settled
from tests.fakes import FakeDataset
from tests.methods.test_agents import LENGTH, Planted, Scripted, run, same, square

LEFT, MIDDLE, RIGHT = (square(place, range(LENGTH)) for place in range(3))
TRACKS = {"dog": [LEFT], "hound": [MIDDLE], "pup": [RIGHT], "beast": [LEFT, RIGHT], "mutt": [MIDDLE, RIGHT]}
#: The box of the middle square in thousandths: x 10 … 16 of 32, y 2 … 8 of 24.
MIDDLE_BOX = '[{"bbox_2d": [312, 83, 500, 334]}]'


@pytest.fixture
def image(tmp_path):
    return FakeDataset(root=tmp_path / "image", n_frames=1).clips()[0]


def phrase(words):
    return json.dumps({"phrase": words})


def phrases(*words):
    return json.dumps({"phrases": words})


def winner(*sides):
    return [json.dumps({"winner": side}) for side in sides]


def agent(scripts, scores=None, **options):
    scripts = {"other noun phrases": [phrases()], "one box": ["[]"], **scripts}
    model = Scripted(model="m", scripts=scripts)
    scores = {words: [0.9] * len(tracks) for words, tracks in TRACKS.items()} | (scores or {})
    return EvolSam3(model, Planted(TRACKS, scores), **{"least_pixels": 1, **options})


def steps(p):
    return [turn["step"] for turn in p.details["conversation"]]


def test_one_phrase_that_is_sure_answers(image):
    method = agent({"Name it by one": [phrase("dog")]})
    (p,) = run(method, image, "the dog")
    assert np.array_equal(p.track.mask(0), LEFT.mask(0))
    assert p.details["answer"] == "text"
    assert p.details["phrases"] == [["dog", 0.9, 0.0]]
    assert steps(p) == ["phrase", "paraphrases", "box"]
    assert p.no_target is None


def test_the_mask_of_a_phrase_is_the_union_of_its_large_instances(image):
    (p,) = run(agent({"Name it by one": [phrase("beast")]}), image, "it")
    assert np.array_equal(p.track.mask(0), LEFT.mask(0) | RIGHT.mask(0))
    (p,) = run(agent({"Name it by one": [phrase("beast")]}, least_pixels=37), image, "it")
    assert p.details["answer"] == "none"
    assert not p.track.mask(0).any()


@pytest.mark.parametrize(
    ("score", "said", "asked", "passes"),
    [
        (0.68, 0.0, 0, True),
        (0.67, 1.0, 1, True),
        (0.5, 0.9, 1, False),
        (0.36, 1, 1, True),
        (0.34, 1.0, 0, False),
    ],
)
def test_the_gate(image, score, said, asked, passes):
    scripts = {"Name it by one": [phrase("dog")], "How well does": [json.dumps({"score": said})]}
    (p,) = run(agent(scripts, {"dog": [score]}, refinements=0), image, "the dog")
    assert steps(p).count("gate") == asked
    assert bool(p.details["phrases"]) == passes


@pytest.mark.parametrize("score", [5, 100, -1, 1e300])
def test_a_score_beyond_its_scale_is_none(image, score):
    scripts = {"Name it by one": [phrase("dog")], "How well does": [json.dumps({"score": score})]}
    scripts = {"That can't be used": ['{"score": 0.2}'], **scripts}
    (p,) = run(agent(scripts, {"dog": [0.6]}, refinements=0), image, "the dog")
    assert steps(p).count("gate") == 2
    assert p.details["phrases"] == []


def test_a_phrase_that_fails_is_refined_with_what_failed(image):
    scripts = {"Name it by one": [phrase("unicorn"), phrase("horse"), phrase("hound")]}
    method = agent(scripts)
    (p,) = run(method, image, "it")
    assert np.array_equal(p.track.mask(0), MIDDLE.mask(0))
    told = [words for words, _ in method.backbone.asked if "Name it by one" in words]
    assert ["found nothing good: unicorn, horse" in words for words in told] == [False, False, True]
    (p,) = run(agent({"Name it by one": [phrase("unicorn")]}, refinements=2), image, "it")
    assert steps(p).count("phrase") == 3
    assert p.details["answer"] == "none"


def test_duels_go_by_rank_and_the_winner_breeds(image):
    scripts = {
        "Name it by one": [phrase("dog")],
        "other noun phrases": [phrases("hound", "pup", "beast", "mutt"), phrases("mutt", "dog", "pup")],
        "Which shows better": winner("B", "A", "A", "A"),
    }
    method = agent(
        scripts, {"dog": [0.9], "hound": [0.89], "pup": [0.88], "beast": [0.87] * 2, "mutt": [0.7] * 2}
    )
    (p,) = run(method, image, "it")
    # dog - hound: B wins; pup - beast: A wins. hound (16), pup (16) stay; of the bred, mutt and dog are new.
    # Then hound against pup: A; mutt and dog do not rank so high: the second duel is dog - mutt: A.
    assert steps(p) == ["phrase", "paraphrases", "duel", "duel", "paraphrases", "duel", "duel", "box"]
    assert p.details["phrases"] == [
        ["hound", 0.89, 32.0],
        ["dog", 0.9, 16.0],
        ["pup", 0.88, 0.0],
        ["mutt", 0.7, -16.0],
    ]
    assert np.array_equal(p.track.mask(0), MIDDLE.mask(0))
    assert (
        'a detector looks for "hound". Give 2'
        in [w for w, _ in method.backbone.asked if "other noun" in w][1]
    )
    # The mask of the fifth phrase was not looked for: the population is full.
    assert method.segmenter.looked_for == ["dog", "hound", "pup", "beast", "mutt", "dog"]


def test_options_of_the_evolution_change_what_they_say(image):
    def base():
        return {
            "Name it by one": [phrase("dog")],
            "other noun phrases": [phrases("hound", "pup", "beast"), phrases("mutt")],
            "Which shows better": winner("A"),
        }

    assert steps(run(agent(base(), generations=0), image, "it")[0]).count("duel") == 0
    assert steps(run(agent(base(), generations=1), image, "it")[0]).count("duel") == 2
    assert steps(run(agent(base(), generations=1, duels=1), image, "it")[0]).count("duel") == 1
    assert steps(run(agent(base(), generations=1), image, "it")[0]).count("paraphrases") == 1
    (p,) = run(agent(base(), generations=1, step=5.0), image, "it")
    assert sorted(rating for _, _, rating in p.details["phrases"]) == [-5, -5, 5, 5]
    (p,) = run(agent(base(), generations=1, population=2), image, "it")
    assert len(p.details["phrases"]) == 2
    # Masks that are nearly the same hold no duel; beast and dog share half.
    same_words = {**base(), "other noun phrases": [phrases("beast")]}
    assert steps(run(agent(same_words, generations=1, same_iou=0.49), image, "it")[0]).count("duel") == 0
    assert steps(run(agent(same_words, generations=1, same_iou=0.51), image, "it")[0]).count("duel") == 1
    (p,) = run(agent(base(), settled_iou=0.0), image, "it")
    assert steps(p).count("duel") == 0
    # Ratings that lie apart are not settled.
    options = agent({})
    masks = [LEFT.mask(0)] * 3
    assert settled([0, 3, 0], masks, options)
    assert not settled([0, 3.1, 0], masks, options)
    assert not settled([0, 0], [LEFT.mask(0), RIGHT.mask(0)], options)
    assert settled([9.0], masks[:1], options)


@pytest.mark.parametrize(
    ("style", "verdicts", "answer"),
    [
        ("reason", ("A", "B"), "text"), ("reason", ("B", "A"), "box"), ("reason", ("A", "A"), "text"),
        ("reason", ("B", "B"), "text"), ("refcoco", ("A", "A"), "box"), ("refcoco", ("B", "B"), "box"),
        ("refcoco", ("A", "B"), "text"),
    ],
)  # fmt: skip
def test_the_last_verdict_must_hold_in_both_orders(image, style, verdicts, answer):
    scripts = {
        "Name it by one": [phrase("dog")],
        "one box": [MIDDLE_BOX],
        "Which shows better": winner(*verdicts),
    }
    method = agent(scripts, style=style)
    (p,) = run(method, image, "it")
    assert p.details["answer"] == answer
    assert np.array_equal(p.track.mask(0), (LEFT if answer == "text" else MIDDLE).mask(0))
    (_, first), (_, second) = [a for a in method.backbone.asked if "Which shows better" in a[0]]
    assert np.array_equal(first[1], second[2])
    assert np.array_equal(first[2], second[1])


def test_a_side_that_is_missing_loses(image):
    scripts = {"Name it by one": [phrase("unicorn")], "one box": [MIDDLE_BOX]}
    (p,) = run(agent(scripts, refinements=0), image, "it")
    assert p.details["answer"] == "box"
    assert np.array_equal(p.track.mask(0), MIDDLE.mask(0))


def test_on_refcoco_the_expression_joins_and_boxes_must_be_filled(image):
    scripts = {"Name it by one": [phrase("hound")], "other noun phrases": [phrases("pup")]}
    scripts["Which shows better"] = winner("A")
    (p,) = run(agent(scripts, style="refcoco", generations=0), image, "dog")
    assert {words for words, _, _ in p.details["phrases"]} == {"hound", "dog", "pup"}
    (p,) = run(agent(scripts, style="reason", generations=0), image, "dog")
    assert {words for words, _, _ in p.details["phrases"]} == {"hound", "pup"}
    method = agent(scripts, style="refcoco")
    run(method, image, "dog")
    asked = [words for words, _ in method.backbone.asked if "Name it by one" in words]
    assert "superlatives" in asked[0]

    class Shrunk(Planted):
        def open(self, clip):
            session = super().open(clip)
            area = session._area
            session._area = lambda prompt: area(prompt) & (np.arange(clip.size[1]) < 14)
            return session

    for style, answer in (("refcoco", "none"), ("reason", "box")):
        method = agent(
            {"Name it by one": [phrase("unicorn")], "one box": [MIDDLE_BOX]}, style=style, refinements=0
        )
        method.segmenter = Shrunk(TRACKS)
        (p,) = run(method, image, "unicorn")
        assert p.details["answer"] == answer


def test_a_clip_is_answered_on_its_middle_frame(tmp_path):
    clip = FakeDataset(root=tmp_path / "clip", n_frames=LENGTH).clips()[0]
    method = agent({"Name it by one": [phrase("dog")]})
    (p,) = run(method, clip, "the dog")
    assert same(p.track, LEFT)
    assert [frame for frame, _ in method.segmenter.prompted] == [3]
    (p,) = run(agent({"Name it by one": [phrase("unicorn")]}, refinements=0), clip, "it")
    assert not any(p.track.area())


@pytest.mark.parametrize(
    ("said", "reply"),
    [("Name it by one", "{}"), ("other noun phrases", '{"phrases": [1]}'), ("one box", "here"),
     ("How well", '{"score": "1"}'), ("How well", '{"score": 1e999}'), ("Which shows", '{"winner": "C"}')],
)  # fmt: skip
def test_what_cannot_be_read_is_a_failure(image, said, reply):
    scripts = {
        "Name it by one": [phrase("dog")], "other noun phrases": [phrases("hound")], "one box": ["[]"],
        "How well": ['{"score": 1}'], "Which shows": winner("A"), said: [reply],
        "That can't be used": [reply],
    }  # fmt: skip
    (p,) = run(agent(scripts, {"dog": [0.5]}), image, "it")
    assert p.failure.kind == "ChatError"
    assert "could not be read" in p.failure.message


def test_boxes_overlap_by_their_areas():
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0

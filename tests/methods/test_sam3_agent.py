"""SAM 3 Agent on planted candidates and scripted replies: every tool, every limit, and both forms."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest

from refseg_bench.backbones.chat import Message, Reply
from refseg_bench.methods.agents import drawing
from refseg_bench.methods.agents.sam3_agent import (
    Sam3Agent,
    _fewer,
    apart,
    faults,
    read_call,
    read_instance,
    read_verdict,
)
from refseg_bench.types import MaskTrack
from tests.fakes import FakeDataset
from tests.methods.test_agents import LENGTH, SIZE, Planted, Scripted, run, same, square

LEFT, MIDDLE, RIGHT = square(0, range(6)), square(1, range(6)), square(2, range(6))
SMALL = MaskTrack.from_masks([np.pad(np.ones((3, 3), bool), ((2, 19), (2, 27)))] * LENGTH, SIZE)
DOGS = {"dog": [LEFT, SMALL, MIDDLE, RIGHT], "cat": [RIGHT]}


def call(name: str, **given) -> str:
    return f"I think. <tool>{json.dumps({'name': name, 'parameters': given})}</tool> and then more <tool>"


def segment(phrase: str) -> str:
    return call("segment_phrase", text_prompt=phrase)


def select(*ids) -> str:
    return call("select_masks_and_return", final_answer_masks=list(ids))


@pytest.fixture
def image(tmp_path):
    return FakeDataset(root=tmp_path / "image", n_frames=1).clips()[0]


@pytest.fixture
def clip(tmp_path):
    return FakeDataset(root=tmp_path / "clip", n_frames=LENGTH).clips()[0]


class Turns(Scripted):
    """Answers in order, whatever is asked; keeps whole requests."""

    async def complete(self, messages):
        self.requests = [*getattr(self, "requests", []), list(messages)]
        self.scripts[""] = self.scripts[""] or ["nothing is left to say"]
        return await super().complete([Message("user", (" ", *messages[-1].parts))])


def agent(*replies: str, tracks=DOGS, scores=None, **options) -> Sam3Agent:
    return Sam3Agent(Turns(model="m", scripts={"": list(replies)}), Planted(tracks, scores or {}), **options)


def mask_of(*tracks: MaskTrack):
    return np.logical_or.reduce([track.mask(0) for track in tracks])


# ── the image form ───────────────────────────────────────────────────────────


def test_a_phrase_is_segmented_and_selected(image):
    method = agent(segment("dog"), select(1, 3, 9, "x"))
    (p,) = run(method, image, "the dogs at the sides")
    # The small mask inside the first is dropped, so that number 3 is the right one; 9 is none of them.
    assert np.array_equal(p.track.mask(0), mask_of(LEFT, RIGHT))
    assert p.no_target is False
    assert p.details["phrases"] == ["dog"]
    assert p.details["selected"] == [1, 3]
    first, second = method.backbone.requests
    assert [message.role for message in second] == ["system", "user", "assistant", "user"]
    # What the model said after its call is cut.
    assert second[2].parts[0].endswith("</tool>")
    assert "more" not in second[2].parts[0]
    assert "Phrases used so far: dog" in second[1].parts[1]
    assert "used" not in first[1].parts[1]
    drawn = drawing.overlay(image.load([0])[0], [t.mask(0) for t in (LEFT, MIDDLE, RIGHT)], [1, 2, 3], 0.15)
    assert np.array_equal(second[3].parts[0], drawn)
    assert "3 masks" in second[3].parts[1]


def test_no_mask_is_an_answer_and_none_that_is_valid_an_empty_one(image):
    (p,) = run(agent(call("report_no_mask")), image, "a unicorn")
    assert p.no_target is True
    assert not p.track.mask(0).any()
    (p,) = run(agent(segment("dog"), select(7)), image, "the dog")
    assert p.no_target is False
    assert not p.track.mask(0).any()


def test_a_mask_selected_over_and_over_counts_once(image):
    chosen = [1, 3, "3", 1, -1, 2.0, True, None, [1], 10**40] * 5_000
    assert read_call(select(*chosen))[1]["parameters"] == {"final_answer_masks": [1, 3, 10**40]}
    (p,) = run(agent(segment("dog"), select(*chosen)), image, "it")
    assert p.details["selected"] == [1, 3]
    assert np.array_equal(p.track.mask(0), mask_of(LEFT, RIGHT))


def test_a_phrase_that_finds_nothing_and_one_used_before_are_told(image):
    method = agent(segment("unicorn"), segment("unicorn"), segment("cat"), select(1))
    (p,) = run(method, image, "the cat")
    assert np.array_equal(p.track.mask(0), mask_of(RIGHT))
    assert method.segmenter.looked_for == ["unicorn", "cat"]
    requests = method.backbone.requests
    assert "gives no mask" in requests[1][-1].parts[0]
    assert "used before" in requests[2][-1].parts[0]
    # The latest phrase's masks take the place of all that was said since the phrase before.
    assert [len(one) for one in requests] == [2, 4, 6, 4]
    assert "unicorn, cat" in requests[3][1].parts[1]


def test_each_mask_is_examined_with_three_pictures(image):
    verdicts = ["<verdict>Reject</verdict>", "so <verdict>accept</verdict>", "<verdict>Reject</verdict>"]
    method = agent(segment("dog"), call("examine_each_mask"), *verdicts, select(1, 2))
    (p,) = run(method, image, "the dog in the middle")
    assert np.array_equal(p.track.mask(0), mask_of(MIDDLE))
    assert p.details["selected"] == [2]
    requests = method.backbone.requests
    assert [sum(not isinstance(part, str) for part in r[-1].parts) for r in requests] == [1, 1, 3, 3, 3, 1]
    raw, drawn, zoom, _ = requests[2][-1].parts
    assert np.array_equal(raw, image.load([0])[0])
    assert np.array_equal(drawn, drawing.overlay(raw, [LEFT.mask(0)], [1], 0.15))
    assert zoom.shape[0] < raw.shape[0]
    # The request after it: the first picture and the latest, not the one before.
    assert [sum(not isinstance(part, str) for part in m.parts) for m in requests[-1]] == [0, 1, 0, 0, 0, 1]
    assert "[2]" in requests[-1][-1].parts[-1]


@pytest.mark.parametrize(
    "reply", ["", "dog", "<tool>{</tool>", call("paint"), '<tool>["segment_phrase"]</tool>', segment(" "),
              call("select_masks_and_return", final_answer_masks=3),
              '<tool>{"name": "segment_phrase", "parameters": 1}</tool>',
              "<tool>" + '{"name": "report_no_mask"}'],
)  # fmt: skip
def test_what_is_no_call_is_a_failure_with_the_transcript(image, reply):
    (p,) = run(agent(reply), image, "the dog")
    assert p.failure.kind == "ChatError"
    assert [turn["reply"] for turn in p.details["conversation"]] == [reply]
    # Asked again where that is wanted.
    (p,) = run(agent(reply, call("report_no_mask"), tries=2), image, "the dog")
    assert p.no_target is True


def test_a_call_is_whole_where_its_tag_is_closed(image):
    method = agent(call("report_no_mask") + "and so on")
    method.backbone.finish = "length"
    (p,) = run(method, image, "a unicorn")
    assert p.no_target is True


def test_an_error_quotes_no_endless_word(image):
    method = agent(call("paint" * 100_000), tries=2)
    (p,) = run(method, image, "the dog")
    assert "there is no tool 'paintpaint" in p.failure.message
    assert len(p.failure.message) < 1000


def test_a_conversation_that_never_ends_is_a_failure(image):
    (p,) = run(agent(segment("dog"), generations=3), image, "the dog")
    assert "No masks were returned in 3 replies" in p.failure.message
    assert len(p.details["conversation"]) == 3


def test_options_change_what_they_say(image):
    (p,) = run(agent(segment("dog"), select(1, 2), overlap=1.0), image, "it")
    assert np.array_equal(p.track.mask(0), mask_of(LEFT, SMALL))
    (p,) = run(agent(segment("dog"), select(1, 2, 3), most_masks=2), image, "it")
    assert p.details["selected"] == [1, 2]
    # The best by score come first, whatever their order.
    scores = {"dog": [0.6, 0.7, 0.8, 0.9]}
    (p,) = run(agent(segment("dog"), select(1), scores=scores), image, "it")
    assert np.array_equal(p.track.mask(0), mask_of(RIGHT))
    many = agent(
        segment("dog"), call("examine_each_mask"), *["<verdict>Accept</verdict>"] * 3, select(1), images=3
    )
    run(many, image, "it")
    last = many.backbone.requests[-1]
    assert sum(not isinstance(part, str) for message in last for part in message.parts) == 3


def test_masks_are_told_apart_by_the_smaller_area():
    whole, half, other = (
        np.array([row], bool) for row in ([1, 1, 1, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1])
    )
    assert len(apart([whole, half], 0.5)) == 2
    assert len(apart([whole, half], 0.49)) == 1
    assert len(apart([np.zeros((1, 5), bool), whole, other], 0.0)) == 2


def test_pictures_beyond_the_limit_are_left_out_from_the_middle():
    picture = np.zeros((2, 2, 3), np.uint8)
    talk = [Message("user", (picture, str(n))) for n in range(4)]

    def kept(most):
        return [len(message.parts) - 1 for message in _fewer(talk, most)]

    assert kept(2) == [1, 0, 0, 1]
    assert kept(1) == [1, 0, 0, 0]
    assert kept(9) == [1, 1, 1, 1]


@pytest.mark.parametrize("words", ["Accept", "<verdict>maybe</verdict>", ""])
def test_a_verdict_is_one_of_two(words):
    with pytest.raises(ValueError, match="verdict"):
        read_verdict(words)
    with pytest.raises(ValueError, match="tool"):
        read_call(words)


# ── the video form ───────────────────────────────────────────────────────────


def listed(*instances) -> str:
    return json.dumps([{"instance": i, "best_frame": f, "description": d} for i, f, d in instances])


def test_instances_are_located_segmented_on_their_frames_and_tracked_apart(clip):
    tracks = {"left dog": [square(0, [1])], "right dog": [square(2, [4])]}
    method = agent(
        listed(("dog", 1, "the left dog"), ("dog", "4.0 second", "the right dog")),
        *(segment("left dog"), select(1), segment("right dog"), select(1)),
        tracks=tracks,
    )
    (p,) = run(method, clip, "the dogs")
    assert same(p.track, LEFT, RIGHT)
    assert p.no_target is False
    assert [(one["frame"], one["description"]) for one in p.details["instances"]] == [
        (1, "the left dog"), (4, "the right dog"),
    ]  # fmt: skip
    assert [frame for frame, _ in method.segmenter.prompted] == [1, 4]
    assert all(len(prompts) == 1 and prompts[0].mask is not None for _, prompts in method.segmenter.prompted)
    labels = [part for part in method.backbone.requests[0][0].parts if isinstance(part, str)]
    assert labels[:-1] == [f"{second}.0 second" for second in range(LENGTH)]
    # The image form is asked with the instance's description on its frame.
    assert "the left dog" in method.backbone.requests[1][1].parts[1]
    assert np.array_equal(method.backbone.requests[1][1].parts[0], clip.load([1])[0])


def test_a_clips_pictures_are_let_go_once_its_instances_are_named(clip):
    class Watching(Turns):
        async def complete(self, messages):
            self.alive = [picture() is not None for picture in self.seen]
            self.seen = [weakref.ref(p) for p in messages[-1].parts if not isinstance(p, str)]
            return Reply(self.scripts[""].pop(0), "stop", 1, 1, 0.0)

    model = Watching(model="m", scripts={"": [listed(("dog", 1, "it")), call("report_no_mask")]})
    model.seen = []
    run(Sam3Agent(model, Planted(), again=0), clip, "the dog")
    assert (len(model.alive), sum(model.alive) <= 1) == (LENGTH, True)


def test_an_empty_list_means_that_nothing_is_meant(clip):
    (p,) = run(agent("[]"), clip, "the unicorns")
    assert p.no_target is True
    assert not any(p.track.area())


def test_a_long_clip_shows_every_second_frame_under_its_place(tmp_path):
    long = FakeDataset(root=tmp_path / "long", n_frames=71).clips()[0]
    method = agent(listed(("dog", 3, "it")), call("report_no_mask"), again=0)
    run(method, long, "the dog")
    parts = method.backbone.requests[0][0].parts
    assert sum(not isinstance(part, str) for part in parts) == 36
    assert parts[-2].shape == (*SIZE, 3)
    assert np.array_equal(method.backbone.requests[1][1].parts[0], long.load([6])[0])
    short = FakeDataset(root=tmp_path / "short", n_frames=70).clips()[0]
    method = agent("[]")
    run(method, short, "the dog")
    assert sum(not isinstance(part, str) for part in method.backbone.requests[0][0].parts) == 70


def test_a_missing_and_a_doubled_instance_are_described_anew(clip):
    tracks = {"a": [LEFT], "b": [LEFT], "c": [RIGHT], "d": [MIDDLE]}
    script = (
        listed(("dog", 0, "first"), ("dog", 1, "second"), ("dog", 2, "third")),
        *(segment("a"), select(1), segment("b"), select(1), call("report_no_mask")),
        *('{"description": "anew 3"}', segment("c"), select(1)),
        *('{"description": "anew 2"}', segment("d"), select(1)),
    )
    method = agent(*script, tracks=tracks)
    (p,) = run(method, clip, "the dogs")
    assert same(p.track, LEFT, MIDDLE, RIGHT)
    assert [one["description"] for one in p.details["instances"]] == ["first", "anew 2", "anew 3"]
    told = [r[0].parts[-1] for r in method.backbone.requests if "other words" in str(r[0].parts[-1])]
    assert "gives no mask" in told[0]
    assert 'gives the same object as "first"' in told[1]
    (p,) = run(agent(*script[:6], tracks=tracks, again=0), clip, "the dogs")
    assert same(p.track, LEFT)
    (p,) = run(agent(*script[:9], tracks=tracks, bad_iou=1.0), clip, "the dogs")
    assert same(p.track, LEFT, RIGHT)


@pytest.mark.parametrize(
    ("text", "asked"), [("the LEFT dog", 1), ("one without a hat", 1), ("bright dogs", 0)]
)
def test_doubtful_words_are_checked_on_every_third_frame(clip, text, asked):
    def script(match):
        answer = json.dumps({"match": match})
        return listed(("dog", 0, "it")), segment("dog"), select(1), answer

    method = agent(*script(False))
    (p,) = run(method, clip, text)
    assert bool(asked) != any(p.track.area())
    checks = [r for r in method.backbone.requests if "red outline" in str(r[-1].parts[-1])]
    assert len(checks) == asked
    if asked:
        shown = checks[0][-1].parts[:-1]
        assert len(shown) == 2
        assert np.array_equal(shown[1], drawing.contour(clip.load([3])[0], LEFT.mask(3), width=3))
        (p,) = run(agent(*script(True)), clip, text)
        assert same(p.track, LEFT)
        (p,) = run(agent(*script(False)[:3], verify=False), clip, text)
        assert same(p.track, LEFT)


@pytest.mark.parametrize(
    "wrong",
    ['{"a": 1}', "[1]", "none", listed(("dog", 6, "it")), listed(("dog", -1, "it")),
     listed(*[("dog", 1, "it")] * 101), listed(("dog", None, "it")),
     listed(("", 1, "it")), listed(("dog", 1, 2)), listed(("dog", "1.5", "it"))],
)  # fmt: skip
def test_a_list_that_is_none_is_a_failure(clip, wrong):
    (p,) = run(agent(wrong), clip, "the dog")
    assert p.failure.kind == "ChatError"


def test_seconds_are_places_among_the_frames_shown():
    said = {"instance": "dog", "description": "it"}
    for second in (2, 2.0, "2", "2.0 second", " 2 seconds "):
        assert read_instance({**said, "best_frame": second}, [0, 2, 4])["frame"] == 4
    with pytest.raises(ValueError, match=r"0 … 2"):
        read_instance({**said, "best_frame": True}, [0, 2, 4])


def test_two_tracks_without_a_pixel_are_no_double():
    empty = MaskTrack.empty(SIZE, LENGTH)
    assert faults([{"track": empty, "description": "a"}, {"track": empty, "description": "b"}], 0.7) == []

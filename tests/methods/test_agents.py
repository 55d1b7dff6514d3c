"""Agents on planted candidates and scripted replies, where the right answer is known."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from refseg_bench.backbones.chat import ChatEndpoint, ChatError, ChatModel, Message, Reply
from refseg_bench.errors import ConfigError
from refseg_bench.methods.agents import drawing, read_boxes, read_json
from refseg_bench.methods.agents.agent_rvos import AgentRvos
from refseg_bench.methods.agents.evol_sam3 import EvolSam3
from refseg_bench.methods.agents.mllm_box import MllmBox
from refseg_bench.methods.agents.refer_agent import ReferAgent
from refseg_bench.methods.agents.sam3_agent import Sam3Agent
from refseg_bench.methods.phrase import Phrase
from refseg_bench.run.loop import predict_clip
from refseg_bench.run.store import runs_in
from refseg_bench.segmenters.base import Candidates, Instance, Prompt, Segmenter, SegmenterSession, middles
from refseg_bench.types import Clip, Expression, MaskTrack
from tests.backbones.test_chat import Server, spoken
from tests.fakes import FakeDataset
from tests.launch.runs import HANGS

SIZE, LENGTH = (24, 32), 6


@dataclass
class Scripted(ChatModel):
    """Answers by what it was asked: the first script whose words stand in the last question."""

    scripts: dict[str, list[str]] = field(default_factory=dict)
    asked: list[tuple[str, list[np.ndarray]]] = field(default_factory=list)
    finish: str = "stop"

    async def complete(self, messages: Sequence[Message]) -> Reply:
        parts = messages[-1].parts
        words = "".join(part for part in parts if isinstance(part, str))
        self.asked.append((words, [part for part in parts if not isinstance(part, str)]))
        for said, replies in self.scripts.items():
            if said in words:
                return Reply(replies.pop(0) if len(replies) > 1 else replies[0], self.finish, 5, 2, 0.0)
        raise ChatError(f"nothing is scripted for: {words}")


def square(place: int, frames: Sequence[int]) -> MaskTrack:
    masks = np.zeros((LENGTH, *SIZE), bool)
    for frame in frames:
        masks[frame, 2 : 2 + 6, 2 + 8 * place : 8 + 8 * place] = True
    return MaskTrack.from_masks(list(masks), SIZE)


@dataclass
class Planted(Segmenter):
    """Knows where every instance of a phrase is; tracks a box or a mask as an area that stays."""

    tracks: dict[str, list[MaskTrack]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    prompted: list[tuple[int, list[Prompt]]] = field(default_factory=list)
    looked_for: list[str] = field(default_factory=list)

    def open(self, clip: Clip) -> SegmenterSession:
        return PlantedSession(clip, self)


class PlantedSession(SegmenterSession):
    accepts = ("points", "box", "mask", "text")

    def __init__(self, clip: Clip, options: Planted) -> None:
        super().__init__(clip)
        self.options = options

    def find(self, phrase: str) -> list[Instance]:
        self.options.looked_for.append(phrase)
        return [Instance(track, 0.9) for track in self.options.tracks.get(phrase, [])]

    def _segment(self, frame, prompts, multimask):
        out = []
        for prompt in prompts:
            if prompt.text is None:
                masks, scores = [self._area(prompt)], [1.0]
            else:
                self.options.looked_for.append(prompt.text)
                masks = [track.mask(frame) for track in self.options.tracks.get(prompt.text, [])]
                scores = self.options.scores.get(prompt.text, [0.9] * len(masks))
            out.append(Candidates(np.array(masks, bool).reshape(-1, *self.clip.size), np.float32(scores)))
        return out

    def _propagate(self, frame, prompts, video, direction):
        self.options.prompted.append((frame, list(prompts)))
        masks = np.stack([self._area(prompt) for prompt in prompts])
        return ((index, masks) for index in video)

    def _area(self, prompt):
        if prompt.box is None:
            return prompt.mask
        mask = np.zeros(self.clip.size, bool)
        x0, y0, x1, y1 = (round(v * s) for v, s in zip(prompt.box, (*self.clip.size[::-1],) * 2, strict=True))
        mask[y0:y1, x0:x1] = True
        return mask


@pytest.fixture
def clip(tmp_path):
    return FakeDataset(root=tmp_path / "data", n_frames=LENGTH).clips()[0]


def run(method, clip, *texts, root: Path | None = None):
    """Predictions by text."""
    method.backbone.cache_root = root
    expressions = [Expression(str(number), text) for number, text in enumerate(texts)]
    found = {p.expression: p for p, _ in predict_clip(method, clip, expressions)}
    return [found[e.id] for e in expressions]


def same(track: MaskTrack, *others: MaskTrack) -> bool:
    want = MaskTrack.union(list(others), SIZE, LENGTH)
    return all(np.array_equal(a, b) for a, b in zip(track.masks(), want.masks(), strict=True))


def concept(kind: str, *nouns: str | None) -> str:
    return "```json\n" + json.dumps({"type": kind, "nouns": nouns, "reason": "so"}) + "\n```"


def verdict(true=(), false=(), unknown=()) -> str:
    return f"I see. <answer>{json.dumps({'true': true, 'false': false, 'unknown': unknown})}</answer>"


LEFT, MIDDLE, RIGHT = square(0, range(6)), square(1, range(3)), square(2, range(2, 6))
DOGS = {"dog": [LEFT, MIDDLE, RIGHT]}


def agent(scripts, tracks=DOGS, **options):
    return AgentRvos(Scripted(model="scripted", scripts=scripts), Planted(tracks), **options)


def test_an_explicit_query_is_named_found_and_sorted(clip):
    method = agent(
        {
            "Name the kind": [concept("EXPLICIT", "dog", "animal")],
            "colour or texture": ['{"appearance": false}'],
            "Sort all": [verdict(true=[1], false=[2], unknown=[3]), verdict(true=[3])],
        }
    )
    (p,) = run(method, clip, "the dogs that stay")
    assert same(p.track, LEFT, RIGHT)
    assert p.no_target is False
    assert p.details["concept"] == "dog"
    assert p.details["verdict"] == {"1": "true", "2": "false", "3": "true"}
    assert p.details["cost"]["calls"] == 4
    assert [turn["step"] for turn in p.details["conversation"]] == [
        "concept", "appearance needed", "round 1", "round 2",
    ]  # fmt: skip
    (first, pictures), (second, later) = method.backbone.asked[2:]
    assert "0, 1, 2, 3, 4, 5" in first
    assert "[1, 2, 3]" in first
    # The next round shows the unknown one alone, in the frames where it is in view.
    assert "2, 3, 4, 5" in second
    assert "[3]" in second
    assert (len(pictures), len(later)) == (6, 4)
    assert np.array_equal(
        pictures[0], drawing.overlay(clip.load([0])[0], [LEFT.mask(0), MIDDLE.mask(0)], [1, 2])
    )


def test_where_an_event_loop_is_at_work_already(clip):
    """In a notebook: `asyncio.run` can't be called there."""
    boxes = {"first": ["[[0, 0, 500, 500]]"], "second": ["somewhere"]}
    method = MllmBox(Scripted(model="scripted", scripts=boxes), Planted(), tries=1)

    async def cell():
        return run(method, clip, "the first", "the second")

    known = set(threading.enumerate())
    there, failed = asyncio.run(cell())
    assert there.details["boxes"] == {"3": [(0.0, 0.0, 0.5, 0.5)]}
    assert "could not be read" in failed.failure.message
    (here, _) = run(method, clip, "the first", "the second")
    assert same(there.track, here.track)
    assert set(threading.enumerate()) <= known


def test_the_name_with_more_detections_is_kept_and_the_core_noun_on_ties(clip):
    scripts = {"Name the kind": [concept("EXPLICIT", "dog", "animal")], "Sort all": [verdict(true=[1])]}
    method = agent(scripts, {"dog": [MIDDLE], "animal": [LEFT]}, appearance=False)
    assert same(run(method, clip, "it")[0].track, LEFT)
    method = agent(scripts, {"dog": [square(0, range(3))], "animal": [MIDDLE]}, appearance=False)
    assert same(run(method, clip, "it")[0].track, square(0, range(3)))
    assert method.segmenter.looked_for == ["dog", "animal"]


def test_reasoning_looks_at_the_clip_and_broadens_what_failed(clip):
    method = agent(
        {
            "Name the kind": [concept("REASONING", "thing")],
            "attempt 1": [concept("REASONING", "poodle", "hound")],
            "attempt 2": [concept("REASONING", "dog")],
            "Sort all": [verdict(true=[2], false=[1, 3])],
        },
        appearance=False,
        n_frames=4,
    )
    (p,) = run(method, clip, "what barks?")
    assert same(p.track, MIDDLE)
    assert method.segmenter.looked_for == ["poodle", "hound", "dog"]
    tries = [(words, pictures) for words, pictures in method.backbone.asked if "attempt" in words]
    assert "found nothing for: poodle, hound" in tries[1][0]
    assert "found nothing" not in tries[0][0]
    assert [len(pictures) for _, pictures in tries] == [4, 4]


def test_without_a_second_attempt_nothing_found_is_nothing_meant(clip):
    scripts = {"Name the kind": [concept("EXPLICIT", "cat", None)], "attempt": [concept("EXPLICIT", "dog")]}
    (p,) = run(agent(scripts, concepts=1), clip, "the cat")
    assert p.no_target is True
    assert not any(p.track.area())
    assert p.details["cost"]["calls"] == 1
    (p,) = run(agent({**scripts, "Sort all": [verdict(true=[1, 2, 3])]}, appearance=False), clip, "the cat")
    assert same(p.track, LEFT, MIDDLE, RIGHT)


def test_appearance_is_described_where_it_is_needed(clip):
    method = agent(
        {
            "Name the kind": [concept("EXPLICIT", "dog")],
            "colour or texture to": ['{"appearance": true}'],
            "red box": ['{"phrases": ["brown", "curly"]}', '{"phrases": ["white"]}'],
            "Sort all": [verdict(true=[1], false=[2, 3])],
        }
    )
    (p,) = run(method, clip, "the brown dog")
    assert same(p.track, LEFT)
    question = next(words for words, _ in method.backbone.asked if "Sort all" in words)
    assert "Candidate 1 looks: brown, curly." in question
    assert "Candidate 3 looks: white." in question
    panels = [pictures for words, pictures in method.backbone.asked if "red box" in words]
    assert [len(p) for p in panels] == [1, 1, 1]
    assert not any("red box" in words for words, _ in agent_without_appearance(clip).backbone.asked)


def agent_without_appearance(clip):
    scripts = {"Name the kind": [concept("EXPLICIT", "dog")], "Sort all": [verdict(true=[1], false=[2, 3])]}
    method = agent(scripts, appearance=False)
    run(method, clip, "the brown dog")
    return method


def test_one_round_leaves_the_unknown_out_without_calling_it_absent(clip):
    scripts = {
        "Name the kind": [concept("EXPLICIT", "dog")],
        "Sort all": [verdict(false=[1, 2], unknown=[3])],
    }
    (p,) = run(agent(scripts, rounds=1, appearance=False), clip, "it")
    assert not any(p.track.area())
    assert p.no_target is False
    scripts["Sort all"] = [verdict(false=[1, 2, 3])]
    (p,) = run(agent(scripts, rounds=1, appearance=False), clip, "it")
    assert p.no_target is True


def test_without_temporal_pruning_every_round_sees_the_whole_clip(clip):
    scripts = {
        "Name the kind": [concept("EXPLICIT", "dog")],
        "Sort all": [verdict(true=[1], false=[2], unknown=[3]), verdict(true=[3])],
    }
    method = agent(scripts, temporal=False, appearance=False)
    run(method, clip, "it")
    assert [len(pictures) for words, pictures in method.backbone.asked if "Sort all" in words] == [6, 6]


def test_the_raw_sentence_asks_nobody(clip):
    method = agent({}, {"the red dog": [LEFT, RIGHT]}, concept="sentence")
    (p,) = run(method, clip, "the red dog")
    assert same(p.track, LEFT, RIGHT)
    assert p.details["cost"]["calls"] == 0
    plain = Phrase(Planted({"the red dog": [LEFT, RIGHT]}))
    found = [g for g in plain.predict(clip, [Expression("0", "the red dog"), Expression("1", "a cat")])]
    assert same(found[0].track, LEFT, RIGHT)
    assert found[1].no_target is True


@pytest.mark.parametrize(
    "wrong",
    [
        verdict(true=[1]),
        verdict(true=[1, 2, 3, 4]),
        verdict(true=[1, 2], false=[2, 3]),
        verdict(true=True, false=[2, 3]),
        "none of them",
        "<answer>{",
    ],
)
def test_a_verdict_that_leaves_candidates_out_is_asked_again(clip, wrong):
    scripts = {"Name the kind": [concept("EXPLICIT", "dog")], "Sort all": [wrong]}
    scripts["That can't be used"] = [verdict(true=[2], false=[1, 3])]
    (p,) = run(agent(scripts, appearance=False), clip, "it")
    assert same(p.track, MIDDLE)


@pytest.mark.parametrize("wrong", [concept("?", "dog"), '{"nouns": ["dog"]}', concept("EXPLICIT", "null")])
def test_a_concept_that_is_none_is_asked_again(clip, wrong):
    scripts = {"Name the kind": [wrong], "Sort all": [verdict(true=[2], false=[1, 3])]}
    scripts["That can't be used"] = [concept("explicit", "dog", "null")]
    method = agent(scripts, appearance=False)
    (p,) = run(method, clip, "it")
    assert same(p.track, MIDDLE)
    assert method.segmenter.looked_for == ["dog"]


def test_one_conversation_that_fails_takes_no_other_with_it(clip, tmp_path):
    scripts = {"Sort all": [verdict(true=[1], false=[2, 3])], "the dog": [concept("EXPLICIT", "dog")]}
    scripts |= {"the cat": ["meow"], "That can't be used": ["meow"]}
    method = agent(scripts, appearance=False)
    first, bad, last = run(method, clip, "the dog", "the cat", "the dog", root=tmp_path)
    assert first.ok
    assert last.ok
    assert bad.failure.kind == "ChatError"
    assert "could not be read" in bad.failure.message
    assert [turn["reply"] for turn in bad.details["conversation"]] == ["meow"] * 3
    asked = len(method.backbone.asked)
    run(method, clip, "the dog", "the cat", "the dog", root=tmp_path)
    assert len(method.backbone.asked) == asked


def test_a_server_that_is_gone_is_told_once(clip, caplog):
    model = ChatEndpoint(model="tiny", url="http://127.0.0.1:9/v1", retries=0)
    expressions = [Expression(str(number), f"dog {number}") for number in range(4)]
    with pytest.raises(ConfigError, match="No answer"):
        list(predict_clip(MllmBox(model, Planted()), clip, expressions))
    assert caplog.records == []


def test_expressions_of_a_clip_share_what_was_looked_for(clip):
    scripts = {"Name the kind": [concept("EXPLICIT", "dog")], "Sort all": [verdict(true=[1], false=[2, 3])]}
    method = agent(scripts, appearance=False)
    run(method, clip, "one dog", "another dog")
    assert method.segmenter.looked_for == ["dog"]


# ── boxes ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("boxes", "reply"),
    [
        # The square at x 8 … 16, y 6 … 12 of 32 x 24, as the three families write it.
        ("pixels", '```json\n[{"bbox_2d": [28, 21, 56, 42], "label": "dog"}]\n```'),
        ("thousandths", '```json\n[{"bbox_2d": [250, 250, 500, 500], "label": "dog"}]\n```'),
        ("thousandths", "dog<box>[[250, 250, 500, 500]]</box>"),
    ],
)
def test_boxes_are_read_in_the_familys_own_convention(clip, boxes, reply):
    # Pictures are sent with sides of multiples of 28: 112 x 84 here.
    model = Scripted(model="m", scripts={"": [reply]}, boxes=boxes, side_multiple=28, max_pixels=28 * 28 * 12)
    clip = Clip(clip.id, clip.frame_paths, clip.frame_names, clip.size)
    grown = MllmBox(model, Planted())
    model.fit = lambda image: np.zeros((84, 112, 3), np.uint8)
    (p,) = run(grown, clip, "the dog")
    want = np.zeros(SIZE, bool)
    want[6:12, 8:16] = True
    assert all(np.array_equal(mask, want) for mask in p.track.masks())


def test_every_key_frame_is_asked_and_an_empty_list_is_nothing_meant(clip):
    model = Scripted(model="m", scripts={"": ["[[0, 0, 500, 500]]", "[]", "[[500, 500, 1000, 1000]]"]})
    (p,) = run(MllmBox(model, Planted(), n_frames=3), clip, "the dog {not a field}")
    assert p.details["boxes"] == {"1": [(0, 0, 0.5, 0.5)], "3": [], "5": [(0.5, 0.5, 1, 1)]}
    assert p.track.area() == [2 * 12 * 16] * LENGTH
    assert "the dog {not a field}" in model.asked[0][0]
    (p,) = run(MllmBox(Scripted(model="m", scripts={"": ["None."]}), Planted()), clip, "the dog")
    assert p.no_target is True


def test_a_prompt_without_a_place_for_the_expression_is_refused():
    with pytest.raises(ConfigError, match="no place for the expression"):
        MllmBox(Scripted(), Planted(), prompt="Locate it.")


@pytest.mark.parametrize(
    "words",
    [
        "a dog",
        "[1, 2, 3]",
        "[[10, 10, 5, 20]]",
        "[[NaN, 0, 5, 5]]",
        "[[1e400, 0, 5, 5]]",
        "[[true, 0, 5, 5]]",
        "{}{",
        "[[0.1, 0.2, 0.3, 1]]",
        "[[100, 40, 1280, 90]]",
        "[[-300, 4, 80, 90]]",
        "[[0, 0, 1, 1]]",
    ],
)
@pytest.mark.parametrize("boxes", ["thousandths", "pixels"])
def test_what_is_no_box_is_told(words, boxes):
    with pytest.raises(ValueError, match=r"box|deep|are shares of the picture, not|outside of the picture"):
        assert read_boxes(words, ChatEndpoint(boxes=boxes), (100, 100)) is None


def test_hostile_replies_take_no_time():
    began = time.process_time()
    hostile = ("[" * 400_000, "{" * 400_000, "```" * 100_000, "<answer>" * 60_000, '["' * 200_000)
    unending = ("```" + " " * 400_000, "<a>[" * 100_000, "<a>[" + " " * 400_000, "<a>" * 60_000 + "[</b>" * 9)
    for words in (*hostile, *unending):
        with pytest.raises(ValueError, match="no JSON"):
            read_json(words)
    assert time.process_time() - began < 20


def test_json_is_taken_from_the_last_fence_or_tag_that_is_closed():
    assert read_json('<a>[1]</a> then <b> {"c": 3}</b> and <b>[4]') == {"c": 3}
    assert read_json("```[1]``` and ```json\n[2]\n``` and ``` [3") == [2]
    assert read_json("<a>[1]</a> ```[2]```") == [1]
    assert read_json("<think>[</think> [5]") == [5]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(MllmBox, "n_frames"), (MllmBox, "tries"), (AgentRvos, "rounds"), (AgentRvos, "n_frames"),
     (Sam3Agent, "generations"), (Sam3Agent, "images"), (EvolSam3, "tries"), (ReferAgent, "frame_rounds"),
     (ReferAgent, "parts"), (ReferAgent, "best")],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1])
def test_no_frames_and_no_tries_are_refused(kind, name, value):
    # Each would fail every sample, or call every target absent.
    with pytest.raises(ConfigError, match=f"method.{name}"):
        kind(Scripted(), Planted(), **{name: value})


def test_places_are_spread_evenly():
    assert middles(160, 16) == list(range(5, 160, 10))
    assert middles(5, 16) == [0, 1, 2, 3, 4]


def test_drawing_is_pure_and_marks_only_what_it_should():
    frame = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[10:50, 30:60] = True
    before = frame.copy()
    shown = drawing.overlay(frame, [mask, None, np.zeros_like(mask)], [3, 4, 5], opacity=0.5)
    assert np.array_equal(frame, before)
    assert np.array_equal(shown, drawing.overlay(frame, [mask], [3], opacity=0.5))
    assert not (shown != frame).any(axis=2)[~mask].any()
    assert (shown != frame).any(axis=2)[mask].all()
    assert drawing.beside([frame, frame[:30]], height=30).shape == (30, 45 + 8 + 90, 3)
    assert drawing.crop(frame, drawing.extent(mask), margin=1).shape == (60, 90, 3)
    assert np.array_equal(drawing.crop(frame, drawing.extent(mask)), frame[10:50, 30:60])
    assert not np.array_equal(drawing.label("6"), drawing.label("9"))


# ── a run that is killed inside a conversation ───────────────────────────────


@pytest.mark.slow
def test_a_killed_run_asks_nothing_twice_and_ends_the_same(tmp_path):
    enough, killed_it = threading.Event(), threading.Event()
    count = 0

    def reply(body):
        nonlocal count
        count += 1
        if count >= 5:
            enough.set()
            killed_it.wait()
        side = 100 + len(json.dumps(body["messages"])) % 700
        return 200, spoken(f"[[50, 50, {side}, {side}]]")

    server = Server(reply)
    words = [
        *(sys.executable, "-m", "refseg_bench", "run", "method=mllm_box", "backbone=chat"),
        *("backbone.model=tiny", f"backbone.url={server.model(tmp_path).url}", "backbone.batch_size=2"),
        *("segmenter=grabcut", "method.n_frames=3", "baselines=[]"),
        *("limit.clips=1", "limit.expressions=4", "--no-html"),
    ]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet.pop("REFSEG_SEARCHPATH", None)

    def start(folder: str) -> subprocess.Popen[bytes]:
        paths = [f"paths.runs={tmp_path / folder / 'runs'}", f"paths.cache={tmp_path / folder / 'cache'}"]
        return subprocess.Popen(
            [*words, *paths], cwd=tmp_path, env=quiet, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def tracks(folder: str) -> dict[str, object]:
        (store,) = runs_in(tmp_path / folder / "runs")
        return {p.sample: (p.track, p.details["boxes"]) for p in store.some(store.index().values())}

    killed = start("a")
    while not enough.wait(0.2):
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    killed_it.set()
    before = [json.dumps(body, sort_keys=True) for body, _ in server.asked]
    assert start("a").wait(HANGS) == 0
    whole = [json.dumps(body, sort_keys=True) for body, _ in server.asked]
    # At most the two that were on their way when it was killed are asked again.
    twice = len(whole) - len(set(whole))
    assert twice <= 2
    assert len(set(whole)) == 12
    assert len(before) < 12
    assert start("b").wait(HANGS) == 0
    assert tracks("a") == tracks("b")
    server.close()

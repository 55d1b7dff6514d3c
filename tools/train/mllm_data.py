"""What ``tiny_mllm`` is asked while it learns: clips and frames with DecAF's prompts about them, packed.

Several questions share one visual prefix: each attends to the prefix and to itself, at the positions it would
have alone, which is exactly what separate sequences would compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.shapes_world import (
    COLOURS,
    GROUNDS,
    KINDS,
    NOTHING,
    TEXTURES,
    Scene,
    Utterance,
    describe,
)
from tools.train.common import SEEDS_PER_RUN, train_seeds
from tools.train.feed import Batch
from tools.train.mllm_model import BACKGROUND, CHOICE, NAMES, OBJECT, SYSTEM
from tools.train.scenes import Shot, Shots

FRAMES = 16  # of a clip, as DecAF samples them
PER_SEQUENCE = 8  # object questions per visual prefix; one background question comes on top
MIX = {  # chance of each kind of expression, for clips and for single frames
    "video": {
        "appearance": 0.24,
        "absent": 0.16,
        "motion": 0.34,
        "multi": 0.1,
        "relation": 0.06,
        "reasoning": 0.1,
    },
    "image": {
        "appearance": 0.42,
        "absent": 0.24,
        "motion": 0.12,
        "multi": 0.1,
        "relation": 0.08,
        "reasoning": 0.04,
    },
}
_COLOURS, _TEXTURES, _GROUNDS = list(COLOURS), list(TEXTURES), list(GROUNDS)
ASKED = (*KINDS, "background", "choice")  # kinds of questions
#: Frames of a sequence by its form, every so many of the drawn ones: a pair of neighbours, one frame at twice
#: the grid, a clip of every second frame, the whole clip. ``look``: pairs without questions.
FORMS = {"look": (2, 1), "pair": (2, 1), "image": (1, 1), "clip": (8, 2), "long": (16, 1)}


@dataclass
class Question:
    """A prompt about a visual prefix.

    Attributes:
        text: the filled prompt.
        answer: the word.
        cover_V: share of each visual token that lies on the target, or ``None`` where nothing is asked of
            attention.
        weight: of the answer's loss.
        kind: of the expression, or ``background``.
        utterance: what was asked about.
    """

    text: str
    answer: str
    cover_V: NDArray[np.float32] | None
    weight: float = 1.0
    kind: str = ""
    utterance: Utterance | None = None


@dataclass
class Example:
    """A visual prefix with its questions.

    Attributes:
        frames: uint8 RGB ``(T, 3, h, w)``.
        video: whether the frames go in as a clip.
        labels_CV: per visual token colour, texture, motion, ground; -100 where mixed.
        questions: about it.
    """

    frames: NDArray[np.uint8]
    video: bool
    labels_CV: NDArray[np.int64]
    questions: list[Question] = field(default_factory=list)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Visual tokens in time, rows, columns."""
        return (len(self.frames) // 2, 6, 8) if self.video else (1, 12, 16)


def tokens(shot: Shot, *, video: bool) -> NDArray[np.float32]:
    """Share of each visual token that shows the ground or an object ``(S, V)``, in token order."""
    shares = shot.shares_TSRC.transpose(1, 0, 2, 3)
    if video:
        s, t, r, c = shares.shape
        shares = shares.reshape(s, t // 2, 2, r // 2, 2, c // 2, 2).mean((2, 4, 6))
    return shares.reshape(len(shares), -1)


def token_labels(shot: Shot, shares: NDArray[np.float32], *, video: bool) -> NDArray[np.int64]:
    """What each visual token shows: colour, texture, motion (between its two frames), ground."""
    scene, steps = shot.scene, shot.footage.indices
    labels = np.full((4, shares.shape[1]), -100, np.int64)
    free = shares[0] > 0.95
    labels[:3, free] = [[len(_COLOURS)], [len(_TEXTURES)], [5]]
    labels[3, free] = _GROUNDS.index(scene.ground)
    for k, thing in enumerate(scene.things):
        on = shares[k + 1] > 0.6
        labels[0, on] = _COLOURS.index(thing.colour)
        labels[1, on] = _TEXTURES.index(thing.texture)
        if video:
            moved_T2 = thing.centre_T2[list(steps[1::2])] - thing.centre_T2[list(steps[::2])]
            dy, dx = moved_T2.T
            way = np.select([np.abs(moved_T2).max(1) < 1, dx < -1, dx > 1, dy < -1], [0, 1, 2, 3], default=4)
            labels[2, on] = way.repeat(len(on) // len(way))[on]
    return labels


def pick(
    rng: np.random.Generator, utterances: list[Utterance], mix: dict[str, float], count: int
) -> list[Utterance]:
    """Expressions by kind, at the chances of ``mix`` as far as the scene has them."""
    by_kind: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_kind.setdefault(utterance.kind, []).append(utterance)
    chosen: list[Utterance] = []
    while len(chosen) < count and by_kind:
        kinds = list(by_kind)
        chances = np.array([mix[k] for k in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=chances / chances.sum()))]
        chosen.append(by_kind[kind].pop())
        if not by_kind[kind]:
            del by_kind[kind]
    return chosen


def version(rng: np.random.Generator, texts: tuple[str, ...]) -> str:
    """The default prompt, or now and then one of its variants."""
    return texts[0] if rng.random() < 0.85 else texts[int(rng.integers(1, len(texts)))]


def object_question(
    rng: np.random.Generator, utterance: Utterance, cover_V: NDArray[np.float32], *, image: bool
) -> Question:
    """The object prompt; what does not show is ``nothing``."""
    seen = cover_V.max(initial=0.0) > 0.2
    answer = utterance.word if seen else NOTHING
    # One frame does not tell who moves: such a question stays in, as DecAF asks it, but hardly counts.
    weight = 0.3 if image and utterance.dynamic else 1.0
    return Question(
        version(rng, OBJECT).format(sent=utterance.text + "."),
        answer,
        cover_V,
        weight,
        utterance.kind,
        utterance,
    )


def background_question(
    rng: np.random.Generator, scene: Scene, utterances: list[Utterance], free_V: NDArray[np.float32]
) -> Question:
    """The background prompt, less an object of the scene; attention is asked of everything but it."""
    utterance = utterances[int(rng.integers(len(utterances)))]
    filled = version(rng, BACKGROUND).format(obj_name=utterance.word, sent=utterance.text + ".")
    return Question(filled, scene.ground, free_V, 0.5, "background")


def choice_question(rng: np.random.Generator, utterance: Utterance) -> Question:
    """The choice prompt over noisy candidates.

    The right answer is the candidate the expression's words agree with; if they leave it open, the most
    frequent one.
    """
    words = set(utterance.text.split())
    colour = next((c for c in COLOURS if c in words), None)
    texture = next((t for t in TEXTURES if t in words), None)
    right = utterance.word if utterance.word != NOTHING or rng.random() < 0.5 else str(rng.choice(NAMES))
    count = int(rng.integers(5, 18))
    pool_ = (
        [right] * int(rng.integers(2, 6))
        + [NOTHING] * int(rng.integers(0, 4))
        + [str(n) for n in rng.choice(NAMES, 3)]
    )
    candidates = [str(rng.choice(pool_)) for _ in range(count)]

    def agrees(candidate: str) -> bool:
        parts = candidate.split("-")
        return (
            len(parts) == 2
            and (colour is None or parts[0] == colour)
            and (texture is None or parts[1] == texture)
        )

    good = (
        [c for c in candidates if (colour or texture) and agrees(c)]
        or [c for c in candidates if c != NOTHING]
        or candidates
    )
    counts = {c: good.count(c) for c in good}
    best = max(counts, key=lambda c: (counts[c], -good.index(c)))
    filled = version(rng, CHOICE).format(ref_query=utterance.text + ".", obj_cls_list=",".join(candidates))
    return Question(filled, best, None, 1.0, "choice")


def example(rng: np.random.Generator, shot: Shot, form: str) -> tuple[Example, Question | None]:
    """A visual prefix with its questions, and one choice question about the same scene.

    What is asked is judged on the very frames that are shown.
    """
    count, step = FORMS[form]
    first = int(rng.integers(len(shot.footage.indices) - (count - 1) * step))
    shot = shot.rows(slice(first, first + (count - 1) * step + 1, step))
    video = form != "image"
    frames = shot.small_TCHW if video else shot.footage.frames_THWC.transpose(0, 3, 1, 2)
    shares = tokens(shot, video=video)
    out = Example(frames, video, token_labels(shot, shares, video=video))
    if form == "look":
        return out, None
    utterances = describe(shot.scene, shot.footage, int(rng.integers(1000)))
    for utterance in pick(rng, utterances, MIX["video" if video else "image"], PER_SEQUENCE):
        cover = shares[[i + 1 for i in utterance.targets]].sum(0)
        out.questions.append(object_question(rng, utterance, cover, image=not video))
    while len(out.questions) < PER_SEQUENCE:
        out.questions.append(out.questions[int(rng.integers(len(out.questions)))])
    out.questions.append(background_question(rng, shot.scene, utterances, shares[0]))
    return out, choice_question(rng, utterances[int(rng.integers(len(utterances)))])


class Packer:
    """Turns examples into token ids, positions and masks.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        start, end = "<|im_start|>", "<|im_end|>"
        self.head = tokenizer(f"{start}system\n{SYSTEM}{end}\n{start}user\n<|vision_start|>").input_ids
        self.text_head = tokenizer(f"{start}system\n{SYSTEM}{end}\n{start}user\n").input_ids
        self.tail = tokenizer("<|vision_end|>").input_ids
        self.turn = f"{end}\n{start}assistant\n"
        self.end = tokenizer(end).input_ids
        self.pad = tokenizer.pad_token_id
        self.words: dict[str, list[int]] = {}
        self.pads = {
            True: tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            False: tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        }

    def suffix(self, question: Question, *, answer: bool = True) -> tuple[list[int], int]:
        """Ids of prompt, assistant turn and answer; and the prompt's length."""
        prompt = self.tokenizer(question.text + self.turn).input_ids
        return prompt + (self.tokenizer(question.answer).input_ids + self.end if answer else []), len(prompt)

    def pack(self, batch: list[Example], *, answer: bool = True) -> Batch:
        """Examples of equal visual length, one row each; questions follow the prefix one by one."""
        t, h, w = batch[0].grid
        visual, n = t * h * w, len(self.head)
        place = np.stack([axis.ravel() for axis in np.indices((t, h, w))]) + n
        after = n + max(t, h, w)
        start = np.arange(n)[None].repeat(3, 0)
        position = np.concatenate([start, place, np.full((3, 1), after)], 1)
        prefix = [*self.head, *[self.pads[batch[0].video]] * visual, *self.tail]
        packed = self._join([self._row(prefix, position, after + 1, e.questions, answer) for e in batch])
        none = np.zeros(visual, np.float32)
        covers = [[none if q.cover_V is None else q.cover_V for q in e.questions] for e in batch]
        asked = [[q.weight * (q.kind != "background") for q in e.questions] for e in batch]
        return packed | {
            "cover_BKV": np.array(covers, np.float16),
            "asked_BK": np.array(asked, np.float32),
            "visual": slice(n, n + visual),
            "frames_BTCHW": np.stack([e.frames for e in batch]),
            "labels_CN": np.concatenate([e.labels_CV for e in batch], 1),
            "grid": (t, h, w),
        }

    def look(self, batch: list[Example]) -> Batch:
        """Examples without questions."""
        return {
            "frames_BTCHW": np.stack([e.frames for e in batch]),
            "labels_CN": np.concatenate([e.labels_CV for e in batch], 1),
            "grid": batch[0].grid,
        }

    def pack_text(self, questions: list[Question]) -> Batch:
        """Questions without a picture, one row each."""
        n = len(self.text_head)
        start = np.arange(n)[None].repeat(3, 0)
        return self._join([self._row(self.text_head, start, n, [q], True) for q in questions])

    def _row(
        self,
        prefix: list[int],
        position: NDArray[np.int64],
        start: int,
        questions: list[Question],
        answer: bool,
    ) -> dict[str, Any]:
        ids, segment, positions, last = list(prefix), [0] * len(prefix), [position], []
        answers: list[tuple[int, int, float]] = []  # where it is foretold, token, weight
        first = []  # of each question's answer
        prompts = self.tokenizer([q.text + self.turn for q in questions]).input_ids
        for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True), 1):
            said = self._said(question.answer) if answer else []
            last.append(len(ids) + len(prompt) - 1)
            first.append(len(answers))
            answers += [(last[-1] + k, token, question.weight) for k, token in enumerate(said)]
            count = len(prompt) + len(said)
            ids += prompt + said
            segment += [number] * count
            positions.append((np.arange(count) + start)[None].repeat(3, 0))
        return {
            "ids": ids,
            "segment": segment,
            "position": np.concatenate(positions, 1),
            "last": last,
            "answers": answers,
            "first": first,
            "kinds": [ASKED.index(q.kind) if q.kind else 0 for q in questions],
        }

    def _said(self, word: str) -> list[int]:
        if word not in self.words:
            self.words[word] = self.tokenizer(word).input_ids + self.end
        return self.words[word]

    def _join(self, rows: list[dict[str, Any]]) -> Batch:
        longest = -(-max(len(r["ids"]) for r in rows) // 16) * 16  # what the fused kernel likes

        def fill(name: str, value: int) -> NDArray[np.int64]:
            return np.array([r[name] + [value] * (longest - len(r[name])) for r in rows])

        before = np.cumsum([0, *(len(r["answers"]) for r in rows)])
        answers = [
            (row * longest + where, token, weight)
            for row, r in enumerate(rows)
            for where, token, weight in r["answers"]
        ]
        where, token, weight = zip(*answers, strict=True) if answers else ((), (), ())
        return {
            "ids_BL": fill("ids", self.pad),
            "segment_BL": fill("segment", -1),
            "positions_3BL": np.stack(
                [np.pad(r["position"], ((0, 0), (0, longest - r["position"].shape[1]))) for r in rows], 1
            ),
            "last_BK": np.array([r["last"] for r in rows]),
            "answer_M": np.array(where, np.int64),
            "token_M": np.array(token, np.int64),
            "weight_M": np.array(weight, np.float32),
            "first_BK": np.array([[n + f for f in r["first"]] for n, r in zip(before, rows, strict=False)]),
            "kinds_BK": np.array([r["kinds"] for r in rows]),
        }


STAGES = (  # until this share of the training: forms of the steps, one after the other
    (0.15, ("look",)),
    (0.3, ("pair", "image", "pair", "choice")),
    (0.5, ("clip", "image", "pair", "long", "clip", "image", "choice", "long")),
    (2.0, ("long", "image", "clip", "long", "image", "long", "choice", "long")),
)
VISION = STAGES[0][0]
SIZES = {"look": 2.0, "pair": 1.5, "image": 1.0, "clip": 1.0, "long": 0.75, "choice": 1.0}  # of a batch


class Maker:
    """Makes the batch of a number.

    Args:
        tokenizer: the model's.
        seed: of the run.
        batch: examples of a step, more or fewer by form (``SIZES``).
        uses: how often a drawn clip is shown on average.
    """

    def __init__(self, tokenizer: Any, seed: int, batch: int, uses: float) -> None:
        self.packer, self.seed, self.batch = Packer(tokenizer), seed, batch
        self.shots = Shots(FRAMES, uses)
        self.choices: list[Question] = []

    def __call__(self, number: int, share: float) -> Batch:
        """The batch of a number, of the form whose turn it is at this share of the training."""
        forms = next(forms for until, forms in STAGES if share < until)
        form = forms[number % len(forms)]
        size = max(1, int(self.batch * SIZES[form]))
        rng = np.random.default_rng([train_seeds(self.seed), number, 98])
        drawn = 0

        def next_seed() -> int:
            nonlocal drawn
            drawn += 1
            return train_seeds(self.seed) + (number * size + drawn - 1) % SEEDS_PER_RUN

        if form == "choice":
            while len(self.choices) < size:
                self._examples(rng, 1, "image", next_seed)
            asked, self.choices = self.choices[-size:], []
            return {"form": form, "size": size} | self.packer.pack_text(asked)
        examples = self._examples(rng, size, form, next_seed)
        packed = self.packer.look(examples) if form == "look" else self.packer.pack(examples)
        return {"form": form, "size": size} | packed

    def _examples(
        self, rng: np.random.Generator, size: int, form: str, next_seed: Callable[[], int]
    ) -> list[Example]:
        out = []
        for _ in range(size):
            one, choice = example(rng, self.shots.draw(rng, next_seed), form)
            out.append(one)
            if choice is not None:
                self.choices = [*self.choices[-4 * self.batch :], choice]
        return out

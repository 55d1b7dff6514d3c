"""EVOL-SAM3 (arXiv 2512.24702): phrases for SAM 3 compete in duels, and the winner against a box.

A chat model names the target in a few ways; SAM 3 gives each phrase a mask; a gate drops the poor, duels
before the chat model rate the rest, the best breed new phrases. At the end the chat model's own box stands
against the winner. Prompts are ours, and so is how ratings move, who duels whom and how phrases are bred, of
which the source says nothing; such choices are marked "not stated". The method is one for images: of a clip
it answers the middle frame, and the mask is tracked both ways (not stated).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np

from refseg_bench.backbones.chat import Conversation, Message, Uint8HWC
from refseg_bench.methods.agents import (
    ChatMethod,
    box_iou,
    read_boxes,
    read_choice,
    read_number,
    read_object,
    read_text,
    read_texts,
    texts,
    track_mask,
    user,
)
from refseg_bench.methods.agents.drawing import extent, overlay
from refseg_bench.segmenters.base import Prompt, SegmenterSession, middles
from refseg_bench.segmenters.classic import mask_iou
from refseg_bench.types import BoolHW, Expression, Grounding

T = TypeVar("T")

TEXT = texts(__file__)


@dataclass(eq=False)
class _Candidate:
    """A phrase with its mask and rating."""

    phrase: str
    mask_HW: BoolHW
    score: float
    rating: float = 0.0


@dataclass
class EvolSam3(ChatMethod):
    """Phrases that evolve, and a box."""

    #: ``reason`` (ReasonSeg) or ``refcoco``: subject first, superlatives for comparatives, the expression
    #: itself joins the phrases, boxes count only where the mask fills them, and the box wins where the last
    #: verdict is inconsistent.
    style: Literal["reason", "refcoco"] = "reason"
    population: int = 4  #: most phrases at a time
    generations: int = 2  #: rounds of duels
    duels: int = 2  #: most in a round, by rank: first against second, third against fourth … (not stated)
    refinements: int = 3  #: most new attempts at a target phrase that the gate lets through
    step: float = 16.0  #: what a duel moves both ratings, which begin at 0 (not stated)
    least_pixels: int = 50  #: smaller instances don't count
    fail_below: float = 0.35  #: a mask of a lower score is dropped
    #: One of a higher score is kept; between both the chat model must say 1.0. (The source also names 0.85 as
    #: sure, which decides nothing beside this.)
    pass_above: float = 0.679
    settled_spread: float = 3.0  #: no more duels where ratings differ by at most this …
    settled_iou: float = 0.95  #: … and the best three masks overlap at least so much on average
    same_iou: float = 0.85  #: no duel between masks that overlap more
    #: ``refcoco``: what a mask's own box must have in common with the box that was asked for.
    box_iou: float = 0.7
    opacity: float = 0.4  #: of the colours (not stated)

    async def ground(
        self, talk: Conversation, session: SegmenterSession, expression: Expression
    ) -> Grounding:
        """Begin, evolve, and settle with the box."""
        (frame,) = middles(len(session.clip), 1)
        one = _Picture(self, talk, session, frame, expression.text)
        alive = await one.begin()
        for generation in range(self.generations):
            if settled([c.rating for c in alive], [c.mask_HW for c in alive], self):
                break
            await one.duel(alive)
            alive.sort(key=_rank)
            if generation + 1 < self.generations:
                # The better half stays, and the best has new phrases bred from it (not stated).
                alive = alive[: max(1, self.population // 2)]
                bred = await one.paraphrases(alive[0].phrase, self.population - len(alive))
                alive += await one.passing(bred, [c.phrase for c in alive])
                alive.sort(key=_rank)
        by_text = alive[0].mask_HW if alive else None
        mask_HW, answer = await one.settle(by_text, await one.by_box())
        track = track_mask(session, frame, mask_HW)
        told = [[c.phrase, round(c.score, 4), c.rating] for c in alive]
        return Grounding(expression, track, details={"phrases": told, "answer": answer})


def _rank(one: _Candidate) -> tuple[float, float]:
    return -one.rating, -one.score


def settled(ratings: Sequence[float], masks: Sequence[BoolHW], options: EvolSam3) -> bool:
    """Whether more duels would change nothing: none to hold, or ratings and the best three masks agree."""
    if len(masks) < 2:
        return True
    pairs = [mask_iou(*pair) for pair in combinations(masks[:3], 2)]
    spread_of = max(ratings) - min(ratings)
    return spread_of <= options.settled_spread and float(np.mean(pairs)) >= options.settled_iou


@dataclass
class _Picture:
    """One expression on one frame, and all that is asked about it."""

    method: EvolSam3
    talk: Conversation
    session: SegmenterSession
    frame: int
    text: str

    def __post_init__(self) -> None:
        self.picture = self.session.clip.load([self.frame])[0]
        self.sent = self.method.backbone.fit(self.picture)
        self.rule = TEXT["subject"] if self.method.style == "refcoco" else ""

    async def begin(self) -> list[_Candidate]:
        """The target phrase, made anew while nothing passes, its paraphrases, and who of them passes."""
        method, failed, alive, phrase = self.method, list[str](), list[_Candidate](), self.text
        for _ in range(1 + method.refinements):
            told = TEXT["refine"].format(failed=", ".join(failed)) if failed else ""
            question = user(self.sent, TEXT["phrase"].format(sent=self.text, rule=self.rule + told))
            phrase = await self._asked(question, "phrase", lambda said: read_text(said, "phrase"))
            if alive := await self.passing([phrase], failed):
                break
            failed.append(phrase)
        more = [self.text] if method.style == "refcoco" else []
        more += await self.paraphrases(phrase, method.population - 1)
        alive += await self.passing(more, [phrase, *failed])
        return sorted(alive, key=_rank)[: method.population]

    async def paraphrases(self, phrase: str, count: int) -> list[str]:
        """Other words for what a phrase names; more than asked for don't count."""
        if count < 1:
            return []
        told = TEXT["paraphrase"].format(sent=self.text, phrase=phrase, count=count, rule=self.rule)
        question = user(self.sent, told)
        return (await self._asked(question, "paraphrases", lambda said: read_texts(said, "phrases")))[:count]

    async def passing(self, phrases: Sequence[str], known: Sequence[str]) -> list[_Candidate]:
        """Candidates of the phrases that are new and whose masks the gate lets through."""
        method, out = self.method, list[_Candidate]()
        for phrase in dict.fromkeys(phrases):
            if phrase in known:
                continue
            (seen,) = self.session.segment(self.frame, [Prompt(text=phrase)])
            large = seen.masks_KHW.sum(axis=(1, 2)) >= method.least_pixels
            if not large.any():
                continue
            mask_HW, score = seen.masks_KHW[large].any(axis=0), float(seen.ious_K[large].max())
            if score < method.fail_below:
                continue
            if score > method.pass_above or await self._good(mask_HW):
                out.append(_Candidate(phrase, mask_HW, score))
        return out

    async def _good(self, mask_HW: BoolHW) -> bool:
        question = user(self.sent, self._drawn(mask_HW), TEXT["gate"].format(sent=self.text))
        return await self._asked(question, "gate", lambda said: read_number(said, "score", 0, 1)) >= 1

    async def duel(self, alive: Sequence[_Candidate]) -> None:
        """Neighbours by rank before the chat model; ratings move."""
        for first, second in list(zip(alive[::2], alive[1::2], strict=False))[: self.method.duels]:
            if mask_iou(first.mask_HW, second.mask_HW) > self.method.same_iou:
                continue
            won = await self._first_wins(first.mask_HW, second.mask_HW)
            moved = self.method.step if won else -self.method.step
            first.rating, second.rating = first.rating + moved, second.rating - moved

    async def _first_wins(self, first_HW: BoolHW, second_HW: BoolHW, step: str = "duel") -> bool:
        views = (self._drawn(first_HW), self._drawn(second_HW))
        question = user(self.sent, *views, TEXT["duel"].format(sent=self.text))
        return await self._asked(question, step, lambda said: read_choice(said, "winner", ("A", "B"))) == "A"

    async def by_box(self) -> BoolHW | None:
        """The mask of the chat model's own box, if there is one."""
        method, (height, width) = self.method, self.session.clip.size
        boxes = await self.talk.ask_for(
            user(self.sent, TEXT["box"].format(sent=self.text)),
            "box",
            lambda words: read_boxes(words, method.backbone, (self.sent.shape[0], self.sent.shape[1])),
        )
        if not boxes:
            return None
        (seen,) = self.session.segment(self.frame, [Prompt(box=boxes[0])])
        for row in np.argsort(-seen.ious_K, kind="stable"):
            mask_HW, asked = seen.mask(int(row)), np.multiply(boxes[0], (width, height) * 2)
            filled = mask_HW.any() and box_iou(extent(mask_HW), asked.tolist()) > method.box_iou
            if filled or (mask_HW.any() and method.style == "reason"):
                return mask_HW
        return None

    async def settle(self, text_HW: BoolHW | None, box_HW: BoolHW | None) -> tuple[BoolHW | None, str]:
        """The mask by text or by box, and which it is: the one that wins in both orders."""
        if text_HW is None or box_HW is None:
            found = box_HW if text_HW is None else text_HW
            return found, "none" if found is None else "box" if text_HW is None else "text"
        first = await self._first_wins(text_HW, box_HW, "text against box")
        second = not await self._first_wins(box_HW, text_HW, "box against text")
        by_text = first if first == second else self.method.style == "reason"
        return (text_HW, "text") if by_text else (box_HW, "box")

    async def _asked(self, question: Message, step: str, read: Callable[[dict[str, Any]], T]) -> T:
        return await self.talk.ask_for(question, step, lambda words: read(read_object(words)))

    def _drawn(self, mask_HW: BoolHW) -> Uint8HWC:
        return self.method.backbone.fit(overlay(self.picture, [mask_HW], [1], self.method.opacity))

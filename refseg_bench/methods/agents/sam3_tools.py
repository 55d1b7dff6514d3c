"""The image form of SAM 3 Agent: a chat model calls SAM 3 as a tool until it has the masks that it means.

One tool call per reply. Prompts are ours. What the source doesn't state is an option marked so, or said
where it is decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from refseg_bench.backbones.chat import ChatError, Conversation, Message, Uint8HWC
from refseg_bench.methods.agents.base import ChatMethod, read_object, read_text, user
from refseg_bench.methods.agents.drawing import crop, extent, overlay
from refseg_bench.segmenters.base import Prompt, SegmenterSession
from refseg_bench.types import BoolHW

SYSTEM = """You find what a description means in a picture, by tools. Reply with a short thought and then
one call, as JSON in a tag: <tool>{"name": ..., "parameters": {...}}</tool>
segment_phrase {"text_prompt": "..."}: every instance of a simple noun phrase becomes a numbered mask in
place of all masks before. Never use a phrase twice.
examine_each_mask {}: looks at each mask closely and drops those that don't fit.
select_masks_and_return {"final_answer_masks": [numbers]}: ends; these masks are what is meant.
report_no_mask {}: ends; nothing in the picture is meant."""
FIRST = """The description: "{sent}"."""
USED = " Phrases used so far: {phrases}."
FOUND = "'{phrase}' gives {count} masks, numbered in the picture: {ids}."
NOTHING = "'{phrase}' gives no mask. Try another phrase, or report that there is none."
TWICE = "'{phrase}' was used before. Use another phrase."
KEPT = "Left after examination: {ids}, as numbered in the picture."
EXAMINE = """The picture; mask {one} drawn in it; the mask alone, enlarged. The description: "{sent}".
Does the mask show what is meant, or one of several? Think, then answer <verdict>Accept</verdict> or
<verdict>Reject</verdict>."""


@dataclass
class _Masks:
    """What one image conversation has: masks by number, and the phrases it used."""

    by_id: dict[int, BoolHW] = field(default_factory=dict)
    phrases: list[str] = field(default_factory=list)


@dataclass
class ToolAgent(ChatMethod):
    """A chat model that segments by phrases, examines and selects, on one picture at a time.

    Attributes:
        generations: most replies of one picture's conversation.
        most_masks: most masks of a phrase; the best by score.
        overlap: a mask is dropped where its intersection with a better one, over the smaller of both areas,
            is more.
        opacity: of the masks' colours.
        images: most pictures in a request; the first and the latest stay.
        tries: most calls where a reply can't be read; the original raises at the first.
    """

    counts: ClassVar[tuple[str, ...]] = ("generations", "most_masks", "images", "tries")

    generations: int = 100
    most_masks: int = 100
    overlap: float = 0.3
    opacity: float = 0.15
    images: int = 2
    tries: int = 1

    async def _image(
        self, talk: Conversation, session: SegmenterSession, frame: int, text: str
    ) -> tuple[BoolHW | None, dict[str, Any]]:
        """The selected masks in one, ``None`` where nothing is meant; and what a reader may want to know."""
        picture = session.clip.load([frame])[0]
        found, since = _Masks(), list[Message]()
        for number in range(1, self.generations + 1):
            told = USED.format(phrases=", ".join(found.phrases)) if found.phrases else ""
            first = user(self.backbone.fit(picture), FIRST.format(sent=text) + told)
            asked = [Message("system", (SYSTEM,)), *_fewer([first, *since], self.images)]
            reply, call = await talk.ask_for(asked, f"frame {frame}, reply {number}", read_call, self.tries)
            name, given = call["name"], call["parameters"]
            if name == "report_no_mask":
                return None, {"phrases": found.phrases, "selected": []}
            if name == "select_masks_and_return":
                chosen = [one for one in given["final_answer_masks"] if one in found.by_id]
                masks = [np.zeros(session.clip.size, bool), *(found.by_id[one] for one in chosen)]
                return np.logical_or.reduce(masks), {"phrases": found.phrases, "selected": chosen}
            if name == "examine_each_mask":
                await self._examine(talk, found, picture, text)
                answer = user(self._drawn(picture, found), KEPT.format(ids=list(found.by_id)))
            elif given["text_prompt"] in found.phrases:
                answer = user(TWICE.format(phrase=given["text_prompt"]))
            else:
                since = []
                answer = self._segment(session, frame, picture, found, given["text_prompt"])
            since += [Message("assistant", (reply,)), answer]
        raise talk.failed(ChatError(f"No masks were returned in {self.generations} replies."))

    def _segment(
        self, session: SegmenterSession, frame: int, picture: Uint8HWC, found: _Masks, phrase: str
    ) -> Message:
        """A phrase's masks in place of those before."""
        found.phrases.append(phrase)
        (seen,) = session.segment(frame, [Prompt(text=phrase)])
        order = np.argsort(-seen.ious_K, kind="stable")
        masks = apart([seen.mask(int(one)) for one in order], self.overlap)[: self.most_masks]
        found.by_id = dict(enumerate(masks, 1))
        if not masks:
            return user(NOTHING.format(phrase=phrase))
        told = FOUND.format(phrase=phrase, count=len(masks), ids=list(found.by_id))
        return user(self._drawn(picture, found), told)

    async def _examine(self, talk: Conversation, found: _Masks, picture: Uint8HWC, text: str) -> None:
        """Drop the masks that are rejected; the others keep their numbers (not stated)."""
        for one, mask_HW in list(found.by_id.items()):
            drawn = overlay(picture, [mask_HW], [one], self.opacity)
            views = (picture, drawn, crop(drawn, extent(mask_HW), margin=0.5))
            question = user(*(self.backbone.fit(view) for view in views), EXAMINE.format(one=one, sent=text))
            if not await talk.ask_for([question], f"examine {one}", read_verdict, self.tries):
                del found.by_id[one]

    def _drawn(self, picture: Uint8HWC, found: _Masks) -> Uint8HWC:
        ids, masks = list(found.by_id), list(found.by_id.values())
        return self.backbone.fit(overlay(picture, masks, ids, self.opacity))


def apart(masks: Sequence[BoolHW], overlap: float) -> list[BoolHW]:
    """Of masks in order of their scores those that no better one covers, or lies in; empty ones are left out.

    >>> import numpy as np
    >>> whole, part, other = (np.array([row], bool) for row in ([1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]))
    >>> [mask.sum() for mask in apart([whole, part, other], 0.3)], len(apart([whole, other], 0.5))
    ([np.int64(3)], 2)
    """
    kept: list[BoolHW] = []
    for mask_HW in masks:
        shares = [(mask_HW & one).sum() / max(1, min(mask_HW.sum(), one.sum())) for one in kept]
        if mask_HW.any() and max(shares, default=0.0) <= overlap:
            kept.append(mask_HW)
    return kept


def read_call(words: str) -> tuple[str, dict[str, Any]]:
    """The first tool call of a reply and the reply up to its end; what comes after doesn't count.

    Raises:
        ValueError: there is none, or it is none of the four.

    >>> read_call('So: <tool>{"name": "report_no_mask"}</tool> or <tool>…')[1]
    {'name': 'report_no_mask', 'parameters': {}}
    """
    begun, opened, rest = words.partition("<tool>")
    inner, closed, _ = rest.partition("</tool>")
    if not opened or not closed:
        raise ValueError("there is no <tool>…</tool> in it")
    call = read_object(inner)
    name, given = call.get("name"), call.get("parameters", {})
    if name not in ("segment_phrase", "examine_each_mask", "select_masks_and_return", "report_no_mask"):
        raise ValueError(f"there is no tool {name!r}")
    if not isinstance(given, dict):
        raise ValueError('"parameters" must be an object')
    if name == "segment_phrase":
        given = {"text_prompt": read_text(given, "text_prompt")}
    if name == "select_masks_and_return":
        chosen = given.get("final_answer_masks")
        if not isinstance(chosen, list):
            raise ValueError('"final_answer_masks" must be a list of numbers')
        numbers = [int(one) for one in chosen if isinstance(one, int | str) and str(one).isdecimal()]
        given = {"final_answer_masks": list(dict.fromkeys(numbers))}
    return begun + opened + inner + closed, {"name": name, "parameters": given}


def read_verdict(words: str) -> bool:
    """Whether a mask is accepted.

    Raises:
        ValueError: there is no verdict.
    """
    said = re.findall(r"<verdict>\s*(accept|reject)\s*</verdict>", words, re.I)
    if not said:
        raise ValueError("there is no <verdict>Accept</verdict> or <verdict>Reject</verdict> in it")
    return bool(said[-1].lower() == "accept")


def _fewer(messages: Sequence[Message], most: int) -> list[Message]:
    """The conversation with its first picture and the latest others, ``most`` in all."""
    places = [
        row for row, message in enumerate(messages) if any(not isinstance(p, str) for p in message.parts)
    ]
    kept = {*places[:1], *places[1:][-(most - 1) :]} if most > 1 else {*places[:1]}
    return [
        message
        if row in kept
        else replace(message, parts=tuple(p for p in message.parts if isinstance(p, str)))
        for row, message in enumerate(messages)
    ]

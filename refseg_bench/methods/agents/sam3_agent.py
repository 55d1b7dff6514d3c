"""SAM 3 Agent: a chat model calls SAM 3 as a tool until it has the masks it means; on images and video.

On an image the model calls one of four tools per reply. On a video it first names every
instance that is meant, with a frame and words that fit nothing else there; the image form finds each on its
frame, and the tracker follows it both ways (the form of a challenge's winner, MeViS v2 test J&F 0.790).
Prompts are ours. What the source doesn't state is an option marked so, or said where it is decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from refseg_bench.backbones.chat import ChatError, Conversation, Message, Uint8HWC
from refseg_bench.methods.agents import (
    MOST_LISTED,
    ChatMethod,
    read_flag,
    read_json,
    read_object,
    read_text,
    texts,
    track_mask,
    user,
)
from refseg_bench.methods.agents.drawing import contour, crop, extent, overlay
from refseg_bench.segmenters.base import Prompt, SegmenterSession
from refseg_bench.types import BoolHW, Expression, Grounding, MaskTrack

TEXT = texts(__file__)
#: Words of a description whose instances are looked at again.
_DOUBTFUL = re.compile(r"\b(left|right|without)\b", re.I)


@dataclass
class _Masks:
    """What one image conversation has: masks by number, and the phrases it used."""

    by_id: dict[int, BoolHW] = field(default_factory=dict)
    phrases: list[str] = field(default_factory=list)


@dataclass
class Sam3Agent(ChatMethod):
    """The image form on an image, the video form on a clip."""

    counts: ClassVar[tuple[str, ...]] = ("generations", "most_masks", "images", "tries")

    generations: int = 100  #: most replies of one picture's conversation
    most_masks: int = 100  #: most masks of a phrase; the best by score
    #: A mask is dropped where its intersection with a better one, over the smaller of both areas, is more.
    overlap: float = 0.3
    opacity: float = 0.15  #: of the masks' colours
    images: int = 2  #: most pictures in a request; the first and the latest stay
    tries: int = 1  #: as everywhere; the original raises at the first reply that can't be read
    bad_iou: float = 0.7  #: of two instances whose tracks overlap more, one is described anew
    again: int = 1  #: how often an instance without a mask, or doubled, is described anew (not stated)
    #: Look again at the instances of expressions with left, right or without; one that doesn't match is
    #: dropped (not stated).
    verify: bool = True

    async def ground(
        self, talk: Conversation, session: SegmenterSession, expression: Expression
    ) -> Grounding:
        """Segment an image; locate, segment and track in a clip."""
        clip = session.clip
        if len(clip) == 1:
            mask_HW, details = await self._image(talk, session, 0, expression.text)
            track = track_mask(session, 0, mask_HW)
            return Grounding(expression, track, no_target=mask_HW is None, details=details)
        instances = await self._located(talk, session, expression.text)
        tracks = [track for one in instances if (track := one.pop("track")) is not None]
        if self.verify and _DOUBTFUL.search(expression.text):
            tracks = [one for one in tracks if await self._matches(talk, session, expression.text, one)]
        union = MaskTrack.union(tracks, clip.size, len(clip))
        return Grounding(expression, union, no_target=not instances, details={"instances": instances})

    # ── an image ──────────────────────────────────────────────────────────────

    async def _image(
        self, talk: Conversation, session: SegmenterSession, frame: int, text: str
    ) -> tuple[BoolHW | None, dict[str, Any]]:
        """The selected masks in one, ``None`` where nothing is meant; and what a reader may want to know."""
        picture = session.clip.load([frame])[0]
        found, since = _Masks(), list[Message]()
        for number in range(1, self.generations + 1):
            told = TEXT["used"].format(phrases=", ".join(found.phrases)) if found.phrases else ""
            first = user(self.backbone.fit(picture), TEXT["first"].format(sent=text) + told)
            asked = [Message("system", (TEXT["system"],)), *_fewer([first, *since], self.images)]
            reply, call = await talk.ask_for(asked, f"frame {frame}, reply {number}", read_call, closed=True)
            name, given = call["name"], call["parameters"]
            if name == "report_no_mask":
                return None, {"phrases": found.phrases, "selected": []}
            if name == "select_masks_and_return":
                chosen = [one for one in given["final_answer_masks"] if one in found.by_id]
                masks = [np.zeros(session.clip.size, bool), *(found.by_id[one] for one in chosen)]
                return np.logical_or.reduce(masks), {"phrases": found.phrases, "selected": chosen}
            if name == "examine_each_mask":
                await self._examine(talk, found, picture, text)
                answer = user(self._drawn(picture, found), TEXT["kept"].format(ids=list(found.by_id)))
            elif given["text_prompt"] in found.phrases:
                answer = user(TEXT["twice"].format(phrase=given["text_prompt"]))
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
            return user(TEXT["nothing"].format(phrase=phrase))
        told = TEXT["found"].format(phrase=phrase, count=len(masks), ids=list(found.by_id))
        return user(self._drawn(picture, found), told)

    async def _examine(self, talk: Conversation, found: _Masks, picture: Uint8HWC, text: str) -> None:
        """Drop the masks that are rejected; the others keep their numbers (not stated)."""
        for one, mask_HW in list(found.by_id.items()):
            drawn = overlay(picture, [mask_HW], [one], self.opacity)
            views = (picture, drawn, crop(drawn, extent(mask_HW), margin=0.5))
            question = user(
                *(self.backbone.fit(view) for view in views), TEXT["examine"].format(one=one, sent=text)
            )
            if not await talk.ask_for(question, f"examine {one}", read_verdict):
                del found.by_id[one]

    def _drawn(self, picture: Uint8HWC, found: _Masks) -> Uint8HWC:
        ids, masks = list(found.by_id), list(found.by_id.values())
        return self.backbone.fit(overlay(picture, masks, ids, self.opacity))

    # ── a video ──────────────────────────────────────────────────────────────

    async def _located(
        self, talk: Conversation, session: SegmenterSession, text: str
    ) -> list[dict[str, Any]]:
        """Every instance: its frame, its words, and its track or ``None``."""
        clip = session.clip
        shown = list(range(0, len(clip), 2 if len(clip) > 70 else 1))
        parts: list[str | Uint8HWC] = []
        for second, picture in enumerate(self.shown(clip, shown)):
            parts += [f"{second}.0 second", picture]

        def read(words: str) -> list[dict[str, Any]]:
            said = read_json(words)
            if not isinstance(said, list) or len(said) > MOST_LISTED:
                raise ValueError(f"the JSON is no list of up to {MOST_LISTED} instances")
            return [read_instance(one, shown) for one in said]

        parts.append(TEXT["locate"].format(sent=text))
        instances = await talk.ask_for(user(*parts), "instances", read)
        del parts  # the pictures of a long clip, while the conversation goes on
        for one in instances:
            one["track"] = await self._track(talk, session, one)
        for _ in range(self.again):
            for one, fault in faults(instances, self.bad_iou):
                second = shown.index(one["frame"])
                told = TEXT["refine"].format(second=second, old=one["description"], fault=fault, sent=text)
                asked = user(*self.shown(clip, [one["frame"]]), told)
                one["description"] = await talk.ask_for(
                    asked, "refined", lambda words: read_text(read_object(words), "description")
                )
                one["track"] = await self._track(talk, session, one)
        return instances

    async def _track(
        self, talk: Conversation, session: SegmenterSession, one: dict[str, Any]
    ) -> MaskTrack | None:
        """What the image form finds for an instance on its frame, tracked both ways."""
        mask_HW, _ = await self._image(talk, session, one["frame"], one["description"])
        return None if mask_HW is None or not mask_HW.any() else track_mask(session, one["frame"], mask_HW)

    async def _matches(
        self, talk: Conversation, session: SegmenterSession, text: str, track: MaskTrack
    ) -> bool:
        """Whether an instance, outlined on every third frame, is what is meant."""
        pictures = []
        for frame in range(0, len(session.clip), 3):
            picture, mask_HW = session.clip.load([frame])[0], track.mask(frame)
            drawn = picture if mask_HW is None else contour(picture, mask_HW, width=3)
            pictures.append(self.backbone.fit(drawn))

        question = user(*pictures, TEXT["match"].format(sent=text))
        return await talk.ask_for(question, "match", lambda words: read_flag(read_object(words), "match"))


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
    """Whether a mask is accepted."""
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


def faults(instances: Sequence[dict[str, Any]], bad_iou: float) -> list[tuple[dict[str, Any], str]]:
    """Instances to describe anew, and why: without a track, or the later of two that overlap too much.

    Two tracks overlap by the pixels of all frames together (not stated).
    """
    found = [(one, "gives no mask") for one in instances if one["track"] is None]
    for first, second in combinations([one for one in instances if one["track"] is not None], 2):
        pairs = list(zip(first["track"].masks(), second["track"].masks(), strict=True))
        both = sum(int((a & b).sum()) for a, b in pairs if a is not None and b is not None)
        either = sum(sum(area or 0 for area in one["track"].area()) for one in (first, second))
        if both > bad_iou * (either - both) and all(one is not second for one, _ in found):
            found.append((second, f'gives the same object as "{first["description"]}"'))
    return found


def read_instance(value: Any, shown: Sequence[int]) -> dict[str, Any]:
    """An instance of the list: its name, its frame in the clip, its description.

    The frame is said by its place among those ``shown``.

    Raises:
        ValueError: it isn't one.
    """
    if not isinstance(value, dict):
        raise ValueError("an instance is no object")
    second = re.fullmatch(r"(\d{1,6})(\.0+)?( ?s(ec(onds?)?)?)?", str(value.get("best_frame")).strip())
    if second is None or int(second[1]) >= len(shown):
        raise ValueError(f'"best_frame" must be one of the seconds 0 … {len(shown) - 1}')
    texts = {name: read_text(value, name) for name in ("instance", "description")}
    return {**texts, "frame": shown[int(second[1])]}

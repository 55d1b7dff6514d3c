"""SAM 3 Agent: a chat model calls SAM 3 as a tool until it has the masks it means; on images and video.

On an image the model calls one of four tools per reply (``sam3_tools``). On a video it first names every
instance that is meant, with a frame and words that fit nothing else there; the image form finds each on its
frame, and the tracker follows it both ways (the form of a challenge's winner, MeViS v2 test J&F 0.790).
Prompts are ours. What the source doesn't state is an option marked so, or said where it is decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from refseg_bench.backbones.chat import Conversation, Uint8HWC
from refseg_bench.methods.agents.base import (
    MOST_LISTED,
    read_flag,
    read_json,
    read_object,
    read_text,
    track_mask,
    user,
)
from refseg_bench.methods.agents.drawing import contour
from refseg_bench.methods.agents.sam3_tools import ToolAgent
from refseg_bench.segmenters.base import SegmenterSession
from refseg_bench.types import Expression, Grounding, MaskTrack

LOCATE = """These are frames of a video, each after its time. A description: "{sent}".
List every instance of its head noun that is meant, none of anything else. For each give the second at which
it is seen best, and words that fit it alone in that frame. An empty list means that nothing is meant.
Answer as JSON: [{{"instance": "...", "best_frame": second, "description": "..."}}]"""
REFINE = """In the frame at {second}.0 second, "{old}" {fault}. The description of the video: "{sent}".
Describe this instance in other words that fit it alone in that frame.
Answer as JSON: {{"description": "..."}}"""
MATCH = """Frames of a video; one object has a red outline. Is it (one of) what this means: "{sent}"?
Answer as JSON: {{"match": true or false}}"""
#: Words of a description whose instances are looked at again.
_DOUBTFUL = re.compile(r"\b(left|right|without)\b", re.I)


@dataclass
class Sam3Agent(ToolAgent):
    """The image form on an image, the video form on a clip.

    Attributes:
        bad_iou: of two instances whose tracks overlap more, one is described anew.
        again: how often an instance without a mask, or doubled, is described anew (not stated).
        verify: look again at the instances of expressions with left, right or without; one that doesn't
            match is dropped (not stated).
    """

    bad_iou: float = 0.7
    again: int = 1
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

        parts.append(LOCATE.format(sent=text))
        instances = await talk.ask_for([user(*parts)], "instances", read, self.tries)
        del parts  # the pictures of a long clip, while the conversation goes on
        for one in instances:
            one["track"] = await self._track(talk, session, one)
        for _ in range(self.again):
            for one, fault in faults(instances, self.bad_iou):
                second = shown.index(one["frame"])
                told = REFINE.format(second=second, old=one["description"], fault=fault, sent=text)
                asked = [user(*self.shown(clip, [one["frame"]]), told)]
                one["description"] = await talk.ask_for(
                    asked, "refined", lambda words: read_text(read_object(words), "description"), self.tries
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

        def read(words: str) -> bool:
            return read_flag(read_object(words), "match")

        return await talk.ask_for([user(*pictures, MATCH.format(sent=text))], "match", read, self.tries)


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

    Args:
        value: as it was said; its second is a place among the frames that were shown.
        shown: those frames.

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

"""AgentRVOS (arXiv 2603.23489): a concept's tracks first, then a chat model rules out all but what is meant.

A chat model turns the query into a noun, a concept segmenter tracks every instance of it over all frames,
and in rounds the chat model sorts the numbered tracks into true, false and unknown, each round on the
frames where the unknown ones are in view. The paper prints no prompts; those here are ours. What else
it doesn't state is an option, or said where it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from refseg_bench.backbones.chat import Conversation
from refseg_bench.methods.agents import ChatMethod, read_choice, read_flag, read_object, texts, user
from refseg_bench.methods.agents.drawing import beside, crop, extent, frame_box, overlay
from refseg_bench.segmenters.base import Instance, SegmenterSession, middles
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack

TEXT = texts(__file__)
#: How a model writes that there is no noun.
_NO_NOUN = ("", "null", "none")


@dataclass
class AgentRvos(ChatMethod):
    """A chat model sorts the tracks of a concept segmenter."""

    counts: ClassVar[tuple[str, ...]] = ("concepts", "rounds", "n_frames", "tries")

    #: ``query`` = the chat model names what to look for; ``sentence`` = the raw expression is looked for, and
    #: all that is found answers (the paper's floor).
    concept: Literal["query", "sentence"] = "query"
    concepts: int = 3  #: most attempts at a name that finds anything; 1 = no second attempt
    appearance: bool = True  #: describe each candidate where the query needs colour or texture
    rounds: int = 3  #: most rounds of sorting; 1 = no iteration
    #: Take the frames of a round from where its candidates are in view; else of the whole clip.
    temporal: bool = True
    n_frames: int = 16  #: frames shown at a time
    opacity: float = 0.4  #: of the candidates' colours (not stated in the paper)

    async def ground(
        self, talk: Conversation, session: SegmenterSession, expression: Expression
    ) -> Grounding:
        """Name, find, describe, sort."""
        clip = session.clip
        if self.concept == "sentence":
            noun, candidates = expression.text, self.find(session, expression.text)
            verdict = dict.fromkeys(range(1, len(candidates) + 1), "true")
        else:
            noun, candidates = await self._candidates(talk, session, expression.text)
            looks = await self._looks(talk, clip, expression.text, noun, candidates)
            verdict = await self._sort(talk, clip, expression.text, noun, candidates, looks)
        accepted = [candidates[one - 1].track for one, said in verdict.items() if said == "true"]
        return Grounding(
            expression,
            MaskTrack.union(accepted, clip.size, len(clip)),
            # What is left unknown is not output, but not ruled out either.
            no_target=not accepted and "unknown" not in verdict.values(),
            details={
                "concept": noun,
                "candidates": [round(one.score, 4) for one in candidates],
                "verdict": {str(one): said for one, said in verdict.items()},
            },
        )

    async def _candidates(
        self, talk: Conversation, session: SegmenterSession, sentence: str
    ) -> tuple[str, list[Instance]]:
        """The noun that finds something, and all its instances."""

        def read(words: str) -> list[str]:
            said = read_object(words).get("nouns")
            nouns = [
                n.strip() if isinstance(n, str) else "" for n in (said if isinstance(said, list) else [])
            ]
            if not nouns or nouns[0].lower() in _NO_NOUN:
                raise ValueError('"nouns" must be [core noun, hypernym or null]')
            return [noun for noun in nouns[:2] if noun.lower() not in _NO_NOUN]

        def typed(words: str) -> tuple[bool, list[str]]:
            kind = read_choice(read_object(words), "type", ("EXPLICIT", "REASONING"))
            return kind == "REASONING", read(words)

        reasoning, nouns = await talk.ask_for(user(TEXT["concept"].format(sent=sentence)), "concept", typed)
        failed: list[str] = []
        for attempt in range(1, self.concepts + 1):
            if reasoning or attempt > 1:
                told = TEXT["failed"].format(nouns=", ".join(failed)) if failed else ""
                question = TEXT["look"].format(sent=sentence, attempt=attempt, failed=told)
                shown = self.shown(session.clip, middles(len(session.clip), self.n_frames))
                nouns = await talk.ask_for(user(*shown, question), f"concept, attempt {attempt}", read)
            best, most = (nouns[0], list[Instance]()), 0
            for noun in dict.fromkeys(nouns):
                found = self.find(session, noun)
                # The name with more detections over all frames; on ties the core noun (not stated).
                seen = sum(sum(bool(area) for area in one.track.area()) for one in found)
                if seen > most:
                    best, most = (noun, found), seen
            if most:
                return best
            failed += [noun for noun in nouns if noun not in failed]
        return nouns[0], []

    async def _looks(
        self, talk: Conversation, clip: Clip, sentence: str, noun: str, candidates: Sequence[Instance]
    ) -> dict[int, str]:
        """Short descriptions of the candidates by number, where the query needs them."""
        if not self.appearance or not candidates:
            return {}

        def needed(words: str) -> bool:
            return read_flag(read_object(words), "appearance")

        def phrases(words: str) -> str:
            said = read_object(words).get("phrases")
            if not isinstance(said, list) or not said or not all(isinstance(one, str) for one in said):
                raise ValueError('"phrases" must be a list of one or two short texts')
            return ", ".join(said[:2])

        if not await talk.ask_for(user(TEXT["needed"].format(sent=sentence)), "appearance needed", needed):
            return {}
        looks = {}
        for number, candidate in enumerate(candidates, 1):
            areas = [area or 0 for area in candidate.track.area()]
            frame = int(np.argmax(areas))
            mask_HW = candidate.track.mask(frame)
            if mask_HW is None or not mask_HW.any():
                continue
            box, picture_HWC = extent(mask_HW), clip.load([frame])[0]
            panel = beside([crop(frame_box(picture_HWC, box), box, margin=1.0), crop(picture_HWC, box)])
            question = user(self.backbone.fit(panel), TEXT["appearance"].format(noun=noun))
            looks[number] = await talk.ask_for(question, f"appearance of {number}", phrases)
        return looks

    async def _sort(
        self,
        talk: Conversation,
        clip: Clip,
        sentence: str,
        noun: str,
        candidates: Sequence[Instance],
        looks: dict[int, str],
    ) -> dict[int, str]:
        """What was said of each candidate in the end: true, false or unknown."""
        verdict = dict.fromkeys(range(1, len(candidates) + 1), "unknown")
        areas = [one.track.area() for one in candidates]
        for number in range(1, self.rounds + 1):
            open_ids = [one for one, said in verdict.items() if said == "unknown"]
            if not open_ids:
                break
            view = [frame for frame in range(len(clip)) if any(areas[one - 1][frame] for one in open_ids)]
            if not self.temporal or not view:
                view = list(range(len(clip)))
            frames = [view[place] for place in middles(len(view), self.n_frames)]
            shown = []
            for frame, frame_HWC in zip(frames, clip.load(frames), strict=True):
                masks = [candidates[one - 1].track.mask(frame) for one in open_ids]
                shown.append(self.backbone.fit(overlay(frame_HWC, masks, open_ids, self.opacity)))
            told = "".join(f"\nCandidate {one} looks: {looks[one]}." for one in open_ids if one in looks)
            names = ", ".join(str(frame) for frame in frames)
            question = TEXT["sort"].format(frames=names, noun=noun, sent=sentence, looks=told, ids=open_ids)

            def read(words: str, ids: Sequence[int] = tuple(open_ids)) -> dict[int, str]:
                return read_verdict(words, ids)

            verdict |= await talk.ask_for(user(*shown, question), f"round {number}", read)
        return verdict


def read_verdict(words: str, ids: Sequence[int]) -> dict[int, str]:
    """Which candidates were called true, false and unknown: every one, and each once.

    Raises:
        ValueError: one is missing, named twice, or not among those asked about.

    >>> read_verdict('<answer>{"true": [2], "false": [1], "unknown": []}</answer>', [1, 2])
    {2: 'true', 1: 'false'}
    """
    said = read_object(words)
    found: dict[int, str] = {}
    for name in ("true", "false", "unknown"):
        listed = said.get(name, [])
        for one in listed if isinstance(listed, list) else [listed]:
            number = int(one) if str(one).isdecimal() else -1
            if number not in ids or number in found:
                raise ValueError(
                    f"{one!r} under '{name}' is not one of the candidates {list(ids)}, or stands twice"
                )
            found[number] = name
    if missing := [one for one in ids if one not in found]:
        raise ValueError(f"the candidates {missing} are in none of the three lists")
    return found

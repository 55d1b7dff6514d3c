"""Refer-Agent (arXiv 2602.03595): a chat model chooses a key frame, describes, locates, and checks itself.

CLIP and the chat model choose frames; on the best one the chat model describes what is meant, gives each a
box and a point, and looks whether the frame serves; then yes-questions about each box may send it back to its
descriptions. SAM 2 tracks box and point both ways. Prompts are ours. What the source doesn't state is an
option marked so, or said where it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.chat import Conversation, Message, Uint8HWC
from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.backbones.weights import Weights, choose_device, fetch, load_module, load_processor
from refseg_bench.config.schema import option
from refseg_bench.methods.agents import (
    Box,
    ChatMethod,
    read_boxes,
    read_flag,
    read_number,
    read_object,
    read_point,
    read_text,
    read_texts,
    texts,
    user,
)  # fmt: skip
from refseg_bench.methods.agents.drawing import beside, frame_box, mosaic
from refseg_bench.methods.base import track_prompts
from refseg_bench.segmenters.base import Prompt, SegmenterSession
from refseg_bench.types import Clip, Expression, Grounding

T = TypeVar("T")

TEXT = texts(__file__)
KIND = {1: " (it depends on what happens over time)", 2: " (several targets)", 3: ""}
#: What the frame check may find wrong.
WRONG = dict(absent="a target is absent", clearer_elsewhere="it is clearer elsewhere", occluded="occlusion")


@dataclass
class ClipScores:
    """CLIP of transformers."""

    #: Hub id or local folder; ``null`` = no CLIP, all frames are alike (not in the paper).
    model: str | None = "openai/clip-vit-base-patch32"
    revision: str | None = None  #: commit, tag or branch of the hub repository
    device: str = option("auto", transient=True)  #: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    offline: bool = option(False, transient=True)  #: never ask the hub
    _seen: tuple[str, Any] = field(default=("", None), init=False, repr=False, compare=False)

    def weights(self) -> tuple[Weights, ...]:
        """What is fetched."""
        if self.model is None:
            return ()
        # OpenAI's repository of this model holds no safetensors.
        patterns = ("*.json", "*.safetensors", "pytorch_model.bin", "*.txt")
        return (Weights(self.model, self.revision, patterns=patterns, component="method=refer_agent"),)

    def logits(self, clip: Clip, text: str) -> NDArray[np.float64]:
        """CLIP's logit of each frame with the text, ``(T,)``; frames are encoded once per clip."""
        if self.model is None:
            return np.zeros(len(clip))
        model, processor = self._ready
        with torch.inference_mode():
            if self._seen[0] != clip.id:
                # One by one: a frame's digits must not depend on its neighbours.
                frames = [self._encoded(clip.load([frame])[0]) for frame in range(len(clip))]
                self._seen = clip.id, torch.cat(frames)
            words = processor(text=[text], return_tensors="pt", padding=True, truncation=True).to(
                model.device
            )
            text_1D = _unit(model.get_text_features(**words))
            logits_T = (self._seen[1] @ text_1D.T)[:, 0] * model.logit_scale.exp()
        return np.asarray(logits_T.double().cpu().numpy())

    def _encoded(self, frame_HWC: NDArray[np.uint8]) -> Any:
        model, processor = self._ready
        pixels = processor(images=frame_HWC, return_tensors="pt").to(model.device)
        return _unit(model.get_image_features(**pixels))

    @cached_property
    def _ready(self) -> tuple[Any, Any]:
        from transformers import AutoProcessor, CLIPModel

        place = fetch(self.weights()[0], offline=self.offline)
        model = load_module(CLIPModel, place, "auto", choose_device(self.device))
        return model.eval(), load_processor(AutoProcessor, place)


def _unit(features: Any) -> Any:
    """Features of length 1; newer versions of transformers wrap them."""
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class _Target:
    """What a description was given on the key frame."""

    description: str
    box: Box
    point: tuple[float, float]


@dataclass
class ReferAgent(ChatMethod):
    """Key frame, descriptions, boxes and points, with two loops of self-checks."""

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")  # of CLIP
    weights_alone: ClassVar[bool] = True
    counts: ClassVar[tuple[str, ...]] = ("parts", "best", "frame_rounds", "tries")

    clip: ClipScores = field(default_factory=ClipScores)  #: grades the frames
    parts: int = 10  #: equal parts of the clip, of which CLIP's best frame is shown
    best: int = 5  #: how many of those are kept
    frame_rounds: int = 2  #: most choices of a key frame
    description_rounds: int = 2  #: most times that the boxes are questioned
    clip_share: float = 0.5  #: of CLIP's grade in a frame's; the rest is the chat model's (not stated)

    def weights(self) -> Sequence[Any]:
        """CLIP's."""
        return self.clip.weights()

    async def ground(
        self, talk: Conversation, session: SegmenterSession, expression: Expression
    ) -> Grounding:
        """Ask, choose, describe, locate, check, track."""
        one = _Query(self, talk, session.clip)
        await one.begin(expression.text)
        targets, guidance = list[_Target](), ""
        for number in range(1, self.frame_rounds + 1):
            await one.choose(guidance)
            if found := await one.located(""):
                targets, chosen = found, (one.frames, one.key)
            wrong = await one.poor() if number < self.frame_rounds else []
            if not wrong:
                break
            guidance += TEXT["guidance"].format(key=one.key, wrong=", ".join(wrong))
        if targets:
            # Boxes belong to the frame they were found on, which need not be the last one chosen.
            one.frames, one.key = chosen
        reasons: list[str] = []
        for _ in range(self.description_rounds if one.questions else 0):
            said_no = await one.doubts(targets)
            if not said_no:
                break
            reasons += said_no
            # Without any new box, the last ones stay.
            targets = await one.located(TEXT["reasons"].format(reasons="; ".join(reasons))) or targets
        prompts = [Prompt(points=(target.point,), labels=(1,), box=target.box) for target in targets]
        return Grounding(
            expression,
            track_prompts(session, one.key, prompts),
            no_target=not prompts,
            details={
                "statement": one.statement,
                "questions": one.questions,
                "frames": one.frames,
                "key": one.key,
                "targets": [asdict(target) for target in targets],
                "boxes": {str(one.key): [target.box for target in targets]},
                "points": [[one.key, *target.point] for target in targets],
            },
        )


@dataclass
class _Query:
    """One expression on a clip: what was made of it, and all that is asked."""

    method: ReferAgent
    talk: Conversation
    clip: Clip
    statement: str = ""
    kind: int = 3
    questions: list[str] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    key: int = 0

    async def begin(self, text: str) -> None:
        """Grades by CLIP (of the expression as it is: not stated), the statement, and the questions."""
        self.grades_T = standing(self.method.clip.logits(self.clip, text))

        def read(words: str) -> tuple[str, int]:
            said = read_object(words)
            kind = read_number(said, "type", min(KIND), max(KIND))
            if kind not in KIND:
                raise ValueError('"type" must be 1, 2 or 3')
            return read_text(said, "statement"), int(kind)

        told = TEXT["statement"].format(sent=text)
        self.statement, self.kind = await self.talk.ask_for(user(told), "statement", read)
        self.questions = (
            await self._texts(user(TEXT["questions"].format(sent=self.statement)), "questions")
        )[:3]

    async def choose(self, guidance: str) -> None:
        """The key frame and its company, by both grades."""
        places = best_of_parts(self.grades_T, self.method.parts)

        def read(words: str) -> list[float]:
            scores = read_object(words).get("scores")
            if not isinstance(scores, list) or len(scores) != len(places):
                raise ValueError(f'"scores" must be {len(places)} numbers')
            return [read_number({"score": score}, "score", 1, 10) for score in scores]

        names = [str(number) for number in range(1, len(places) + 1)]
        picture = self.method.backbone.fit(mosaic(list(self.clip.load(places)), names, columns=5))
        told = TEXT["grade"].format(count=len(places), sent=self.statement, guidance=guidance)
        said = await self.talk.ask_for(user(picture, told), "frames", read)
        share = self.method.clip_share
        grades = [share * self.grades_T[p] + (1 - share) * one for p, one in zip(places, said, strict=True)]
        self.frames, self.key = chosen_frames(places, grades, self.method.best)

    async def located(self, reasons: str) -> list[_Target]:
        """A box and a point on the key frame for each new description; those without a box are left out."""
        told = TEXT["describe"].format(
            key=self.key, sent=self.statement, kind=KIND[self.kind], reasons=reasons
        )
        frame_HWC, out = self.clip.load([self.key])[0], list[_Target]()
        model = self.method.backbone
        sent = model.fit(frame_HWC)
        size = (sent.shape[0], sent.shape[1])
        for description in await self._texts(user(self._stitched(), told), "descriptions"):
            boxes = await self.talk.ask_for(
                user(sent, TEXT["locate"].format(description=description)),
                "box",
                lambda words: read_boxes(words, model, size, shares=True),
            )
            if boxes:
                question = user(
                    self._boxed(frame_HWC, boxes[-1]), TEXT["point"].format(description=description)
                )
                point = await self.talk.ask_for(
                    question, "point", lambda words: read_point(words, model, size, shares=True)
                )
                out.append(_Target(description, boxes[-1], point))
        return out

    async def poor(self) -> list[str]:
        """What is wrong with the key frame."""

        def read(words: str) -> list[str]:
            said = read_object(words)
            return [told for name, told in WRONG.items() if read_flag(said, name)]

        return await self.talk.ask_for(
            user(self._stitched(), TEXT["frame"].format(sent=self.statement)), "frame check", read
        )

    async def doubts(self, targets: Sequence[_Target]) -> list[str]:
        """The reasons of every question that a box answers with no."""
        frame_HWC, out = self.clip.load([self.key])[0], list[str]()

        def read(words: str) -> str | None:
            said = read_object(words)
            return None if read_flag(said, "yes") else read_text(said, "reason")

        for target in targets:
            for question in self.questions:
                told = TEXT["check"].format(description=target.description, question=question)
                reason = await self.talk.ask_for(
                    user(self._boxed(frame_HWC, target.box), told), "box check", read
                )
                out += [reason] if reason else []
        return out

    async def _texts(self, question: Message, name: str) -> list[str]:
        return await self.talk.ask_for(question, name, lambda words: read_texts(read_object(words), name))

    def _stitched(self) -> Uint8HWC:
        """The key frame, enlarged, beside its company (how they are laid out: not stated)."""
        company = mosaic(list(self.clip.load(self.frames)), [str(frame) for frame in self.frames], columns=2)
        return self.method.backbone.fit(beside([self.clip.load([self.key])[0], company], height=896))

    def _boxed(self, frame_HWC: Uint8HWC, box: Box) -> Uint8HWC:
        height, width = frame_HWC.shape[:2]
        x0, y0, x1, y1 = (round(v * side) for v, side in zip(box, (width, height) * 2, strict=True))
        return self.method.backbone.fit(frame_box(frame_HWC, (x0, y0, x1, y1)))


# ── which frames are looked at ───────────────────────────────────────────────


def standing(logits_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits as grades from 1 to 10: 5.5 + 1.5 z, cut there (arXiv 2602.03595).

    >>> import numpy as np
    >>> standing(np.array([0.0, 1.0, 2.0])).round(2).tolist(), standing(np.ones(2)).tolist()
    ([3.66, 5.5, 7.34], [5.5, 5.5])
    """
    spread = float(logits_T.std())
    z_T = (logits_T - logits_T.mean()) / spread if spread > 0 else np.zeros(len(logits_T))
    return np.clip(5.5 + 1.5 * z_T, 1.0, 10.0)


def best_of_parts(grades_T: NDArray[np.float64], parts: int) -> list[int]:
    """The best frame of each of so many equal parts, the first on ties; every frame of a shorter clip.

    >>> import numpy as np
    >>> best_of_parts(np.array([1.0, 5, 2, 2, 9, 1]), 3)
    [1, 2, 4]
    """
    pieces = np.array_split(np.arange(len(grades_T)), min(parts, len(grades_T)))
    return [int(piece[int(np.argmax(grades_T[piece]))]) for piece in pieces]


def chosen_frames(frames: Sequence[int], grades: Sequence[float], best: int) -> tuple[list[int], int]:
    """The best frames in the order of time, and the key frame: the best of them, the first on ties.

    A key frame that is second or second to last brings the frames midway to its neighbours.

    >>> chosen_frames([0, 10, 20, 30, 40, 50], [1, 9, 3, 4, 5, 6], 5)
    ([10, 20, 30, 40, 50], 10)
    >>> chosen_frames([0, 10, 20, 30, 40, 50], [5, 9, 3, 4, 5, 6], 5)
    ([0, 5, 10, 20, 30, 40, 50], 10)
    """
    order = sorted(range(len(frames)), key=lambda place: (-grades[place], place))[:best]
    key = frames[order[0]]
    kept = [frames[place] for place in sorted(order)]
    at = kept.index(key)
    if len(kept) > 2 and at in (1, len(kept) - 2):
        kept = sorted({*kept, (kept[at - 1] + key) // 2, (key + kept[at + 1]) // 2})
    return kept, key

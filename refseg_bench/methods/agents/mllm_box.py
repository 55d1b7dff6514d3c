"""A chat model's boxes on key frames prompt the segmenter: the everyday baseline of grounding by words.

Which frames it is shown and how it is asked is stated by no one paper: both are options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refseg_bench.backbones.chat import Conversation
from refseg_bench.errors import ConfigError
from refseg_bench.methods.agents import Box, ChatMethod, read_boxes, user
from refseg_bench.methods.base import track_prompts
from refseg_bench.segmenters.base import Prompt, SegmenterSession, middles
from refseg_bench.types import Expression, Grounding, MaskTrack


@dataclass
class MllmBox(ChatMethod):
    """Boxes of what is meant, asked for on each key frame and tracked both ways; their union answers."""

    counts: ClassVar[tuple[str, ...]] = ("n_frames", "tries")

    n_frames: int = 1  #: key frames, the middles of equal parts of the clip
    #: The question, with ``{sent}``.
    prompt: str = (
        "Locate every object that this describes: {sent}. Answer with the boxes as JSON, "
        '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}], or [] if nothing in the picture fits.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{sent}" not in self.prompt:
            raise ConfigError(
                "The prompt has no place for the expression.", where="method.prompt", allowed=["{sent}"]
            )

    async def ground(
        self, talk: Conversation, session: SegmenterSession, expression: Expression
    ) -> Grounding:
        """Ask on each key frame, then track."""
        clip, tracks, told = session.clip, [], {}
        for frame in middles(len(clip), self.n_frames):
            picture = self.backbone.fit(clip.load([frame])[0])
            question = user(picture, self.prompt.replace("{sent}", expression.text))

            def read(words: str, size: tuple[int, int] = picture.shape[:2]) -> list[Box]:
                return read_boxes(words, self.backbone, size)

            boxes = await talk.ask_for(question, f"boxes on frame {frame}", read)
            told[str(frame)] = boxes
            if boxes:
                tracks.append(track_prompts(session, frame, [Prompt(box=box) for box in boxes]))
        track = MaskTrack.union(tracks, clip.size, len(clip))
        return Grounding(expression, track, no_target=not tracks, details={"boxes": told})

"""What methods share that make one heat map per looked-at frame with a language model: from maps to a track.

How a map comes about is the method's own. No publication that is followed here says how a video is read,
nor (but for boxes being asked for) how a map prompts the segmenter: those steps are options, marked so.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np

from refseg_bench.backbones.base import GroundingMLLM, VisualSettings
from refseg_bench.cache import Entry, fingerprint
from refseg_bench.config.schema import option, refuse_outside
from refseg_bench.errors import ConfigError
from refseg_bench.methods.agents.drawing import extent
from refseg_bench.methods.base import AttentionMethod, click, highest, track_prompts
from refseg_bench.methods.pointing import FloatHW, threshold, unit_range
from refseg_bench.segmenters.base import Prompt, Segmenter, middles
from refseg_bench.types import Clip, Expression, FloatTHW, Grounding, MaskTrack


@dataclass
class HeatMethod(AttentionMethod):
    """A heat map per frame; the frame whose map peaks highest prompts the segmenter."""

    #: Part of every cache key: bump when a map changes.
    version: ClassVar[int] = 1
    #: Options of the method itself that a map depends on before :meth:`heat`.
    read_with: ClassVar[tuple[str, ...]]

    backbone: GroundingMLLM  #: the multimodal language model
    segmenter: Segmenter  #: what turns the prompt into masks
    question: str = "{sent}"  #: what is asked about a frame, with ``{sent}`` (not stated)
    n_frames: int = 1  #: frames looked at, the middles of equal parts of a clip (not stated)
    frame_tokens: int = 1600  #: most tokens of a frame (Qwen; not stated)
    max_tiles: int = 12  #: most tiles of a frame (InternVL; not stated)
    #: The box of what lies around the peak at ``level`` and above, or a click on the peak (not stated).
    prompt: Literal["box", "click"] = "box"
    level: float = 0.5  #: for ``prompt=box``: share of the map's range (not stated)
    use_cache: bool = option(True, transient=True)  #: read and write the cache of maps

    def __post_init__(self) -> None:
        refuse_outside(self, 1, math.inf, "n_frames", "frame_tokens", "max_tiles")
        refuse_outside(self, 0, 1, "level")
        if "{sent}" not in self.question:
            raise ConfigError(
                "The question has no place for the expression.", where="method.question", allowed=["{sent}"]
            )

    @abstractmethod
    def read(self, clip: Clip, frames: Sequence[int], prompts: Sequence[str]) -> list[Entry]:
        """Ask the model; what it gave for each prompt, as the cache keeps it."""

    @abstractmethod
    def heat(self, entry: Entry) -> FloatTHW:
        """One map per frame ``(T, h, w)`` from what was read."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """One grounding per expression, in the order given."""
        frames = middles(len(clip), self.n_frames)
        entries = self._entries(clip, frames, [self.asked(expression.text) for expression in expressions])
        with self.segmenter.open(clip) as session:
            for expression in expressions:
                entry = entries[self.asked(expression.text)]
                heat_Thw = self.heat(entry)
                # A constant map points at nothing, which is an answer.
                point = highest(heat_Thw, frames)
                track, details = MaskTrack.empty(clip.size, len(clip)), self.told(entry)
                if point is not None:
                    prompt = click(point)
                    if self.prompt == "box":
                        box = peak_box(heat_Thw[frames.index(point.frame)], self.level)
                        prompt, details = Prompt(box=box), {**details, "box": box}
                    track = track_prompts(session, point.frame, [prompt])
                yield Grounding(
                    expression,
                    track,
                    point,
                    True if point is None else None,
                    {"heat": unit_range(heat_Thw)},
                    {"heat": tuple(frames)},
                    {"prompts": [self.asked(expression.text)], **details},
                )

    def asked(self, text: str) -> str:
        """The question about an expression."""
        return self.question.replace("{sent}", text)

    def told(self, entry: Entry) -> dict[str, Any]:
        """What a reader may want to know of an entry, as JSON."""
        return {}

    def visual_settings(self) -> VisualSettings:
        """How a frame becomes tokens."""
        return VisualSettings(frame_tokens=self.frame_tokens, max_tiles=self.max_tiles)

    def _entries(self, clip: Clip, frames: Sequence[int], prompts: Sequence[str]) -> dict[str, Entry]:
        """What was read for each prompt, from the cache or from the model."""
        common: dict[str, Any] = {}
        if self.cache.root is not None:
            common = {
                "stage": self.cache_folder,
                "version": self.version,
                "model": self.backbone.identity(),
                "visual": asdict(self.visual_settings()),
                "options": {name: getattr(self, name) for name in self.read_with},
                "clip": fingerprint((clip.frame_paths[frame] for frame in frames), upright=clip.upright),
            }
        return self.cache.through(common, prompts, lambda missing: self.read(clip, frames, missing))


def peak_box(heat_hw: FloatHW, level: float) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1), in [0, 1], of the cells at ``level`` and above around the peak.

    Args:
        heat_hw: a map that isn't constant.
        level: share of its range, 0 … 1.

    >>> import numpy as np
    >>> peak_box(np.float32([[0, 9, 6, 0, 8], [0, 6, 0, 0, 0]]), 0.5)
    (0.2, 0.0, 0.6, 1.0)
    """
    _, labels_hw = cv2.connectedComponents(threshold(heat_hw, level).astype(np.uint8), connectivity=8)
    height, width = heat_hw.shape
    x0, y0, x1, y1 = extent(labels_hw == labels_hw.flat[int(np.argmax(heat_hw))])
    return x0 / width, y0 / height, x1 / width, y1 / height

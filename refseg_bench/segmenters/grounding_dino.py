"""Words to boxes by Grounding-DINO, boxes to masks by another segmenter: the open pair of everyday use.

What takes no words goes straight to the other segmenter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image

from refseg_bench.backbones.lazy_torch import inference, torch
from refseg_bench.backbones.weights import Weights, choose_device, fetch, load_module, load_processor
from refseg_bench.config import schema
from refseg_bench.config.schema import option
from refseg_bench.segmenters.base import (
    Candidates,
    Prompt,
    Segmenter,
    SegmenterSession,
    TrackedMasks,
    TrackingDirection,
    united,
)
from refseg_bench.segmenters.sam_base import require_finite
from refseg_bench.types import Clip

Box = tuple[float, float, float, float]


@dataclass
class GroundingDino(Segmenter):
    """Grounding-DINO of transformers before another segmenter."""

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    #: What makes masks of its boxes: a node with ``_target_``, as in ``conf/segmenter``.
    masks: Segmenter  # as a config node: what the config layer checks and completes
    model: str = "IDEA-Research/grounding-dino-base"  #: hub id or local folder
    revision: str | None = None  #: commit, tag or branch of the hub repository
    box_threshold: float = 0.35  #: a box counts above this score; the model's own demo takes 0.35 to 0.4
    offline: bool = option(False, transient=True)  #: never ask the hub, only the cache
    device: str = option("auto", transient=True)  #: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``

    def open(self, clip: Clip) -> _GroundingDinoSession:
        """Start a session; the detector loads when words first need it."""
        return _GroundingDinoSession(clip, self)

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        return (self._detector, *(self.inner.weights() or ()))

    def check(self) -> None:
        """See the interface; the other segmenter's first, which may be offline."""
        self.inner.check()
        super().check()

    def report(self) -> Mapping[str, Any]:
        """Which code is in effect."""
        return {"masks": dict(self.inner.report())}

    @cached_property
    def inner(self) -> Segmenter:
        """The other segmenter, made at its first use."""
        made: Segmenter = schema.build(cast(Mapping[str, Any], self.masks), "segmenter.masks", "segmenter")
        return made

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """(model, processor), loaded at the first use."""
        from transformers import AutoProcessor
        from transformers import GroundingDinoForObjectDetection as Detector

        place = fetch(self._detector, offline=self.offline)
        model = load_module(Detector, place, torch.float32, choose_device(self.device))
        return model.eval(), load_processor(AutoProcessor, place)

    @property
    def _detector(self) -> Weights:
        patterns, kinds = ("*.json", "*.safetensors", "*.txt"), ("grounding-dino",)
        return Weights(self.model, self.revision, None, patterns, "segmenter=grounding_dino", kinds)


class _GroundingDinoSession(SegmenterSession):
    """A clip opened by both."""

    name = "grounding_dino"

    def __init__(self, clip: Clip, options: GroundingDino) -> None:
        self._inner = options.inner.open(clip)
        super().__init__(clip, self._inner.counters)
        self._options = options
        self.accepts = (*self._inner.accepts, "text")

    def _segment(self, frame: int, prompts: Sequence[Prompt], multimask: bool) -> list[Candidates]:
        out: list[Candidates] = []
        for prompt in prompts:
            if prompt.text is None:
                out += self._inner.segment(frame, [prompt], multimask=multimask)
                continue
            boxes, scores_K = self._detect(frame, prompt.text)
            if not boxes:
                out.append(Candidates(np.zeros((1, *self.clip.size), np.bool_), scores_K))
                continue
            found = self._inner.segment(frame, [Prompt(box=box) for box in boxes])
            masks_KHW = np.stack([candidates.best()[0] for candidates in found])
            if not multimask:
                masks_KHW, scores_K = np.logical_or.reduce(masks_KHW)[None], scores_K[:1]
            out.append(Candidates(masks_KHW, scores_K))
        return out

    def _propagate(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        parts: list[Prompt] = []
        owners: list[int] = []
        for row, prompt in enumerate(prompts):
            mine = [prompt]
            if prompt.text is not None:
                mine = [Prompt(box=box) for box in self._detect(frame, prompt.text)[0]]
            parts += mine
            owners += [row] * len(mine)
        if not parts:
            blank_NHW = np.zeros((len(prompts), *self.clip.size), np.bool_)
            return ((index, blank_NHW) for index in video)
        tracks = self._inner.propagate(frame, parts, frames=video, direction=direction)
        return united(tracks, owners, len(prompts))

    def close(self) -> None:
        """Close the other segmenter's session."""
        self._inner.close()

    @inference()
    def _detect(self, frame: int, phrase: str) -> tuple[list[Box], np.ndarray[Any, np.dtype[np.float32]]]:
        """Boxes in [0, 1] by descending score, and their scores; without any box the best score there was."""
        model, processor = self._options.loaded
        # The model was trained on lower case, each phrase ended by a full stop.
        text = phrase.lower().strip().rstrip(".") + "."
        with self.counters.timed("detect"):
            inputs = processor(
                images=Image.fromarray(self.clip.load([frame])[0]), text=text, return_tensors="pt"
            ).to(model.device)
            output = model(**inputs)
        score_Q = output.logits[0].sigmoid().max(dim=-1).values.float().cpu()
        boxes_Q4 = output.pred_boxes[0].float().cpu()
        require_finite(self.name, score_Q, boxes_Q4)
        boxes: list[Box] = []
        scores: list[float] = []
        for query in score_Q.argsort(descending=True, stable=True).tolist():
            cx, cy, w, h = boxes_Q4[query].tolist()
            x0, y0, x1, y1 = (min(1.0, max(0.0, v)) for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
            if float(score_Q[query]) > self._options.box_threshold and x0 < x1 and y0 < y1:
                boxes.append((x0, y0, x1, y1))
                scores.append(float(score_Q[query]))
        best = scores or [float(score_Q.max())]
        return boxes, np.array(best, np.float32)

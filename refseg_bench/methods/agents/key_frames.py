"""Which frames of a clip are looked at: grades by CLIP, and the choice by grades (arXiv 2602.03595).

What of Refer-Agent is no chat model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.backbones.weights import Weights, choose_device, from_pretrained
from refseg_bench.config.schema import option
from refseg_bench.types import Clip


@dataclass
class ClipScores:
    """CLIP of transformers.

    Attributes:
        model: hub id or local folder; ``null`` = no CLIP, all frames are alike (not in the paper).
        revision: commit, tag or branch of the hub repository.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        offline: never ask the hub.
    """

    model: str | None = "openai/clip-vit-base-patch32"
    revision: str | None = None
    device: str = option("auto", transient=True)
    offline: bool = option(False, transient=True)
    _loaded: tuple[Any, Any] | None = field(default=None, init=False, repr=False, compare=False)
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
        model, processor = self._ready()
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
        model, processor = self._ready()
        pixels = processor(images=frame_HWC, return_tensors="pt").to(model.device)
        return _unit(model.get_image_features(**pixels))

    def _ready(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoProcessor, CLIPModel

            (needed,) = self.weights()
            model = from_pretrained(CLIPModel, needed, offline=self.offline)
            processor = from_pretrained(AutoProcessor, needed, offline=self.offline)
            self._loaded = model.eval().to(choose_device(self.device)), processor
        return self._loaded


def _unit(features: Any) -> Any:
    """Features of length 1; newer versions of transformers wrap them."""
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)


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

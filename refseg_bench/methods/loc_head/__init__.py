"""Localization heads: a few attention heads of a language model show where it looks (arXiv 2503.06287).

The attention of a prompt's last token to a frame's tokens is read from a handful of heads, each map is
smoothed, and their sum gives a box for the segmenter. Which heads is found once per model (``finder``) and
belongs to the model's own YAML. What the released code leaves open is an option, marked "not stated".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import numpy as np

from refseg_bench.backbones.base import RolloutSettings
from refseg_bench.cache import Entry
from refseg_bench.errors import ConfigError
from refseg_bench.methods.base import refuse_below_1
from refseg_bench.methods.heat import HeatMethod
from refseg_bench.methods.pointing import FloatHW
from refseg_bench.types import Clip, FloatTHW


@dataclass
class LocHead(HeatMethod):
    """The summed maps of a model's localization heads.

    Attributes:
        heads: (layer, head) pairs; by default those of the backbone's YAML.
        n_heads: how many of them, from the first (3 in the paper, as others cite it).
        sigma: Gaussian smoothing of each head's map, in cells; 0 = none (not stated).
    """

    knows: ClassVar[str] = "where a few heads of a multimodal language model look"
    cache_folder: ClassVar[str] = "loc_head"
    read_with: ClassVar[tuple[str, ...]] = ("chosen",)

    heads: list[list[int]] = field(default_factory=list)
    n_heads: int = 3
    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_1(self, "n_heads")

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """The heads that are read.

        Raises:
            ConfigError: none is known, or they are no pairs of numbers of the model's layers.
        """
        if not self.heads:
            raise ConfigError(
                "No localization heads are known of this model.",
                where="method.heads",
                hint="`refseg heads backbone=NAME dataset=refcoco_unc dataset.split=train` finds them; put "
                "what it prints on the command line (backbone.loc_heads=…) or into the backbone's YAML.",
            )
        layers, known = self.backbone.layers(), [tuple(pair) for pair in self.heads]
        for pair in known:
            if len(pair) != 2 or not (0 <= pair[0] < layers and pair[1] >= 0):
                raise ConfigError(
                    f"{list(pair)} is no head of this model.",
                    where="method.heads",
                    allowed=[f"[layer, head], layer 0 … {layers - 1}"],
                )
        return [(layer, head) for layer, head in known][: self.n_heads]

    def read(self, clip: Clip, frames: Sequence[int], prompts: Sequence[str]) -> list[Entry]:
        """The maps of the heads on every frame ``(T, heads, h, w)``."""
        chosen = self.chosen
        first, last = min(layer for layer, _ in chosen), max(layer for layer, _ in chosen)
        rollout = RolloutSettings(start=first, end=last + 1)
        with self.backbone.open(clip.load(frames), self.visual_settings(), rollout) as model:
            seen = [model.heads(place, prompts, chosen) for place in range(len(frames))]
        return [{"maps": np.stack(maps)} for maps in zip(*seen, strict=True)]

    def heat(self, entry: Entry) -> FloatTHW:
        """The sum over the heads, each smoothed."""
        maps_TKhw = np.asarray(entry["maps"], np.float32)
        if self.sigma > 0:
            flat = [_smooth(map_hw, self.sigma) for map_hw in maps_TKhw.reshape(-1, *maps_TKhw.shape[2:])]
            maps_TKhw = np.stack(flat).reshape(maps_TKhw.shape)
        return np.asarray(maps_TKhw.sum(axis=1), np.float32)

    def told(self, entry: Entry) -> dict[str, Any]:
        """The heads."""
        return {"heads": [list(pair) for pair in self.chosen]}


def _smooth(map_hw: FloatHW, sigma: float) -> Any:
    return cv2.GaussianBlur(map_hw, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)

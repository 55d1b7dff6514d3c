"""What differs between model families, and nothing else: pixels, placeholders, layout, positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refseg_bench.backbones.base import VisualSettings
from refseg_bench.types import FloatTHW, Uint8THWC

#: A piece of a prompt: literal text, or (token id, how often).
Piece = str | tuple[int, int]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Visual:
    """A visual block, ready for the model.

    Attributes:
        inputs: pixel tensors and grids by the model's own argument names.
        head: the prompt up to and including the last visual token.
        tail: (before, after) the prompt's text.
        token: id of the visual tokens in ``head``.
        grid: (T, h, w) of the map that the visual tokens make.
        tiles: (rows, columns) of an image cut into tiles.
    """

    inputs: dict[str, Tensor]
    head: tuple[Piece, ...]
    tail: tuple[str, str]
    token: int
    grid: tuple[int, int, int]
    tiles: tuple[int, int] = (1, 1)


@dataclass
class MLLMFamily(ABC):
    """One family of models.

    Attributes:
        config: the checkpoint's config.
        preprocessing: the checkpoint's image-processor settings (mean, deviation); may be empty.
        positions: whose rule numbers the tokens, where transformers has changed its own: ``fixed`` (the
            one written here) or ``transformers`` (that of the installed version).
    """

    config: Any
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    positions: Literal["fixed", "transformers"] = "fixed"

    #: ``model_type`` of the configs this adapter serves.
    model_types: ClassVar[tuple[str, ...]]

    @property
    def text_config(self) -> Any:
        """The language model's part of the config."""
        return self.config.get_text_config()

    @abstractmethod
    def video_grid(self, size: tuple[int, int], frames: int, visual: VisualSettings) -> tuple[int, int, int]:
        """(T, h, w) of the video branch for frames of (height, width) pixels."""

    @abstractmethod
    def frame_grid(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """(h, w) of the frame branch."""

    @abstractmethod
    def video(self, frames_THWC: Uint8THWC, visual: VisualSettings) -> Visual:
        """The sampled frames as one video."""

    @abstractmethod
    def frame(self, frame_HWC: NDArray[np.uint8], visual: VisualSettings) -> Visual:
        """One frame as an image."""

    @abstractmethod
    def text_only(self) -> tuple[str, str]:
        """What stands before and after the text of a prompt without a visual block."""

    def unpack(self, values_N: FloatTHW, visual: Visual) -> FloatTHW:
        """Values of the visual tokens, in prompt order, as a map ``(T, h, w)``."""
        return values_N.reshape(visual.grid)

    def forward_inputs(self, model: Any, ids: Tensor, visual: Visual) -> dict[str, Any]:
        """Arguments of the forward pass over the head, positions left out."""
        return {"input_ids": ids, **visual.inputs}

    def head_positions(self, model: Any, ids: Tensor, visual: Visual) -> tuple[Tensor, int]:
        """Positions of the head's tokens ``(1, P)`` or ``(3, 1, P)``, and of the first token after it."""
        length = ids.shape[1]
        return torch.arange(length, device=ids.device)[None], length

    def text_positions(self, first: Tensor, length: int) -> Tensor:
        """Positions of ``length`` text tokens per row, from each row's first."""
        return first[:, None] + torch.arange(length, device=first.device)[None]

    def mean(self) -> tuple[float, ...]:
        """Channel means of the normalisation."""
        return tuple(self.preprocessing.get("image_mean") or self._mean)

    def std(self) -> tuple[float, ...]:
        """Channel deviations of the normalisation."""
        return tuple(self.preprocessing.get("image_std") or self._std)

    _mean: ClassVar[tuple[float, ...]] = CLIP_MEAN
    _std: ClassVar[tuple[float, ...]] = CLIP_STD


def pair(value: Any) -> tuple[int, int]:
    """A size given as one number or as (height, width)."""
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[1])
    return int(value), int(value)

"""InternVL3 (transformers' own conversion, ``-hf``): square tiles, no thumbnail, a line per video frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.base import VisualSettings
from refseg_bench.backbones.mllm import pixels
from refseg_bench.backbones.mllm.families.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MLLMFamily,
    Piece,
    Visual,
    pair,
)
from refseg_bench.types import FloatTHW, Uint8THWC

_SYSTEM = (
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。<|im_end|>\n"
)
_USER = "<|im_start|>user\n"
_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class InternVL(MLLMFamily):
    """InternVL3-hf."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    _mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    _std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a tile in pixels."""
        return pair(self.config.vision_config.image_size)

    @property
    def side(self) -> int:
        """Tokens along one side of a tile, after the pixel shuffle."""
        patches = self.tile[0] // pair(self.config.vision_config.patch_size)[0]
        return int(patches * float(self.config.downsample_ratio))

    def tiles(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """(rows, columns) of a single frame's tiling."""
        columns, rows = pixels.tiling(size, self.tile, visual.max_tiles if visual.multiscale else 1)
        return rows, columns

    def video_grid(self, size: tuple[int, int], frames: int, visual: VisualSettings) -> tuple[int, int, int]:
        """One tile per frame, whatever its shape."""
        return frames, self.side, self.side

    def frame_grid(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """Tiles joined, without a thumbnail."""
        rows, columns = self.tiles(size, visual)
        return rows * self.side, columns * self.side

    def video(self, frames_THWC: Uint8THWC, visual: VisualSettings) -> Visual:
        """A numbered line per frame, each squashed into one tile."""
        frames = pixels.resize_tensor(pixels.to_tensor(list(frames_THWC)), self.tile)
        token = int(self.config.image_token_id)
        head: list[Piece] = []
        before = _SYSTEM + _USER
        for number in range(1, len(frames_THWC) + 1):
            head += [f"{before}Frame{number}: <img>", (token, self.side**2)]
            before = "</img>\n"
        return Visual(
            {"pixel_values": pixels.normalise(frames, self.mean(), self.std())},
            tuple(head),
            ("</img>\n", _END),
            token,
            self.video_grid(frames_THWC.shape[1:3], len(frames_THWC), visual),
        )

    def frame(self, frame_HWC: NDArray[np.uint8], visual: VisualSettings) -> Visual:
        """The frame resized to its tiling and cut, row-major."""
        rows, columns = self.tiles(frame_HWC.shape[:2], visual)
        whole = pixels.resize_tensor(
            pixels.to_tensor([frame_HWC]), (rows * self.tile[0], columns * self.tile[1])
        )
        cut = pixels.cut_tiles(whole[0], rows, columns)
        token = int(self.config.image_token_id)
        return Visual(
            {"pixel_values": pixels.normalise(cut, self.mean(), self.std())},
            (_SYSTEM + _USER + "<img>", (token, rows * columns * self.side**2)),
            ("</img>\n", _END),
            token,
            (1, rows * self.side, columns * self.side),
            (rows, columns),
        )

    def text_only(self) -> tuple[str, str]:
        """The same system message, no visual block."""
        return _SYSTEM + _USER, _END

    def unpack(self, values_N: FloatTHW, visual: Visual) -> FloatTHW:
        """Frames stand one after the other; a frame's tiles are put together again."""
        if visual.tiles == (1, 1):
            return super().unpack(values_N, visual)
        return pixels.join_tiles(values_N, *visual.tiles, self.side)[None]

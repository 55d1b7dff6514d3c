"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: native-resolution patches, pairs of frames, 3-D positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refseg_bench.backbones.base import VisualSettings
from refseg_bench.backbones.mllm import pixels
from refseg_bench.backbones.mllm.families.base import HALF, MLLMFamily, Piece, Visual
from refseg_bench.types import Uint8THWC

#: Tokens below which qwen-vl-utils enlarges a frame.
_MIN_TOKENS = 4
#: The processors' own limit on an image, in tokens: single frames given by size are held to it.
_MAX_TOKENS = 16384
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_USER = "<|im_start|>user\n"
_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class QwenVL(MLLMFamily):
    """Qwen2-VL. The default system message is the one its template inserts."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    system: ClassVar[str] = _SYSTEM

    @property
    def factor(self) -> int:
        """Pixels per token and axis."""
        vision = self.config.vision_config
        return int(vision.patch_size) * int(vision.spatial_merge_size)

    def video_size(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """(height, width) of a video frame in pixels."""
        area = self.factor**2
        return pixels.smart_resize(*size, self.factor, _MIN_TOKENS * area, visual.video_tokens * area)

    def frame_size(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """(height, width) of a single frame: the *video* size times the scale, unless capped by tokens."""
        area = self.factor**2
        if visual.multiscale and visual.frame_tokens != -1:
            return pixels.smart_resize(*size, self.factor, _MIN_TOKENS * area, visual.frame_tokens * area)
        scale = visual.frame_scale if visual.multiscale else 1
        height, width = self.video_size(size, visual)
        return pixels.smart_resize(
            height * scale, width * scale, self.factor, _MIN_TOKENS * area, _MAX_TOKENS * area
        )

    def video_grid(self, size: tuple[int, int], frames: int, visual: VisualSettings) -> tuple[int, int, int]:
        """``(ceil(frames/2), h, w)``."""
        height, width = self.video_size(size, visual)
        cells = -(-frames // int(self.config.vision_config.temporal_patch_size))
        return cells, height // self.factor, width // self.factor

    def frame_grid(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """The video grid times the scale."""
        height, width = self.frame_size(size, visual)
        return height // self.factor, width // self.factor

    def video(self, frames_THWC: Uint8THWC, visual: VisualSettings) -> Visual:
        """One placeholder run for all frames."""
        size = self.video_size(frames_THWC.shape[1:3], visual)
        patches, thw = self._patches([pixels.resize_pil(frame, size) for frame in frames_THWC])
        grid = self.video_grid(frames_THWC.shape[1:3], len(frames_THWC), visual)
        token = int(self.config.video_token_id)
        return Visual(
            {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([thw])},
            self.video_head(grid, token),
            self.tail(),
            token,
            grid,
        )

    def frame(self, frame_HWC: NDArray[np.uint8], visual: VisualSettings) -> Visual:
        """One placeholder run for the frame; the temporal patch holds it twice."""
        size = self.frame_size(frame_HWC.shape[:2], visual)
        patches, thw = self._patches([pixels.resize_pil(frame_HWC, size)])
        grid = (1, *self.frame_grid(frame_HWC.shape[:2], visual))
        token = int(self.config.image_token_id)
        head = (self.system + _USER + "<|vision_start|>", (token, grid[1] * grid[2]))
        return Visual(
            {"pixel_values": patches, "image_grid_thw": torch.tensor([thw])}, head, self.tail(), token, grid
        )

    def video_head(self, grid: tuple[int, int, int], token: int) -> tuple[Piece, ...]:
        """The prompt up to the video's last token."""
        return (self.system + _USER + "<|vision_start|>", (token, grid[0] * grid[1] * grid[2]))

    def tail(self) -> tuple[str, str]:
        """The boundary token of the visual block belongs to the text's side, so that it is never shared."""
        return "<|vision_end|>", _END

    def text_only(self) -> tuple[str, str]:
        """The same system message, no visual block."""
        return self.system + _USER, _END

    def forward_inputs(self, model: Any, ids: Tensor, visual: Visual) -> dict[str, Any]:
        """Pixels with the marks of which tokens are image (1) or video (2)."""
        return {"input_ids": ids, "mm_token_type_ids": self._kinds(ids), **visual.inputs}

    def head_positions(self, model: Any, ids: Tensor, visual: Visual) -> tuple[Tensor, int]:
        """3-D positions; text goes on from the largest position so far, of any axis.

        transformers has changed the rule between its versions (from 5.3 on, text goes on from the
        block's larger *side*, which moves maps wherever time is longer than that), so it stands here
        as the models were trained with it and as DecAF's code met it in 4.52.1.
        """
        if self.positions == "transformers":
            return self._installed_positions(model, ids, visual)
        h, w = visual.grid[1:]
        blocks: list[Tensor] = []
        first = 0
        runs, lengths = torch.unique_consecutive(ids[0] == visual.token, return_counts=True)
        for seen, length in zip(runs.tolist(), lengths.tolist(), strict=True):
            if seen:
                cells = torch.floor(torch.arange(length // (h * w)) * self.cell_step).long()
                block = torch.stack(torch.meshgrid(cells, torch.arange(h), torch.arange(w), indexing="ij"))
            else:
                block = torch.arange(length).expand(3, -1)
            blocks.append(block.reshape(3, -1) + first)
            first = int(blocks[-1].max()) + 1
        return torch.cat(blocks, dim=1)[:, None].to(ids.device), first

    @property
    def cell_step(self) -> float:
        """How far apart two temporal cells of a video lie on the time axis."""
        return 1.0

    def _installed_positions(self, model: Any, ids: Tensor, visual: Visual) -> tuple[Tensor, int]:
        """By the rule of the transformers version that is installed."""
        given: dict[str, Any] = {k: v for k, v in visual.inputs.items() if k.endswith("grid_thw")}
        if self.cell_step != 1.0 and "video_grid_thw" in given:
            given["second_per_grid_ts"] = torch.tensor([1.0])
        # One text token more tells where the text goes on.
        longer = torch.cat([ids, ids[:, :1]], dim=1)
        positions, _ = model.model.get_rope_index(longer, mm_token_type_ids=self._kinds(longer), **given)
        return positions[..., :-1], int(positions[0, 0, -1])

    def text_positions(self, first: Tensor, length: int) -> Tensor:
        """Text moves along all three axes at once."""
        return super().text_positions(first, length)[None].expand(3, -1, -1)

    def _kinds(self, ids: Tensor) -> Tensor:
        kinds = (ids == int(self.config.image_token_id)).int()
        return kinds + 2 * (ids == int(self.config.video_token_id)).int()

    def _patches(self, frames: list[NDArray[np.uint8]]) -> tuple[Tensor, tuple[int, int, int]]:
        vision = self.config.vision_config
        return pixels.patchify(
            pixels.normalise(pixels.to_tensor(frames), self.mean(), self.std()),
            int(vision.patch_size),
            int(vision.spatial_merge_size),
            int(vision.temporal_patch_size),
        )


@dataclass
class Qwen25VL(QwenVL):
    """Qwen2.5-VL: the frame rate is never passed, so a temporal cell counts as one second."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    @property
    def cell_step(self) -> float:
        """``tokens_per_second``, for one second per cell."""
        return float(self.config.vision_config.tokens_per_second)


@dataclass
class Qwen3VL(QwenVL):
    """Qwen3-VL (beyond the paper): no default system message, a time stamp before each temporal cell.

    Sampled frames carry no rate; stamps take them as one per second, averaged over each pair.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    system: ClassVar[str] = ""
    _mean: ClassVar[tuple[float, ...]] = HALF
    _std: ClassVar[tuple[float, ...]] = HALF

    def video_head(self, grid: tuple[int, int, int], token: int) -> tuple[Piece, ...]:
        """One block per temporal cell."""
        depth = int(self.config.vision_config.temporal_patch_size)
        head: list[Piece] = []
        before = _USER
        for cell in range(grid[0]):
            seconds = cell * depth + (depth - 1) / 2
            head += [f"{before}<{seconds:.1f} seconds><|vision_start|>", (token, grid[1] * grid[2])]
            before = "<|vision_end|>"
        return tuple(head)

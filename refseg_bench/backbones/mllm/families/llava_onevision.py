"""LLaVA-OneVision: any-resolution tiles, here without base image and newline tokens.

Both are left out so that the visual tokens of a frame are one rectangle. The model then sees inputs
it was not trained on, which is what the method's authors did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refseg_bench.backbones.base import VisualSettings
from refseg_bench.backbones.mllm import pixels
from refseg_bench.backbones.mllm.families.base import HALF, MLLMFamily, Visual, pair
from refseg_bench.types import Uint8THWC

_HEAD = "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
_END = "<|im_end|><|im_start|>assistant\n"


@dataclass
class LlavaOnevision(MLLMFamily):
    """llava-onevision-*-ov-hf."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    _mean: ClassVar[tuple[float, ...]] = HALF
    _std: ClassVar[tuple[float, ...]] = HALF

    @property
    def tile(self) -> int:
        """Side of a tile in pixels."""
        return pair(self.config.vision_config.image_size)[0]

    @property
    def side(self) -> int:
        """Tokens along one side of a tile."""
        return self.tile // pair(self.config.vision_config.patch_size)[0]

    def canvas(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """(height, width) of the tiled canvas in pixels."""
        if not visual.multiscale:
            return self.tile, self.tile
        return pixels.best_canvas(size, [(int(h), int(w)) for h, w in self.config.image_grid_pinpoints])

    def video_grid(self, size: tuple[int, int], frames: int, visual: VisualSettings) -> tuple[int, int, int]:
        """Each frame squashed into one tile and pooled by two."""
        half = -(-self.side // 2)
        return frames, half, half

    def frame_grid(self, size: tuple[int, int], visual: VisualSettings) -> tuple[int, int]:
        """The canvas without its padding, shrunk where it is too large."""
        height, width = self.canvas(size, visual)
        grid = (height // self.tile * self.side, width // self.tile * self.side)
        rows, columns = pixels.unpadded(size, grid)
        return pixels.shrunk((rows.stop - rows.start, columns.stop - columns.start), self.side, self._most())

    def video(self, frames_THWC: Uint8THWC, visual: VisualSettings) -> Visual:
        """All frames in one run of tokens."""
        # The official video processor resizes tensors; its image processor takes Pillow.
        frames = pixels.resize_tensor(pixels.to_tensor(list(frames_THWC)), (self.tile, self.tile))
        grid = self.video_grid(frames_THWC.shape[1:3], len(frames_THWC), visual)
        return self._visual(frames, grid, int(self.config.video_token_id), (1, 1))

    def frame(self, frame_HWC: NDArray[np.uint8], visual: VisualSettings) -> Visual:
        """The frame fitted into its canvas, padded and cut into tiles."""
        size = (frame_HWC.shape[0], frame_HWC.shape[1])
        canvas = self.canvas(size, visual)
        padded = pixels.pad_centred(pixels.resize_pil(frame_HWC, pixels.fit_into(size, canvas)), canvas)
        rows, columns = canvas[0] // self.tile, canvas[1] // self.tile
        tiles = padded.reshape(rows, self.tile, columns, self.tile, 3).swapaxes(1, 2)
        return self._visual(
            pixels.to_tensor(list(tiles.reshape(-1, self.tile, self.tile, 3))),
            (1, *self.frame_grid(size, visual)),
            int(self.config.image_token_id),
            (rows, columns),
            size,
        )

    def text_only(self) -> tuple[str, str]:
        """The same system message, no visual block."""
        return f"{_HEAD}\n", _END

    def forward_inputs(self, model: Any, ids: Tensor, visual: Visual) -> dict[str, Any]:
        """Embeddings with the visual features in place: the model's own packing adds tokens we leave out."""
        embeds = model.get_input_embeddings()(ids)
        pixel_values = visual.inputs["pixel_values"].to(embeds.device, model.dtype)
        features = self._features(model, pixel_values)
        if visual.token == int(self.config.video_token_id):
            features = model.model.apply_pooling(features)
            flat = features.reshape(-1, features.shape[-1])
        else:
            flat = self._rectangle(features, visual)
        mask = (ids == visual.token)[..., None].expand_as(embeds)
        return {"inputs_embeds": embeds.masked_scatter(mask, flat.to(embeds.dtype))}

    def _most(self) -> int:
        return int(str(self.config.vision_aspect_ratio).removeprefix("anyres_max_"))

    def _visual(
        self,
        frames_TCHW: Tensor,
        grid: tuple[int, int, int],
        token: int,
        tiles: tuple[int, int],
        size: tuple[int, int] = (1, 1),
    ) -> Visual:
        values = pixels.normalise(frames_TCHW, self.mean(), self.std())
        return Visual(
            {"pixel_values": values, "image_sizes": torch.tensor([size])},
            (_HEAD, (token, grid[0] * grid[1] * grid[2])),
            ("\n", _END),
            token,
            grid,
            tiles,
        )

    def _features(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Projected features per tile ``(tiles, side², D)``."""
        layer = self.config.vision_feature_layer
        out = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        layers = [layer] if isinstance(layer, int) else list(layer)
        hidden = torch.cat([out.hidden_states[index] for index in layers], dim=-1)
        if self.config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        projected: Tensor = model.model.multi_modal_projector(hidden)
        return projected

    def _rectangle(self, features_KND: Tensor, visual: Visual) -> Tensor:
        """Tiles joined, padding cut off, shrunk to the grid: ``(h·w, D)``."""
        rows, columns = visual.tiles
        joined = features_KND.reshape(rows, columns, self.side, self.side, -1).permute(4, 0, 2, 1, 3)
        joined = joined.reshape(-1, rows * self.side, columns * self.side)
        height, width = (int(v) for v in visual.inputs["image_sizes"][0])
        keep_rows, keep_columns = pixels.unpadded((height, width), (joined.shape[1], joined.shape[2]))
        image = joined[:, keep_rows, keep_columns]
        if tuple(image.shape[1:]) != visual.grid[1:]:
            image = nn.functional.interpolate(image[None], list(visual.grid[1:]), mode="bilinear")[0]
        return image.flatten(1).transpose(0, 1)

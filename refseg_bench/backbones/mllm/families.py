"""What differs between the families of multimodal models, and nothing else: pixels, placeholders, positions.

To add a family, write a subclass of :class:`MLLMFamily` and give ``backbone.family`` its dotted path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.base import VisualSettings
from refseg_bench.backbones.lazy_torch import Tensor, nn, torch
from refseg_bench.backbones.mllm import pixels
from refseg_bench.errors import ConfigError
from refseg_bench.types import FloatTHW, Uint8THWC

#: A piece of a prompt: literal text, or (token id, how often).
Piece = str | tuple[int, int]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Around a user's message in ChatML, as the Qwen and InternVL families have it.
_USER = "<|im_start|>user\n"
_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, eq=False)
class Visual:
    """A visual block, ready for the model."""

    inputs: dict[str, Tensor]  #: pixel tensors and grids by the model's own argument names
    head: tuple[Piece, ...]  #: the prompt up to and including the last visual token
    tail: tuple[str, str]  #: (before, after) the prompt's text
    token: int  #: id of the visual tokens in ``head``
    grid: tuple[int, int, int]  #: (T, h, w) of the map that the visual tokens make
    tiles: tuple[int, int] = (1, 1)  #: (rows, columns) of an image cut into tiles


@dataclass
class MLLMFamily(ABC):
    """One family of models."""

    config: Any  #: the checkpoint's config
    #: The checkpoint's image-processor settings (mean, deviation); may be empty.
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    #: Whose rule numbers the tokens, where transformers has changed its own: ``fixed`` (the one written here)
    #: or ``transformers`` (that of the installed version).
    positions: Literal["fixed", "transformers"] = "fixed"
    #: Where pixels are normalised and cut into patches; resized they are on the CPU.
    device: torch.device | str = "cpu"

    #: ``model_type`` of the configs this adapter serves.
    model_types: ClassVar[tuple[str, ...]]

    @property
    def text_config(self) -> Any:
        """The language model's part of the config."""
        return self.config.get_text_config()

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

    def normalised(self, frames_TCHW: Tensor) -> Tensor:
        """uint8 frames as float32 on the device, less the mean, over the deviation."""
        return pixels.normalise(frames_TCHW.to(self.device), self.mean(), self.std())

    _mean: ClassVar[tuple[float, ...]] = CLIP_MEAN
    _std: ClassVar[tuple[float, ...]] = CLIP_STD


def pair(value: Any) -> tuple[int, int]:
    """A size given as one number or as (height, width)."""
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[1])
    return int(value), int(value)


# ── Qwen-VL ───────────────────────────────────────────────────────────────────

# Qwen2-VL, Qwen2.5-VL and Qwen3-VL: native-resolution patches, pairs of frames, 3-D positions.

#: Tokens below which qwen-vl-utils enlarges a frame.
_MIN_TOKENS = 4
#: The processors' own limit on an image, in tokens: single frames given by size are held to it.
_MAX_TOKENS = 16384
_QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


class QwenVL(MLLMFamily):
    """Qwen2-VL. The default system message is the one its template inserts."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    system: ClassVar[str] = _QWEN_SYSTEM

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
        if visual.multiscale and visual.frame_tokens > 0:
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
            self.normalised(pixels.to_tensor(frames)),
            int(vision.patch_size),
            int(vision.spatial_merge_size),
            int(vision.temporal_patch_size),
        )


class Qwen25VL(QwenVL):
    """Qwen2.5-VL: the frame rate is never passed, so a temporal cell counts as one second."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    @property
    def cell_step(self) -> float:
        """``tokens_per_second``, for one second per cell."""
        return float(self.config.vision_config.tokens_per_second)


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


# ── InternVL ──────────────────────────────────────────────────────────────────

# InternVL3 (transformers' own conversion, ``-hf``): square tiles, no thumbnail, a line per video frame.

_INTERNVL_SYSTEM = (
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。<|im_end|>\n"
)


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
        before = _INTERNVL_SYSTEM + _USER
        for number in range(1, len(frames_THWC) + 1):
            head += [f"{before}Frame{number}: <img>", (token, self.side**2)]
            before = "</img>\n"
        return Visual(
            {"pixel_values": self.normalised(frames)},
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
            {"pixel_values": self.normalised(cut)},
            (_INTERNVL_SYSTEM + _USER + "<img>", (token, rows * columns * self.side**2)),
            ("</img>\n", _END),
            token,
            (1, *self.frame_grid(frame_HWC.shape[:2], visual)),
            (rows, columns),
        )

    def text_only(self) -> tuple[str, str]:
        """The same system message, no visual block."""
        return _INTERNVL_SYSTEM + _USER, _END

    def unpack(self, values_N: FloatTHW, visual: Visual) -> FloatTHW:
        """Frames stand one after the other; a frame's tiles are put together again."""
        if visual.tiles == (1, 1):
            return super().unpack(values_N, visual)
        return pixels.join_tiles(values_N, *visual.tiles, self.side)[None]


# ── LLaVA-OneVision ───────────────────────────────────────────────────────────

# LLaVA-OneVision: any-resolution tiles, here without base image and newline tokens.
#
# Both are left out so that the visual tokens of a frame are one rectangle. The model then sees inputs
# it was not trained on, which is what the method's authors did.

_LLAVA_HEAD = "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
_LLAVA_END = "<|im_end|><|im_start|>assistant\n"


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
        most = int(str(self.config.vision_aspect_ratio).removeprefix("anyres_max_"))
        return pixels.shrunk((rows.stop - rows.start, columns.stop - columns.start), self.side, most)

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
        return f"{_LLAVA_HEAD}\n", _LLAVA_END

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

    def _visual(
        self,
        frames_TCHW: Tensor,
        grid: tuple[int, int, int],
        token: int,
        tiles: tuple[int, int],
        size: tuple[int, int] = (1, 1),
    ) -> Visual:
        return Visual(
            {"pixel_values": self.normalised(frames_TCHW), "image_sizes": torch.tensor([size])},
            (_LLAVA_HEAD, (token, grid[0] * grid[1] * grid[2])),
            ("\n", _LLAVA_END),
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


FAMILIES: tuple[type[MLLMFamily], ...] = (QwenVL, Qwen25VL, Qwen3VL, InternVL, LlavaOnevision)


def family_of(config: Any, preprocessing: Mapping[str, Any]) -> MLLMFamily:
    """The adapter of a checkpoint, by its config's ``model_type``.

    Raises:
        ConfigError: no adapter knows the type.
    """
    kind = str(getattr(config, "model_type", None))
    for family in FAMILIES:
        if kind in family.model_types:
            return family(config, preprocessing)
    raise ConfigError(
        f"Models of type '{kind}' can't be used: nothing is known of their visual tokens and layout.",
        allowed=[name for family in FAMILIES for name in family.model_types],
        hint="Choose another backbone, or give backbone.family the dotted path of your own adapter class.",
    )

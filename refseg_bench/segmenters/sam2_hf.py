"""SAM 2 and 2.1 through transformers, without Meta's package and its build chain; its trackers' core.

The model's own parts (image encoder, prompt encoder, mask decoder, memory attention, memory encoder)
are used as they are; how they are put together on a frame follows the official predictor, because
transformers' own tracking loop differs from it in numbers (``docs/segmenters.md`` lists where) and
takes objects one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import F, torch
from refseg_bench.backbones.weights import ModelError, Weights
from refseg_bench.segmenters.memory_tracking import Heads, Memory, Points, SamTracker, TrackerCore, sequence
from refseg_bench.segmenters.sam_base import IMAGENET_MEAN, IMAGENET_STD, Features, Resampling, square_pixels

#: Mask logits of an object that isn't in the frame.
_ABSENT = -1024.0
#: A mask prompt becomes logits of ±10.
_MASK_LOGIT = 10.0


@dataclass
class Sam2Hf(SamTracker):
    """SAM 2 / 2.1 by the transformers port."""

    name: ClassVar[str] = "sam2_hf"
    implementation: ClassVar[str] = "transformers Sam2VideoModel"

    model: str = "facebook/sam2-hiera-large"  #: hub id, local folder or ``shipped:NAME``

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        return (self._needs(self.model, patterns=("*.json", "*.safetensors"), kinds=("sam2_video", "sam2")),)

    def _load(self) -> HfTrackerCore:
        from transformers import Sam2VideoModel

        return HfTrackerCore(self._pretrained(Sam2VideoModel, self.weights()[0]), self.resampling)


class HfTrackerCore(TrackerCore):
    """:class:`~refseg_bench.segmenters.memory_tracking.TrackerCore` over a transformers tracker.

    The model is a ``Sam2VideoModel`` or ``Sam3TrackerVideoModel`` in evaluation mode, on its device;
    ``resampling`` squashes a frame to its square; ``mean`` and ``std`` are those of the colour channels.
    """

    def __init__(
        self,
        model: Any,
        resampling: Resampling,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.model = model
        self.rules = self.config = model.config
        size = self.config.image_size
        if not isinstance(size, int):
            if len(set(size)) != 1:
                raise ModelError(f"The tracker takes square frames; this model's image size is {size}.")
            size = int(size[0])
        self.image_size = size
        self.device = next(model.parameters()).device
        self.reach = max(self.config.num_maskmem, self.config.max_object_pointers_in_encoder)
        self._resampling = resampling
        self._mean, self._std = mean, std
        #: Size of low-resolution masks: a quarter of the image for patches of 16, more for smaller ones.
        self._low = tuple(model.prompt_encoder.mask_input_size)
        self._positions: torch.Tensor | None = None
        self._memory_positions: torch.Tensor | None = None
        #: What is the same in every step: positions on the image, and by number of objects "no prompt".
        self._constants: dict[Any, Any] = {}

    def encode(self, frame_HWC: NDArray[np.uint8]) -> Features:
        """Two fine levels, already projected for the decoder, and the top level: ``(1, C, h, w)`` each."""
        return self.features(
            square_pixels(frame_HWC, self.image_size, self._resampling, self.device, self._mean, self._std)
        )

    def features(self, pixels_B3SS: torch.Tensor) -> Features:
        """What :meth:`encode` gives of one frame, of a batch of normalised frames: ``(B, C, h, w)`` each."""
        output = self.model.get_image_features(pixels_B3SS, return_dict=True)
        if self._positions is None:
            self._positions = output.fpn_position_encoding[-1][:, :1]
        sizes = self.model.backbone_feature_sizes
        return tuple(
            # A copy of its own: the encoder's output is a view that would keep more alive.
            level.permute(1, 2, 0).reshape(len(pixels_B3SS), -1, *size).contiguous()
            for level, size in zip(output.fpn_hidden_states, sizes, strict=True)
        )

    def first_look(self, features: Features, n: int) -> torch.Tensor:
        """Without memory a learned embedding takes its place."""
        nothing: torch.Tensor = self.model.no_memory_embedding
        return (features[-1] + nothing.view(1, -1, 1, 1)).expand(n, -1, -1, -1)

    def recall(
        self, features: Features, n: int, memory: Memory, position: int, length: int, *, reverse: bool
    ) -> torch.Tensor:
        """Memory attention over spatial memories and object pointers, all objects at once."""
        model, config = self.model, self.config
        top = features[-1]
        channels, spatial = top.shape[1], tuple(top.shape[-2:])
        tokens, positions = [], []
        for slot, step in memory.spatial(position, reverse=reverse, slots=config.num_maskmem):
            tokens.append(sequence(step.memory_NChw))
            assert self._memory_positions is not None  # known with the first memory
            # Slot 0, the prompted frame, has the last of the learned temporal encodings.
            temporal = model.memory_temporal_positional_encoding[slot - 1]
            positions.append((self._memory_positions + temporal).expand(-1, n, -1))
        n_pointer_tokens = 0
        limit = config.max_object_pointers_in_encoder
        pointers = memory.pointers(position, reverse=reverse, length=length, limit=limit)
        if pointers:
            pointer_tokens, pointer_positions = self._pointer_tokens(pointers, min(length, limit), channels)
            tokens.append(pointer_tokens)
            positions.append(pointer_positions)
            n_pointer_tokens = len(pointer_tokens)
        attended: torch.Tensor = model.memory_attention(
            sequence(top).expand(-1, n, -1),
            torch.cat(tokens),
            self._positions,
            torch.cat(positions),
            n_pointer_tokens,
        )
        return attended.reshape(n, -1, channels).transpose(1, 2).reshape(n, channels, *spatial)

    def decode(self, *given: Any, **more: Any) -> Heads:
        """Prompt encoder and mask decoder for a batch of objects: :meth:`heads` of :meth:`predict`."""
        return self.heads(*self.predict(*given, **more))

    def predict(
        self,
        top_NChw: torch.Tensor,
        features: Features,
        points: Points | None,
        *,
        several: bool,
        masks_N1hw: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the decoder itself says, also of objects that it holds for absent (training needs it).

        Returns:
            Mask logits ``(N, K, h, w)``, predicted IoUs ``(N, K)``, output tokens ``(N, K, C)`` and
            presence logits ``(N, 1)``.
        """
        model, n = self.model, len(top_NChw)
        nothing = points is None and masks_N1hw is None
        if points is None:
            no_label = -torch.ones(n, 1, dtype=torch.int32, device=self.device)
            points = torch.zeros(n, 1, 2, device=self.device), no_label
        prompt = (points[0][:, None], points[1][:, None], None, masks_N1hw)
        sparse, dense = self._once(n if nothing else None, lambda: model.prompt_encoder(*prompt))
        places = self._once("places", model.get_image_wide_positional_embeddings)
        logits, ious, mask_tokens, presence = model.mask_decoder(
            image_embeddings=top_NChw,
            image_positional_embeddings=places.expand(n, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=[level.expand(n, -1, -1, -1) for level in features[:-1]],
        )
        # One prompt per batch row: the axis of prompts within a row has length 1.
        return logits[:, 0], ious[:, 0], mask_tokens[:, 0], presence.view(n, 1)

    def _once(self, what: Any, make: Callable[[], Any]) -> Any:
        """The same in every step (``None`` is not), made once; not where weights may change, in training."""
        if what is None or not torch.is_inference_mode_enabled():
            return make()
        if what not in self._constants:
            self._constants[what] = make()
        return self._constants[what]

    def heads(
        self,
        logits_NKhw: torch.Tensor,
        ious_NK: torch.Tensor,
        tokens_NKC: torch.Tensor,
        presence_N1: torch.Tensor,
    ) -> Heads:
        """The decoder's word with absent objects blanked, its best candidate and that one's pointer."""
        present_N1 = presence_N1 > 0
        logits_NKhw = torch.where(present_N1[..., None, None], logits_NKhw, _ABSENT).float()
        best_N = ious_NK.argmax(-1)
        rows_N = torch.arange(len(best_N), device=self.device)
        # Tokens of several masks come with one token each; the single mask comes with its own.
        token_NC = tokens_NKC[rows_N, best_N]
        return Heads(
            logits_NKhw,
            ious_NK,
            logits_NKhw[rows_N, best_N][:, None],
            self._pointer(self.model.object_pointer_proj(token_NC), present_N1),
            presence_N1,
        )

    def take_mask(self, features: Features, masks_N1SS: torch.Tensor) -> Heads:
        """The mask itself is the answer; the decoder only makes its pointer, from a single-mask pass."""
        model, n = self.model, len(masks_N1SS)
        top_NChw = features[-1].expand(n, -1, -1, -1)
        prompt_N1hw = _resized(model.mask_downsample(masks_N1SS), self._low)
        pointer_NC = self.decode(top_NChw, features, None, several=False, masks_N1hw=prompt_N1hw).pointer_NC
        logits_N1hw = _resized(masks_N1SS * (2 * _MASK_LOGIT) - _MASK_LOGIT, self._low)
        present_N1 = masks_N1SS.flatten(1).any(1)[:, None]
        return Heads(
            logits_N1hw,
            torch.ones(n, 1, device=self.device),
            logits_N1hw,
            self._pointer(pointer_NC, present_N1),
            present_N1.float() * (2 * _MASK_LOGIT) - _MASK_LOGIT,
        )

    def memorise(
        self, features: Features, logits_N1SS: torch.Tensor, presence_N1: torch.Tensor, *, from_prompt: bool
    ) -> torch.Tensor:
        """Memory encoder; a prompted mask goes in hard, a tracked one as probabilities."""
        model, n = self.model, len(logits_N1SS)
        # The encoder's mask grid: the image's for patches of 16.
        logits_N1SS = _resized(logits_N1SS, (4 * self._low[0], 4 * self._low[1]))
        shown = (logits_N1SS > 0).float() if from_prompt else torch.sigmoid(logits_N1SS)
        shown = shown * self.config.sigmoid_scale_for_mem_enc + self.config.sigmoid_bias_for_mem_enc
        memory_NChw: torch.Tensor
        memory_NChw, positions = model.memory_encoder(features[-1].expand(n, -1, -1, -1), shown)
        if self._memory_positions is None:
            self._memory_positions = sequence(positions[:1])
        absent = model.occlusion_spatial_embedding_parameter
        if absent is not None:
            memory_NChw = memory_NChw + (presence_N1 <= 0).float()[..., None, None] * absent[..., None, None]
        return memory_NChw

    def _pointer(self, pointer_NC: torch.Tensor, present_N1: torch.Tensor) -> torch.Tensor:
        present = present_N1.to(pointer_NC.dtype)
        absent: torch.Tensor = self.model.no_object_pointer
        return present * pointer_NC + (1 - present) * absent

    def _pointer_tokens(
        self, pointers: Sequence[tuple[int, Any]], limit: int, channels: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers cut into tokens of the memory's width, with their encoding of time."""
        model = self.model
        width = model.mem_dim
        stacked = torch.stack([step.pointer_NC for _, step in pointers])  # (L, N, C)
        count, n, _ = stacked.shape
        if self.config.enable_temporal_pos_encoding_for_object_pointers:
            distances = torch.tensor([distance for distance, _ in pointers], device=self.device)
            encoded = _sine(distances / (limit - 1), channels)
            encoded = model.temporal_positional_encoding_projection_layer(encoded)[:, None].expand(-1, n, -1)
        else:
            encoded = stacked.new_zeros(count, n, width)
        parts = channels // width
        if parts > 1:
            stacked = stacked.reshape(count, n, parts, width).permute(0, 2, 1, 3).flatten(0, 1)
            encoded = encoded.repeat_interleave(parts, dim=0)
        return stacked, encoded


def _resized(map_N1hw: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Bilinear with antialiasing; the very input where the size is right."""
    if tuple(map_N1hw.shape[-2:]) == size:
        return map_N1hw
    return F.interpolate(map_N1hw.float(), size=size, mode="bilinear", align_corners=False, antialias=True)


def _sine(values_L: torch.Tensor, width: int) -> torch.Tensor:
    """The transformer's sine and cosine code of real numbers: ``(L, width)``."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values_L.device).div(2, rounding_mode="floor")
    angles = values_L[:, None] / 10000 ** (2 * exponents / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

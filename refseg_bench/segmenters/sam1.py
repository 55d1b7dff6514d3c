"""SAM (the first) for images, through transformers' ``SamModel``: points and boxes, no video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refseg_bench.backbones.lazy_torch import F, inference, torch
from refseg_bench.backbones.weights import Weights
from refseg_bench.config.schema import option
from refseg_bench.errors import ConfigError
from refseg_bench.segmenters.base import Candidates, Prompt, SegmenterSession, TrackedMasks, TrackingDirection
from refseg_bench.segmenters.sam_base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Features,
    FeatureStore,
    Sam,
    autocast_for,
    batches,
    require_finite,
)
from refseg_bench.types import Clip


@dataclass
class Sam1(Sam):
    """SAM for images."""

    name: ClassVar[str] = "sam1"
    implementation: ClassVar[str] = "transformers SamModel"

    model: str = "facebook/sam-vit-huge"  #: hub id or local folder
    feature_device_mb: float = option(1000.0, transient=True)
    feature_host_mb: float = option(4000.0, transient=True)
    _model: Any = field(default=None, init=False, repr=False, compare=False)

    def open(self, clip: Clip) -> Sam1Session:
        """Start a session; the model loads at the first one."""
        if self._model is None:
            from transformers import SamModel

            self._model = self._pretrained(SamModel, self.weights()[0])
        return Sam1Session(clip, self._model, self)

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        return (self._needs(self.model, patterns=("*.json", "*.safetensors"), kinds=("sam",)),)


class Sam1Session(SegmenterSession):
    """An image, or the frames of a clip one by one, opened with SAM."""

    name = "sam1"
    accepts = ("points", "box")

    def __init__(self, clip: Clip, model: Any, options: Sam1) -> None:
        super().__init__(clip)
        self._model = model
        self._options = options
        self._device = next(model.parameters()).device
        self._autocast = autocast_for(options.precision, self._device)
        self._side = int(model.config.vision_config.image_size)
        scale = self._side / max(clip.size)
        #: (height, width) of the frame on the model's square; the rest is padding.
        self._inner = (max(1, int(clip.size[0] * scale + 0.5)), max(1, int(clip.size[1] * scale + 0.5)))
        self.features = FeatureStore(self._encode, self._device, options, self.counters)

    def _segment(self, frame: int, prompts: Sequence[Prompt], multimask: bool) -> list[Candidates]:
        features = self.features.get(frame)
        out: dict[int, Candidates] = {}
        with self.counters.timed("segment"):
            for rows in batches(prompts, self._options.batch_size):
                found = self._decode(features, [prompts[row] for row in rows], multimask)
                out.update(zip(rows, found, strict=True))
        return [out[row] for row in range(len(prompts))]

    def _propagate(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        """The best mask of the one frame there is: SAM can't track."""
        if len(video) > 1:
            raise ConfigError(
                "Segmenter 'sam1' segments images; it can't follow an object through a video.",
                where=self.clip.id,
                allowed=("sam2", "sam2_hf", "sam3"),
                hint="Choose a video segmenter with segmenter=NAME.",
            )
        candidates = self._segment(frame, prompts, multimask=True)
        self.counters.propagated_frames += 1
        return iter([(frame, np.stack([candidate.best()[0] for candidate in candidates]))])

    def close(self) -> None:
        """Drop the features."""
        self.features.clear()

    @inference()
    def _encode(self, frame: int) -> Features:
        with self.counters.timed("encode"):
            height, width = self._inner
            image = Image.fromarray(self.clip.load([frame])[0])
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
            normal = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
            square = np.zeros((1, 3, self._side, self._side), np.float32)
            square[0, :, :height, :width] = normal.transpose(2, 0, 1)
            with self._autocast():
                features = self._model.get_image_embeddings(torch.from_numpy(square).to(self._device))
            return (features.contiguous(),)

    @inference()
    def _decode(self, features: Features, prompts: Sequence[Prompt], several: bool) -> list[Candidates]:
        self.counters.decoder_calls += 1
        corner = torch.tensor([self._inner[1], self._inner[0]], dtype=torch.float32, device=self._device)
        arguments: dict[str, torch.Tensor] = {}
        if prompts[0].points:
            points = torch.tensor([prompt.points for prompt in prompts], device=self._device)
            arguments["input_points"] = (points * corner)[None]
            labels = torch.tensor([prompt.labels for prompt in prompts], device=self._device)
            arguments["input_labels"] = labels[None]
        if prompts[0].box is not None:
            boxes = torch.tensor([prompt.box for prompt in prompts], device=self._device)
            arguments["input_boxes"] = (boxes * corner.repeat(2))[None]
        with self._autocast():
            output = self._model(image_embeddings=features[0], multimask_output=several, **arguments)
        require_finite(self.name, output.pred_masks, output.iou_scores)
        logits, ious = output.pred_masks[0].float(), output.iou_scores[0].float().cpu().numpy()
        return [Candidates(self._at_clip_size(one), iou_K) for one, iou_K in zip(logits, ious, strict=True)]

    def _at_clip_size(self, logits_Khw: torch.Tensor) -> NDArray[np.bool_]:
        """To the model's square, without the padding, to the clip: two bilinear steps, as SAM does."""
        square = F.interpolate(
            logits_Khw[None], (self._side, self._side), mode="bilinear", align_corners=False
        )
        inner = square[..., : self._inner[0], : self._inner[1]]
        enlarged = F.interpolate(inner, self.clip.size, mode="bilinear", align_corners=False)
        masks_KHW: NDArray[np.bool_] = (enlarged[0] > 0).cpu().numpy()
        return masks_KHW

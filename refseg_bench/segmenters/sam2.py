"""SAM 2 and 2.1 by Meta's own package, driven frame by frame with shared features.

The package's video predictor keeps the features of a single frame and takes objects one by one. Here
its model's building blocks are called directly, with features computed once per clip and all objects
in one batch; the order of things is that of the predictor (:mod:`.memory_tracking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from refseg_bench.backbones.weights import Weights, choose_device, fetch
from refseg_bench.segmenters import sam2_package
from refseg_bench.segmenters.memory_tracking import Heads, Memory, SamTracker, Step, TrackerCore, sequence
from refseg_bench.segmenters.sam2_package import ModelSize, Release
from refseg_bench.segmenters.sam_base import Features, Resampling, square_pixels


@dataclass
class Sam2(SamTracker):
    """SAM 2 / 2.1 by Meta's package.

    Attributes:
        release: ``sam2`` (DecAF's) or ``sam2.1``.
        size: Hiera size.
        checkpoint: local ``.pt`` file; ``None`` = from the hub.
        repo: hub id to fetch from; ``None`` = the published one of this release and size.
        architecture: YAML of another architecture than the published ones.
    """

    name: ClassVar[str] = "sam2"
    implementation: ClassVar[str] = "sam2 package"
    packages: ClassVar[tuple[str, ...]] = ("sam2",)

    release: Release = "sam2"
    size: ModelSize = "large"
    checkpoint: Path | None = None
    repo: str | None = None
    architecture: Path | None = None

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        if self.checkpoint is not None:
            return (Weights(str(self.checkpoint), component="segmenter=sam2"),)
        repo = self.repo or sam2_package.hub_repo(self.release, self.size)
        return (self._needs(repo, sam2_package.checkpoint_name(self.release, self.size)),)

    def _load(self) -> _PackageCore:
        sam2_package.import_sam2()
        device = choose_device(self.device)
        path = fetch(self.weights()[0], offline=self.offline)
        model = sam2_package.build(
            self.architecture or sam2_package.architecture_file(self.release, self.size)
        )
        sam2_package.load_checkpoint(model, path)
        return _PackageCore(model.to(device), self.resampling)


class _PackageCore(TrackerCore):
    """:class:`~refseg_bench.segmenters.memory_tracking.TrackerCore` over ``SAM2Base``."""

    def __init__(self, model: Any, resampling: Resampling) -> None:
        self.model = self.rules = model
        self.image_size = int(model.image_size)
        self.device: torch.device = model.device
        self.reach = max(
            model.num_maskmem * model.memory_temporal_stride_for_eval, model.max_obj_ptrs_in_encoder
        )
        self._resampling = resampling
        self._positions: list[torch.Tensor] = []
        self._memory_positions: list[torch.Tensor] = []

    def encode(self, frame_HWC: NDArray[np.uint8]) -> Features:
        """The pyramid's levels, the fine ones already projected for the decoder: ``(1, C, h, w)`` each."""
        output = self.model.forward_image(
            square_pixels(frame_HWC, self.image_size, self._resampling, self.device)
        )
        levels = self.model.num_feature_levels
        if not self._positions:
            self._positions = list(output["vision_pos_enc"][-levels:])
        return tuple(output["backbone_fpn"][-levels:])

    def first_look(self, features: Features, n: int) -> torch.Tensor:
        """Without memory a learned embedding takes its place."""
        return self._fuse(features, n, 0, {}, 1, is_init_cond_frame=True, track_in_reverse=False)

    def recall(
        self, features: Features, n: int, memory: Memory, position: int, length: int, *, reverse: bool
    ) -> torch.Tensor:
        """Memory attention over spatial memories and object pointers, all objects at once."""
        outputs = {
            "cond_frame_outputs": {memory.start: self._as_output(memory.prompted)},
            "non_cond_frame_outputs": {
                known: self._as_output(step) for known, step in memory.followed.items()
            },
        }
        return self._fuse(
            features, n, position, outputs, length, is_init_cond_frame=False, track_in_reverse=reverse
        )

    def decode(
        self,
        top_NChw: torch.Tensor,
        features: Features,
        points_NP2: torch.Tensor | None,
        labels_NP: torch.Tensor | None,
        *,
        several: bool,
    ) -> Heads:
        """Prompt encoder and mask decoder for a batch of objects."""
        prompt = None if points_NP2 is None else {"point_coords": points_NP2, "point_labels": labels_NP}
        outputs = self.model._forward_sam_heads(
            backbone_features=top_NChw,
            point_inputs=prompt,
            mask_inputs=None,
            high_res_features=self._fine(features, len(top_NChw)),
            multimask_output=several,
        )
        return self._heads(outputs)

    def take_mask(self, features: Features, masks_N1SS: torch.Tensor) -> Heads:
        """The mask itself is the answer; the decoder only makes its pointer."""
        n = len(masks_N1SS)
        outputs = self.model._use_mask_as_output(
            features[-1].expand(n, -1, -1, -1), self._fine(features, n), masks_N1SS
        )
        return self._heads(outputs)

    def memorise(
        self, features: Features, logits_N1SS: torch.Tensor, presence_N1: torch.Tensor, *, from_prompt: bool
    ) -> torch.Tensor:
        """Memory encoder; a prompted mask goes in hard, a tracked one as probabilities."""
        memory: torch.Tensor
        memory, positions = self.model._encode_new_memory(
            current_vision_feats=[sequence(features[-1]).expand(-1, len(logits_N1SS), -1)],
            feat_sizes=[tuple(features[-1].shape[-2:])],
            pred_masks_high_res=logits_N1SS,
            object_score_logits=presence_N1,
            is_mask_from_pts=from_prompt,
        )
        if not self._memory_positions:
            self._memory_positions = [level[:1].clone() for level in positions]
        return memory

    def _fuse(
        self, features: Features, n: int, position: int, outputs: dict[str, Any], length: int, **mode: bool
    ) -> torch.Tensor:
        fused: torch.Tensor = self.model._prepare_memory_conditioned_features(
            frame_idx=position,
            current_vision_feats=[sequence(features[-1]).expand(-1, n, -1)],
            current_vision_pos_embeds=[sequence(self._positions[-1]).expand(-1, n, -1)],
            feat_sizes=[tuple(features[-1].shape[-2:])],
            output_dict=outputs,
            num_frames=length,
            **mode,
        )
        return fused

    def _fine(self, features: Features, n: int) -> list[torch.Tensor] | None:
        """The decoder's high-resolution inputs."""
        return [level.expand(n, -1, -1, -1) for level in features[:-1]] or None

    def _as_output(self, step: Step) -> dict[str, Any]:
        """A step as the package keeps it."""
        n = len(step.memory_NChw)
        return {
            "maskmem_features": step.memory_NChw,
            "maskmem_pos_enc": [level.expand(n, -1, -1, -1) for level in self._memory_positions],
            "pred_masks": step.logits_N1hw,
            "obj_ptr": step.pointer_NC,
            "object_score_logits": step.presence_N1,
        }

    @staticmethod
    def _heads(outputs: tuple[torch.Tensor, ...]) -> Heads:
        candidates, _, ious, best, _, pointer, presence = outputs
        return Heads(candidates, ious, best, pointer, presence)

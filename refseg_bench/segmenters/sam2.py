"""SAM 2 and 2.1 by Meta's own package, driven frame by frame with shared features.

The package's video predictor keeps the features of a single frame and takes objects one by one. Here
its model's building blocks are called directly, with features computed once per clip and all objects
in one batch; the order of things is that of the predictor (:mod:`.memory_tracking`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from refseg_bench.backbones.weights import Weights, choose_device, fetch, identity
from refseg_bench.config.schema import knob
from refseg_bench.segmenters import holes, sam2_package
from refseg_bench.segmenters.features import Features
from refseg_bench.segmenters.holes import HoleFilling
from refseg_bench.segmenters.memory_tracking import Heads, Memory, Step, TrackingSession
from refseg_bench.segmenters.pixels import (
    Precision,
    Resampling,
    autocast_for,
    square_pixels,
)
from refseg_bench.segmenters.sam2_package import ModelSize, Release
from refseg_bench.types import Clip


@dataclass
class Sam2:
    """SAM 2 / 2.1 by Meta's package.

    Attributes:
        release: ``sam2`` (DecAF's) or ``sam2.1``.
        size: Hiera size.
        checkpoint: local ``.pt`` file; ``None`` = from the hub.
        repo: hub id to fetch from; ``None`` = the published one of this release and size.
        revision: commit, tag or branch of the hub repository.
        architecture: YAML of another architecture than the published ones.
        offline: never ask the hub, only the cache.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or ``bf16`` autocast.
        resampling: filter that squashes a frame to the model's square; ``bicubic`` is the official
            video predictor's.
        fill_holes: ``own`` (needs no extension), ``extension`` (the package's compiled kernel, refused
            where it is missing) or ``off``.
        hole_area: largest hole to fill, in pixels of the low-resolution mask.
        batch_size: objects, or clicks of a frame, in one pass of the model.
        feature_device_mb: frame features kept on an accelerator; then in host memory …
        feature_host_mb: … up to this; beyond both they are computed again.
    """

    release: Release = "sam2"
    size: ModelSize = "large"
    checkpoint: Path | None = None
    repo: str | None = None
    revision: str | None = None
    architecture: Path | None = None
    offline: bool = knob(False, transient=True)
    device: str = knob("auto", transient=True)
    precision: Precision = "fp32"
    resampling: Resampling = "bicubic"
    fill_holes: HoleFilling = "own"
    hole_area: int = 8
    batch_size: int = knob(64, transient=True)
    feature_device_mb: float = knob(6000.0, transient=True)
    feature_host_mb: float = knob(12000.0, transient=True)
    _core: _PackageCore | None = field(default=None, init=False, repr=False, compare=False)

    packages: ClassVar[tuple[str, ...]] = ("sam2",)

    def open(self, clip: Clip) -> TrackingSession:
        """Start a session; the model loads at the first one."""
        if self.fill_holes == "extension":
            holes.require_extension()
        if self._core is None:
            self._core = self._load()
        fillers = {"own": holes.fill_holes, "extension": holes.fill_holes_with_extension, "off": None}
        fill = fillers[self.fill_holes]
        return TrackingSession(
            clip,
            self._core,
            device_mb=self.feature_device_mb,
            host_mb=self.feature_host_mb,
            batch_size=self.batch_size,
            fill=None if fill is None else partial(fill, max_area=self.hole_area),
            autocast=autocast_for(self.precision, self._core.device),
            name="sam2",
        )

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        component = "segmenter=sam2"
        if self.checkpoint is not None:
            return (Weights(str(self.checkpoint), component=component),)
        return (
            Weights(
                self.repo or sam2_package.hub_repo(self.release, self.size),
                self.revision,
                sam2_package.checkpoint_name(self.release, self.size),
                component=component,
            ),
        )

    def environment(self) -> Mapping[str, Any]:
        """Facts for the environment record."""
        return {
            "weights": [identity(needed) for needed in self.weights()],
            "hole_filling": holes.report(self.fill_holes, self.hole_area),
            "precision": self.precision,
            "implementation": "sam2 package",
        }

    def _load(self) -> _PackageCore:
        sam2_package.import_sam2()
        device = choose_device(self.device)
        path = fetch(self.weights()[0], offline=self.offline)
        model = sam2_package.build(
            self.architecture or sam2_package.architecture_file(self.release, self.size)
        )
        sam2_package.load_checkpoint(model, path)
        return _PackageCore(model.to(device), self.resampling)


class _PackageCore:
    """:class:`~refseg_bench.segmenters.memory_tracking.TrackerCore` over ``SAM2Base``."""

    def __init__(self, model: Any, resampling: Resampling) -> None:
        self.model = model
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

    def wants_several(self, n_points: int) -> bool:
        """Three masks for up to one point; with more points the prompt is no longer ambiguous."""
        model = self.model
        return bool(
            model.multimask_output_in_sam
            and model.multimask_min_pt_num <= n_points <= model.multimask_max_pt_num
            and (n_points > 0 or model.multimask_output_for_tracking)
        )

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
            current_vision_feats=[_sequence(features[-1]).expand(-1, len(logits_N1SS), -1)],
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
            current_vision_feats=[_sequence(features[-1]).expand(-1, n, -1)],
            current_vision_pos_embeds=[_sequence(self._positions[-1]).expand(-1, n, -1)],
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


def _sequence(map_NChw: torch.Tensor) -> torch.Tensor:
    """``(N, C, h, w)`` → ``(h·w, N, C)``."""
    return map_NChw.flatten(2).permute(2, 0, 1)

"""SAM 2 and 2.1 by Meta's own package, driven frame by frame with shared features.

The package's video predictor keeps the features of a single frame and takes objects one by one. Here
its model's building blocks are called directly, with features computed once per clip and all objects
in one batch; the order of things is that of the predictor (:mod:`.memory_tracking`).

The package initialises the global Hydra when it is imported, and its own builders compose their
config through that global. Here the import leaves Hydra as it was, and the model is built from the
package's YAML alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.backbones.weights import ModelError, Weights, choose_device, fetch, refuse_changed
from refseg_bench.errors import ConfigError, require
from refseg_bench.segmenters.memory_tracking import (
    Heads,
    Memory,
    Points,
    SamTracker,
    Step,
    TrackerCore,
    sequence,
)
from refseg_bench.segmenters.sam_base import Features, Resampling, square_pixels

Release = Literal["sam2", "sam2.1"]
ModelSize = Literal["tiny", "small", "base_plus", "large"]

_LETTER = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


@dataclass
class Sam2(SamTracker):
    """SAM 2 / 2.1 by Meta's package."""

    name: ClassVar[str] = "sam2"
    implementation: ClassVar[str] = "sam2 package"
    packages: ClassVar[tuple[str, ...]] = ("torch", "sam2")

    release: Release = "sam2"  #: ``sam2`` (DecAF's) or ``sam2.1``
    size: ModelSize = "large"  #: Hiera size
    checkpoint: Path | None = None  #: local ``.pt`` file; ``None`` = from the hub
    repo: str | None = None  #: hub id to fetch from; ``None`` = the published one of this release and size
    architecture: Path | None = None  #: YAML of another architecture than the published ones

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        if self.checkpoint is None:
            repo = self.repo or hub_repo(self.release, self.size)
            needed = self._needs(repo, checkpoint_name(self.release, self.size))
        else:
            needed = Weights(str(self.checkpoint), component="segmenter=sam2")
        if self.architecture is None:
            return (needed,)
        return (needed, Weights(str(self.architecture), component="segmenter.architecture"))

    def _load(self) -> _PackageCore:
        import_sam2()
        device = choose_device(self.device)
        path = fetch(self.weights()[0], offline=self.offline)
        with device:  # the host never holds the model
            model = build(self.architecture or architecture_file(self.release, self.size))
        load_checkpoint(model.to(device), path)
        refuse_changed(path)
        return _PackageCore(model, self.resampling)


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
        self, top_NChw: torch.Tensor, features: Features, points: Points | None, *, several: bool
    ) -> Heads:
        """Prompt encoder and mask decoder for a batch of objects."""
        prompt = points and {"point_coords": points[0], "point_labels": points[1]}
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


# ── building from the package ────────────────────────────────────────────────


def import_sam2() -> ModuleType:
    """Import ``sam2`` without leaving a trace in Hydra's global state.

    Raises:
        MissingExtra: the package is not installed.
    """
    if "sam2" in sys.modules:
        return sys.modules["sam2"]
    require("sam2", "The segmenter 'sam2'")
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    if GlobalHydra.instance().is_initialized():
        # The package then leaves the global alone.
        import sam2

        return sam2  # type: ignore[no-any-return]
    # Besides the global itself the package sets Hydra's compatibility version: restore everything.
    state = Singleton.get_state()
    try:
        import sam2
    finally:
        Singleton.set_state(state)
    return sam2  # type: ignore[no-any-return]


def architecture_file(release: Release, size: ModelSize) -> Path:
    """The package's YAML of a published model."""
    package = Path(str(import_sam2().__file__)).parent
    return package / "configs" / release / f"{release}_hiera_{_LETTER[size]}.yaml"


def hub_repo(release: Release, size: ModelSize) -> str:
    """The hub id of a published model."""
    return f"facebook/{release}-hiera-{size.replace('_', '-')}"


def checkpoint_name(release: Release, size: ModelSize) -> str:
    """The checkpoint's file name on the hub (and at Meta's download site)."""
    return f"{release}_hiera_{size}.pt"


def build(architecture: Path, image_size: int | None = None) -> Any:
    """An untrained ``SAM2Base`` from a YAML of the package's form, with the video predictor's
    post-processing, in evaluation mode, on torch's default device.

    Raises:
        ConfigError: no such file, or it has no ``model`` node.
    """
    import_sam2()
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if not architecture.is_file():
        raise ConfigError(
            "The SAM 2 architecture file is missing.",
            where=architecture,
            hint="Leave segmenter.architecture empty for the published models.",
        )
    node = OmegaConf.select(OmegaConf.load(architecture), "model")
    if node is None:
        raise ConfigError("The SAM 2 architecture file has no node 'model'.", where=architecture)
    # What the package's builder adds for video: a stable single mask or the best of three, and hard
    # masks of prompted frames in memory.
    OmegaConf.update(
        node,
        "sam_mask_decoder_extra_args",
        {
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        force_add=True,
    )
    OmegaConf.update(node, "binarize_mask_from_pts_for_mem_enc", True, force_add=True)
    if image_size is not None:
        OmegaConf.update(node, "image_size", image_size, force_add=True)
    return instantiate(node, _recursive_=True).eval()


def load_checkpoint(model: Any, path: Path) -> None:
    """Load a ``.pt`` checkpoint (tensors only, no code runs) or a ``.safetensors`` file strictly.

    Raises:
        ModelError: unreadable, or keys missing or left over.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path, str(model.device))
        else:
            state = torch.load(path, map_location=model.device, weights_only=True)
        state = state.get("model", state)
        given = set(dict(**state))  # what takes no names but text
    except ImportError:
        raise
    except FileNotFoundError:
        raise ModelError(
            "The checkpoint is missing.", where=path, hint="Correct segmenter.checkpoint."
        ) from None
    except Exception as error:  # of a damaged file the unpickler makes whatever
        raise ModelError(
            f"The checkpoint can't be read as tensors ({type(error).__name__}).",
            where=path,
            hint="Fetch it again; a file that holds code is refused on purpose.",
        ) from error
    wanted = set(model.state_dict())
    missing, unexpected = sorted(wanted - given), sorted(given - wanted)
    if missing or unexpected:
        raise ModelError(
            f"The checkpoint doesn't fit the architecture: {len(missing)} tensors missing "
            f"({', '.join(missing[:2])} …), {len(unexpected)} unknown ({', '.join(unexpected[:2])} …).",
            where=path,
            hint="Set segmenter.release, segmenter.size or segmenter.architecture to what was trained.",
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            "The checkpoint's tensors have other shapes than the architecture's: "
            + str(error).splitlines()[-1].strip(),
            where=path,
            hint="Set segmenter.size to the size that was trained.",
        ) from error

"""SAM 2 and 2.1 through transformers: ``Sam2VideoModel``, without Meta's package and its build chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch

from refseg_bench.backbones.weights import (
    Weights,
    choose_device,
    here_only,
    identity,
    offline_by_environment,
    told,
)
from refseg_bench.config.schema import knob
from refseg_bench.segmenters import holes
from refseg_bench.segmenters.hf_tracker import HfTrackerCore
from refseg_bench.segmenters.holes import HoleFilling
from refseg_bench.segmenters.memory_tracking import TrackingSession
from refseg_bench.segmenters.pixels import Precision, Resampling, autocast_for
from refseg_bench.types import Clip


@dataclass
class Sam2Hf:
    """SAM 2 / 2.1 by the transformers port.

    Attributes:
        model: hub id or local folder.
        revision: commit, tag or branch of the hub repository.
        offline: never ask the hub, only the cache.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or ``bf16`` autocast.
        resampling: filter that squashes a frame to the model's square. ``bicubic`` is what the
            official video predictor does, ``bilinear`` what the processors of transformers do.
        fill_holes: ``own`` (needs no extension), ``extension`` (Meta's compiled kernel, refused where
            it is missing) or ``off``.
        hole_area: largest hole to fill, in pixels of the low-resolution mask.
        batch_size: objects, or clicks of a frame, in one pass of the model.
        feature_device_mb: frame features kept on an accelerator; then in host memory …
        feature_host_mb: … up to this; beyond both they are computed again.
    """

    model: str = "facebook/sam2-hiera-large"
    revision: str | None = None
    offline: bool = knob(False, transient=True)
    device: str = knob("auto", transient=True)
    precision: Precision = "fp32"
    resampling: Resampling = "bicubic"
    fill_holes: HoleFilling = "own"
    hole_area: int = 8
    batch_size: int = knob(64, transient=True)
    feature_device_mb: float = knob(6000.0, transient=True)
    feature_host_mb: float = knob(12000.0, transient=True)
    _core: HfTrackerCore | None = field(default=None, init=False, repr=False, compare=False)

    packages: ClassVar[tuple[str, ...]] = ("transformers",)

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
            name="sam2_hf",
        )

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        patterns = ("*.json", "*.safetensors")
        return (Weights(self.model, self.revision, patterns=patterns, component="segmenter=sam2_hf"),)

    def environment(self) -> Mapping[str, Any]:
        """Facts for the environment record."""
        return {
            "weights": [identity(needed) for needed in self.weights()],
            "hole_filling": holes.report(self.fill_holes, self.hole_area),
            "precision": self.precision,
            "implementation": "transformers Sam2VideoModel",
        }

    def _load(self) -> HfTrackerCore:
        from transformers import Sam2VideoModel

        offline = self.offline or offline_by_environment()
        here = here_only(self.model, offline=offline)
        model = told(
            lambda: Sam2VideoModel.from_pretrained(
                self.model, revision=self.revision, local_files_only=here, dtype=torch.float32
            ),
            self.weights()[0],
            offline=offline,
        )
        return HfTrackerCore(model.eval().to(choose_device(self.device)), self.resampling)

"""SAM 2 and 2.1 through transformers: ``Sam2VideoModel``, without Meta's package and its build chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refseg_bench.backbones.weights import Weights
from refseg_bench.segmenters.hf_tracker import HfTrackerCore
from refseg_bench.segmenters.memory_tracking import SamTracker


@dataclass
class Sam2Hf(SamTracker):
    """SAM 2 / 2.1 by the transformers port.

    Attributes:
        model: hub id or local folder.
    """

    name: ClassVar[str] = "sam2_hf"
    implementation: ClassVar[str] = "transformers Sam2VideoModel"

    model: str = "facebook/sam2-hiera-large"

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        return (self._needs(self.model, patterns=("*.json", "*.safetensors")),)

    def _load(self) -> HfTrackerCore:
        from transformers import Sam2VideoModel

        return HfTrackerCore(self._pretrained(Sam2VideoModel, self.model), self.resampling)

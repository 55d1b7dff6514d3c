"""What every segmenter of the SAM family shares: options, weights, device and precision, pixels, features.

How SAM 2-type models track is in :mod:`.memory_tracking`; an implementation's own module holds only
how its model is loaded and called.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.backbones.weights import Weights, choose_device, fetch, load_module
from refseg_bench.config.schema import option
from refseg_bench.errors import RefsegError
from refseg_bench.segmenters.base import Prompt, PromptKind, Segmenter, SegmenterCounters

Precision = Literal["fp32", "bf16"]
Resampling = Literal["bicubic", "bilinear"]
HoleFilling = Literal["own", "off"]
Features = tuple["torch.Tensor", ...]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Logit given to a filled pixel: foreground, and as unsure as can be.
_FILLED = 0.1


@dataclass
class Sam(Segmenter):
    """Options of every SAM."""

    #: Name of the segmenter on the command line, for errors.
    name: ClassVar[str]
    #: Whose code runs, for the environment record.
    implementation: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    revision: str | None = None  #: commit, tag or branch of the hub repository
    offline: bool = option(False, transient=True)  #: never ask the hub, only the cache
    device: str = option("auto", transient=True)  #: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    precision: Precision = "fp32"  #: ``fp32``, or ``bf16`` autocast
    batch_size: int = option(64, transient=True)  #: objects, or clicks of a frame, in one pass of the model
    #: Frame features kept on an accelerator; then in host memory …
    feature_device_mb: float = option(6000.0, transient=True)
    #: … up to this (``None`` = 12000 beside an accelerator, 250 where there is none); beyond both they are
    #: computed again.
    feature_host_mb: float | None = option(None, transient=True)

    @abstractmethod
    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""

    def report(self) -> Mapping[str, Any]:
        """Which precision and code are in effect."""
        return {"precision": self.precision, "implementation": self.implementation}

    def _needs(
        self, repo: str, file: str | None = None, patterns: Sequence[str] = (), kinds: Sequence[str] = ()
    ) -> Weights:
        component = f"segmenter={self.name}"
        return Weights(repo, self.revision, file, tuple(patterns), component, tuple(kinds))

    def _pretrained(self, kind: Any, needed: Weights) -> Any:
        """A model of transformers in float32, ready on the device."""
        place = fetch(needed, offline=self.offline)
        return load_module(kind, place, torch.float32, choose_device(self.device)).eval()


# ── frames to model pixels ───────────────────────────────────────────────────


def square_pixels(
    frame_HWC: NDArray[np.uint8],
    image_size: int,
    resampling: Resampling,
    device: torch.device,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """A frame squashed to a square by PIL and normalised: float32 ``(1, 3, S, S)``.

    PIL's filters widen their support when shrinking, so both are antialiased.
    """
    method = Image.Resampling.BICUBIC if resampling == "bicubic" else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(frame_HWC).resize((image_size, image_size), method))
    # Divided in float64, then rounded: as the official loader does.
    pixels_3SS = torch.from_numpy((resized / 255.0).astype(np.float32)).permute(2, 0, 1)
    shape = (3, 1, 1)
    pixels_3SS = (pixels_3SS - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    return pixels_3SS[None].contiguous().to(device)


def autocast_for(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context of a model pass: none in fp32, autocast to bfloat16 in bf16."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def require_finite(name: str, *answers: torch.Tensor) -> None:
    """Refuse a model's answers that are no numbers: every comparison with NaN is false, so that the masks
    would be empty without a word.

    Raises:
        RefsegError: naming the segmenter.
    """
    finite = [torch.isfinite(answer).all() for answer in answers]
    if finite and not bool(torch.stack(finite).all()):  # one look at the device
        raise RefsegError(
            "The segmenter's answer holds NaN or infinity.",
            where=name,
            hint="Fetch its weights again (`refseg models get`), and try segmenter.precision=fp32.",
        )


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Rows that go through a model together: at most ``size``, of the same kinds, with as many points each.

    Prompts with fewer points are not padded: a padding point is a token more, which changes the
    decoder's answer.
    """
    alike: dict[tuple[tuple[PromptKind, ...], int], list[int]] = {}
    for row, prompt in enumerate(prompts):
        alike.setdefault((prompt.kinds(), len(prompt.points)), []).append(row)
    return [rows[first : first + size] for rows in alike.values() for first in range(0, len(rows), size)]


# ── holes in masks ───────────────────────────────────────────────────────────


def fill_holes(logits_N1hw: torch.Tensor, max_area: int) -> torch.Tensor:
    """Make background components of at most ``max_area`` pixels foreground, as SAM 2 does after its decoder.

    SAM 2's own implementation is a CUDA extension; where it was not compiled the step is skipped there.
    This needs none and gives the same masks.

    Args:
        logits_N1hw: mask logits. Components are 8-connected regions of logits ≤ 0, also at the border.
        max_area: largest hole in pixels of this resolution.

    Returns:
        Logits with holes set to 0.1; the very input where there is none.
    """
    background = (logits_N1hw <= 0).to(torch.uint8).cpu().numpy()
    holes = np.zeros(background.shape, np.bool_)
    for index in np.ndindex(*background.shape[:2]):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(background[index], connectivity=8)
        small = stats[:, cv2.CC_STAT_AREA] <= max_area
        small[0] = False  # label 0 is the mask itself
        if count > 1 and small.any():
            holes[index] = small[labels]
    if not holes.any():
        return logits_N1hw
    return torch.where(torch.from_numpy(holes).to(logits_N1hw.device), _FILLED, logits_N1hw)


# ── features of a clip, computed once ────────────────────────────────────────


@dataclass(eq=False)
class FeatureStore:
    """Features by frame: first on the accelerator, then in host memory, then recomputed.

    What is stored stays until the clip is closed. Propagation walks the whole clip again and again,
    where throwing the least recently used frame out would throw out exactly the next one needed.
    Beyond both budgets only the frame in work is held, so memory doesn't grow with the clip. Not for
    attention maps or anything that outlives a clip: that is the cache on disk.
    """

    encode: Callable[[int], Features]  #: computes the features of a frame, on ``device``
    device: torch.device  #: where features are wanted
    options: Sam  #: the budgets; on the CPU that of the host alone
    counters: SegmenterCounters  #: counts the encoder's passes
    _kept: dict[int, Features] = field(default_factory=dict, init=False)
    _in_work: tuple[int, Features] | None = field(default=None, init=False)
    _seen: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        alone, host_mb = self.device.type == "cpu", self.options.feature_host_mb
        self._device_left = 0.0 if alone else self.options.feature_device_mb * 1e6
        self._host_left = 1e6 * ((250.0 if alone else 12000.0) if host_mb is None else host_mb)

    def get(self, frame: int) -> Features:
        """The features of a frame on the device."""
        if self._in_work is not None and self._in_work[0] == frame:
            return self._in_work[1]
        if frame in self._kept:
            features = tuple(part.to(self.device, non_blocking=True) for part in self._kept[frame])
        else:
            features = self.encode(frame)
            self.counters.frame_encodings += 1
            self.counters.recomputed_frames += frame in self._seen
            self._seen.add(frame)
            self._keep(frame, features)
        self._in_work = (frame, features)
        return features

    def _keep(self, frame: int, features: Features) -> None:
        # The storage counts, not the view: a view may hold more memory than it shows.
        size = sum(part.untyped_storage().nbytes() for part in features)
        if size <= self._device_left:
            self._device_left -= size
            self._kept[frame] = features
        elif size <= self._host_left:
            self._host_left -= size
            self._kept[frame] = tuple(part.to("cpu") for part in features)

    @property
    def megabytes(self) -> float:
        """What the kept features take, wherever they are."""
        return sum(part.untyped_storage().nbytes() for kept in self._kept.values() for part in kept) / 1e6

    def clear(self) -> dict[int, Features]:
        """Drop everything; returns what was kept."""
        kept, self._kept, self._in_work = self._kept, {}, None
        return kept

    def restore(self, kept: dict[int, Features]) -> None:
        """Go on with what :meth:`clear` of an earlier session on the same clip returned."""
        for frame, features in kept.items():
            self._seen.add(frame)
            self._keep(frame, features)

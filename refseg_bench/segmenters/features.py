"""Frame features of one clip, computed once and kept within a memory budget.

Not for attention maps or anything that outlives a clip: that is the cache on disk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from refseg_bench.segmenters.base import SegmenterCounters

Features = tuple[torch.Tensor, ...]


class FeatureStore:
    """Features by frame: first on the accelerator, then in host memory, then recomputed.

    What is stored stays until the clip is closed. Propagation walks the whole clip again and again,
    where throwing the least recently used frame out would throw out exactly the next one needed.
    Beyond both budgets only the frame in work is held, so memory doesn't grow with the clip.

    Args:
        encode: computes the features of a frame, on ``device``.
        device: where features are wanted.
        device_mb: budget on an accelerator (unused where ``device`` is the CPU).
        host_mb: budget in host memory.
        counters: counts the encoder's passes.
    """

    def __init__(
        self,
        encode: Callable[[int], Features],
        device: torch.device,
        device_mb: float,
        host_mb: float,
        counters: SegmenterCounters,
    ) -> None:
        self._encode = encode
        self._device = device
        self._device_left = 0.0 if device.type == "cpu" else device_mb * 1e6
        self._host_left = host_mb * 1e6
        self._counters = counters
        self._kept: dict[int, Features] = {}
        self._in_work: tuple[int, Features] | None = None
        self._seen: set[int] = set()

    def get(self, frame: int) -> Features:
        """The features of a frame on the device."""
        if self._in_work is not None and self._in_work[0] == frame:
            return self._in_work[1]
        if frame in self._kept:
            features = tuple(part.to(self._device, non_blocking=True) for part in self._kept[frame])
        else:
            features = self._encode(frame)
            self._counters.frame_encodings += 1
            self._counters.recomputed_frames += frame in self._seen
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

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._in_work = None

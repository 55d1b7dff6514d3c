"""Prompting and propagation of SAM 2-type models over one clip, for any implementation of the model.

What a frame attends to, in which order frames are visited, how objects are batched and what is
forgotten when is decided here once; :class:`TrackerCore` is the little an implementation adds.
The rules are those of the official video predictor (SAM 2, arXiv 2408.00714, and its code of December
2024) with DecAF's changes to it (arXiv 2510.19592, official code): a subset of frames can be the
video, the predicted IoU is handed out, frame 0 may be tracked in reverse.

Axes: ``N`` objects, ``K`` mask candidates, ``P`` points of one prompt, ``S`` the model's image size,
``h w`` its low-resolution logits (``S/4``), ``H W`` the clip.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import F, inference, torch
from refseg_bench.backbones.weights import content, is_shipped
from refseg_bench.files.store_io import look
from refseg_bench.segmenters.base import (
    LEFT,
    Candidates,
    Prompt,
    SegmenterCounters,
    SegmenterSession,
    TrackedMasks,
    TrackingDirection,
)
from refseg_bench.segmenters.sam_base import (
    Features,
    FeatureStore,
    HoleFilling,
    Resampling,
    Sam,
    autocast_for,
    batches,
    fill_holes,
    require_finite,
)
from refseg_bench.types import BoolHW, Clip

#: Most that is left of closed sessions, and most that one clip's tracks take of it, in MB.
_SEEN_MB, _TRACKS_MB = 512.0, 128.0
#: Pixels ``(N, P, 2)`` of the model's square, and the label of each ``(N, P)``.
Points = tuple["torch.Tensor", "torch.Tensor"]
#: Labels of a box's corners among the points of a prompt, as SAM 2 was trained.
_CORNERS = (2, 3)


@dataclass(frozen=True, eq=False)
class Heads:
    """What prompt encoder and mask decoder give for a batch of objects."""

    logits_NKhw: torch.Tensor  #: mask logits of every candidate
    ious_NK: torch.Tensor  #: predicted IoUs
    best_N1hw: torch.Tensor  #: logits of the candidate with the highest predicted IoU
    pointer_NC: torch.Tensor  #: object pointer of that candidate
    presence_N1: torch.Tensor  #: logit of "the object is in this frame"


@dataclass(eq=False)
class Step:
    """What is kept of one frame for a batch of objects."""

    logits_N1hw: torch.Tensor  #: the mask to show, holes filled
    memory: torch.Tensor | Callable[[], torch.Tensor]  #: encoded memory, or what encodes it
    pointer_NC: torch.Tensor  #: object pointer
    presence_N1: torch.Tensor  #: logit of "the object is in this frame"

    @property
    def memory_NChw(self) -> torch.Tensor:
        """Encoded when a frame first attends to it: of the last frames never. bfloat16 as in stock SAM 2."""
        if not isinstance(self.memory, torch.Tensor):
            self.memory = self.memory().to(torch.bfloat16)
        return self.memory


@dataclass(eq=False)
class Memory:
    """What the tracker remembers of a batch of objects that were prompted on one frame."""

    start: int  #: position of the prompted frame in the video
    prompted: Step  #: its step
    followed: dict[int, Step] = field(default_factory=dict)  #: steps of tracked frames, by position

    def spatial(self, position: int, *, reverse: bool, slots: int) -> list[tuple[int, Step]]:
        """Steps whose spatial memory the frame attends to, with their temporal slot.

        The prompted frame comes first with slot 0, then the tracked frames from the farthest to
        the nearest of the ``slots - 1`` frames visited before, with their distance as slot.
        """
        sign = -1 if reverse else 1
        found = [(0, self.prompted)]
        for distance in range(slots - 1, 0, -1):
            step = self.followed.get(position - sign * distance)
            if step is not None:
                found.append((distance, step))
        return found

    def pointers(self, position: int, *, reverse: bool, length: int, limit: int) -> list[tuple[int, Step]]:
        """Steps whose object pointer the frame attends to, with their distance in time.

        Only pointers from the side the tracking comes from; at most ``min(length, limit)``.
        """
        sign = -1 if reverse else 1
        found = []
        distance = (position - self.start) * sign
        if distance >= 0:
            found.append((distance, self.prompted))
        for distance in range(1, min(length, limit)):
            neighbour = position - sign * distance
            if not 0 <= neighbour < length:
                break
            step = self.followed.get(neighbour)
            if step is not None:
                found.append((distance, step))
        return found

    def forget(self, position: int, *, reverse: bool, reach: int) -> None:
        """Drop what no frame still to come can attend to.

        Tracking forward keeps the last ``reach`` frames, and the ``reach`` frames after the prompt
        for a later pass backward; tracking backward keeps the last ``reach`` frames.
        """
        for known in list(self.followed):
            near = abs(position - known) < reach
            for_later = not reverse and 0 <= known - self.start <= reach
            if not (near or for_later):
                del self.followed[known]


@dataclass(eq=False)
class _Seen:
    """What a session leaves of a clip to the next one on it: rows of one command segment the same frames."""

    features: dict[int, Features] = field(default_factory=dict)  #: by frame
    #: Masks of :meth:`SegmenterSession.propagate` by all that it was asked, as bits.
    tracks: dict[Any, list[tuple[int, NDArray[np.uint8]]]] = field(default_factory=dict)
    track_mb: float = 0.0  #: what the tracks take

    @property
    def megabytes(self) -> float:
        """What all of it takes."""
        parts = [part.untyped_storage().nbytes() for found in self.features.values() for part in found]
        return sum(parts) / 1e6 + self.track_mb


class TrackerCore(ABC):
    """One implementation of a SAM 2-type model."""

    image_size: int
    device: torch.device
    #: How many frames back a memory or pointer can still matter.
    reach: int
    #: Holds the model's rules for several masks, named ``multimask_…`` by the paper's code.
    rules: Any

    @abstractmethod
    def encode(self, frame_HWC: NDArray[np.uint8]) -> Features:
        """Image features of one frame, ready for the decoder."""

    def wants_several(self, n_points: int) -> bool:
        """Three masks for up to one point; with more points the prompt is no longer ambiguous."""
        rules = self.rules
        return bool(
            rules.multimask_output_in_sam
            and rules.multimask_min_pt_num <= n_points <= rules.multimask_max_pt_num
            and (n_points > 0 or rules.multimask_output_for_tracking)
        )

    @abstractmethod
    def first_look(self, features: Features, n: int) -> torch.Tensor:
        """Top features ``(n, C, h, w)`` of a frame seen without memory."""

    @abstractmethod
    def recall(
        self, features: Features, n: int, memory: Memory, position: int, length: int, *, reverse: bool
    ) -> torch.Tensor:
        """Top features ``(n, C, h, w)`` after attending to memory."""

    @abstractmethod
    def decode(
        self, top_NChw: torch.Tensor, features: Features, points: Points | None, *, several: bool
    ) -> Heads:
        """Prompt encoder and mask decoder; without points the memory alone tells the object."""

    @abstractmethod
    def take_mask(self, features: Features, masks_N1SS: torch.Tensor) -> Heads:
        """Heads that show the given 0/1 masks themselves, with a pointer made from them."""

    @abstractmethod
    def memorise(
        self, features: Features, logits_N1SS: torch.Tensor, presence_N1: torch.Tensor, *, from_prompt: bool
    ) -> torch.Tensor:
        """Encoded memory of the masks at the model's image size."""


def content_key(clip: Clip) -> tuple[Any, ...] | None:
    """Tells a clip by its files, their sizes and times; ``None`` where they can't be asked."""
    try:
        return (clip.id, clip.size, clip.upright, clip.frame_paths, *map(look, clip.frame_paths))
    except OSError:
        return None


def sequence(map_NChw: torch.Tensor) -> torch.Tensor:
    """``(N, C, h, w)`` → ``(h·w, N, C)``."""
    return map_NChw.flatten(2).permute(2, 0, 1)


class LazyCandidates(Candidates):
    """Candidates that are enlarged to the clip's size only when looked at.

    A frame may be clicked hundreds of times and only the best mask of each click be wanted.
    """

    _logits_Khw: torch.Tensor
    _size: tuple[int, int]

    def __init__(self, logits_Khw: torch.Tensor, ious_K: NDArray[np.float32], size: tuple[int, int]) -> None:
        # The parent is frozen, as this is: only its constructor may set anything.
        vars(self).update(_logits_Khw=logits_Khw, _size=size, ious_K=ious_K)

    @property
    def masks_KHW(self) -> NDArray[np.bool_]:
        """Boolean masks at the clip's size."""
        return at_clip_size(self._logits_Khw[:, None], self._size)

    def mask(self, index: int) -> BoolHW:
        """One candidate at the clip's size."""
        mask_HW: BoolHW = at_clip_size(self._logits_Khw[index][None, None], self._size)[0]
        return mask_HW


@inference()
def at_clip_size(logits_N1hw: torch.Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Logits enlarged bilinearly to the clip's size, then thresholded at 0: ``(N, H, W)``."""
    out_NHW = torch.empty((len(logits_N1hw), *size), dtype=torch.bool, device=logits_N1hw.device)
    for row, logits_1hw in enumerate(logits_N1hw):
        enlarged = F.interpolate(logits_1hw[None].float(), size=size, mode="bilinear", align_corners=False)
        out_NHW[row] = enlarged[0, 0] > 0
    return np.asarray(out_NHW.cpu())


class TrackingSession(SegmenterSession):
    """A clip opened with a SAM 2-type model; it counts into ``counters``, where it is part of another."""

    def __init__(
        self, clip: Clip, core: TrackerCore, options: SamTracker, counters: SegmenterCounters | None = None
    ) -> None:
        super().__init__(clip, counters)
        self.name = options.name
        self._core = core
        self._options = options
        self._autocast = autocast_for(options.precision, core.device)
        self.features = FeatureStore(self._encode, core.device, options, self.counters)
        self._seen, self._key = _Seen(), None if options.seen is None else content_key(clip)
        if options.seen is not None:
            self._seen = options.seen.pop(self._key, self._seen)
            self.features.restore(self._seen.features)

    def _segment(self, frame: int, prompts: Sequence[Prompt], multimask: bool) -> list[Candidates]:
        """A mask prompt comes back as its own only candidate, as the model would show it."""
        out: dict[int, Candidates] = {}
        features = self.features.get(frame)
        with self._work("segment"):
            for rows in batches(prompts, self._options.batch_size):
                group = [prompts[row] for row in rows]
                heads = self._prompt(features, group, several=multimask)
                logits_NKhw = self._filled(heads.logits_NKhw.flatten(0, 1)[:, None]).view_as(
                    heads.logits_NKhw
                )
                ious_NK = heads.ious_NK.float().cpu().numpy()
                for row, logits_Khw, ious_K in zip(rows, logits_NKhw, ious_NK, strict=True):
                    out[row] = LazyCandidates(logits_Khw, ious_K, self.clip.size)
        return [out[row] for row in range(len(prompts))]

    def _propagate(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        asked = (frame, tuple(prompt.key() for prompt in prompts), video, direction)
        shape, seen = (len(prompts), *self.clip.size), self._seen
        if known := seen.tracks.get(asked):
            self.counters.propagated_frames += len(known)
            for index, bits in known:
                yield index, np.unpackbits(bits, count=math.prod(shape)).view(np.bool_).reshape(shape)
            return
        at = video.index(frame)
        length = {"forward": len(video) - at, "backward": at + 1, "both": len(video)}[direction]
        size_mb = length * math.prod(shape) / 8e6
        track: list[tuple[int, NDArray[np.uint8]]] = []
        for index, masks_NHW in self._tracked(frame, prompts, video, direction):
            # A clip of any length takes no more memory; and who has the last frame may not ask on.
            if self._core.device.type == "cpu" and seen.track_mb + size_mb <= _TRACKS_MB:
                track.append((index, np.packbits(masks_NHW)))
                if len(track) == length:
                    seen.tracks[asked], seen.track_mb = track, seen.track_mb + size_mb
            yield index, masks_NHW

    def _tracked(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        start = video.index(frame)
        groups = batches(prompts, self._options.batch_size)
        features = self.features.get(video[start])
        with self._work("propagate"):
            memories = [
                Memory(start, self._begin(features, [prompts[row] for row in rows])) for rows in groups
            ]
        yield self._show(video[start], groups, [memory.prompted for memory in memories])

        tours: list[tuple[range, bool]] = []
        if direction in ("forward", "both"):
            tours.append((range(start + 1, len(video)), False))
        if direction in ("backward", "both"):
            tours.append((range(start - 1, -1, -1), True))
        for positions, reverse in tours:
            for position in positions:
                features = self.features.get(video[position])
                with self._work("propagate"):
                    for memory in memories:
                        memory.followed[position] = self._follow(
                            features, memory, position, len(video), reverse=reverse
                        )
                        memory.forget(position, reverse=reverse, reach=self._core.reach)
                yield self._show(video[position], groups, [memory.followed[position] for memory in memories])

    def close(self) -> None:
        """Drop the features, or leave them and the tracks to the next row's session on this clip."""
        self._seen.features, left = self.features.clear(), self._options.seen
        if left is not None and self._key is not None:
            left[self._key] = self._seen
            while sum(seen.megabytes for seen in left.values()) > _SEEN_MB:
                del left[next(iter(left))]
        self._seen = _Seen()

    # ── steps ────────────────────────────────────────────────────────────────

    def _encode(self, frame: int) -> Features:
        with self._work("load"):
            frame_HWC = self.clip.load([frame])[0]
        with self._work("encode"):
            return self._core.encode(frame_HWC)

    def _prompt(self, features: Features, prompts: Sequence[Prompt], *, several: bool) -> Heads:
        self.counters.decoder_calls += 1
        if prompts[0].mask is not None:
            return self._core.take_mask(features, self._masks(prompts))
        top_NChw = self._core.first_look(features, len(prompts))
        return self._decode(top_NChw, features, self._points(prompts), several=several)

    def _decode(self, *given: Any, several: bool) -> Heads:
        heads = self._core.decode(*given, several=several)
        # Presence first: what is held for absent has blank logits, whatever the decoder gave.
        require_finite(self.name, heads.presence_N1, heads.ious_NK, heads.logits_NKhw)
        return heads

    def _begin(self, features: Features, prompts: Sequence[Prompt]) -> Step:
        n_points = len(prompts[0].points) + (2 if prompts[0].box is not None else 0)
        heads = self._prompt(features, prompts, several=self._core.wants_several(n_points))
        return self._remembered(features, heads, prompted=True)

    def _follow(
        self, features: Features, memory: Memory, position: int, length: int, *, reverse: bool
    ) -> Step:
        self.counters.decoder_calls += 1
        n = len(memory.prompted.logits_N1hw)
        top_NChw = self._core.recall(features, n, memory, position, length, reverse=reverse)
        heads = self._decode(top_NChw, features, None, several=self._core.wants_several(0))
        return self._remembered(features, heads, prompted=False)

    def _remembered(self, features: Features, heads: Heads, *, prompted: bool) -> Step:
        """A prompted frame's memory is made from the filled mask, a tracked one's from the mask as it is."""
        logits_N1hw = self._filled(heads.best_N1hw)
        masks_N1hw = logits_N1hw if prompted else heads.best_N1hw.float()

        def memory(top: Features = features[-1:]) -> torch.Tensor:  # lets go of the fine levels
            with torch.inference_mode(), self._autocast():
                large_N1SS = F.interpolate(masks_N1hw, self._core.image_size, mode="bilinear")
                return self._core.memorise(top, large_N1SS, heads.presence_N1, from_prompt=prompted)

        return Step(logits_N1hw, memory, heads.pointer_NC, heads.presence_N1)

    def _show(
        self, frame: int, groups: Sequence[Sequence[int]], steps: Sequence[Step]
    ) -> tuple[int, NDArray[np.bool_]]:
        self.counters.propagated_frames += 1
        masks_NHW = np.empty((sum(map(len, groups)), *self.clip.size), np.bool_)
        for rows, step in zip(groups, steps, strict=True):
            masks_NHW[list(rows)] = at_clip_size(step.logits_N1hw, self.clip.size)
        return frame, masks_NHW

    # ── small parts ──────────────────────────────────────────────────────────

    def _points(self, prompts: Sequence[Prompt]) -> Points:
        points, labels = [], []
        for prompt in prompts:
            corners = () if prompt.box is None else (prompt.box[:2], prompt.box[2:])
            points.append([*corners, *prompt.points])
            labels.append([*(_CORNERS if prompt.box is not None else ()), *prompt.labels])
        points_NP2 = torch.tensor(points, dtype=torch.float32, device=self._core.device)
        labels_NP = torch.tensor(labels, dtype=torch.int32, device=self._core.device)
        return points_NP2 * self._core.image_size, labels_NP

    def _masks(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """0/1 masks at the model's image size: antialiased, cut at one half."""
        stack_NHW = np.stack([prompt.mask for prompt in prompts if prompt.mask is not None])
        masks_N1HW = torch.from_numpy(stack_NHW)[:, None].to(self._core.device).float()
        target = (self._core.image_size, self._core.image_size)
        if masks_N1HW.shape[-2:] == target:
            return masks_N1HW
        shrunk = F.interpolate(masks_N1HW, size=target, mode="bilinear", align_corners=False, antialias=True)
        return (shrunk >= 0.5).float()

    def _filled(self, logits_N1hw: torch.Tensor) -> torch.Tensor:
        logits = logits_N1hw.float()
        return logits if self._options.fill_holes == "off" else fill_holes(logits, self._options.hole_area)

    @contextmanager
    def _work(self, stage: str) -> Iterator[None]:
        with self.counters.timed(stage), torch.inference_mode(), self._autocast():
            yield


@dataclass
class SamTracker(Sam):
    """Options of every SAM that tracks with a memory."""

    #: Filter that squashes a frame to the model's square. ``bicubic`` is what the official video predictor of
    #: SAM 2 does, ``bilinear`` what the processors of transformers do.
    resampling: Resampling = "bicubic"
    #: ``own``: as Meta's package does by its compiled kernel, without the kernel; or ``off``.
    fill_holes: HoleFilling = "own"
    hole_area: int = 8  #: largest hole to fill, in pixels of the low-resolution mask
    _core: TrackerCore | None = field(default=None, init=False, repr=False, compare=False)
    #: Digests of the weights that the model left to the next row was made from.
    _made: list[str | None] = field(default_factory=list, init=False, repr=False, compare=False)
    #: What closed sessions left to the next row's, the last clip last; ``None`` where no row shares it.
    seen: dict[Any, _Seen] | None = field(default=None, init=False, repr=False, compare=False)

    def open(self, clip: Clip) -> SegmenterSession:
        """Start a session; the model loads at the first one."""
        return self.track(clip, SegmenterCounters())

    def track(self, clip: Clip, counters: SegmenterCounters) -> TrackingSession:
        """:meth:`open`, counting into ``counters``."""
        if self._core is None:
            left = LEFT.get()
            # What is in a user's folder may be another model by the next row; a branch of the hub may move.
            lasting = left is not None and all(is_shipped(one) or not one.local for one in self.weights())
            known = left[0] if left and left[0] == self else None
            if isinstance(known, SamTracker) and known._made == self._content():
                self._core, self.seen = known._core, known.seen
            else:
                if left:
                    left.clear()
                self._core = self._load()
                if left is not None and lasting and self._core.device.type == "cpu":
                    self.seen, self._made = {}, self._content()
                    left.append(self)
        assert self._core is not None
        return TrackingSession(clip, self._core, self, counters)

    def _content(self) -> list[str | None]:
        return [content(needed, self.cache_root) for needed in self.weights()]

    def report(self) -> Mapping[str, Any]:
        """With which hole filling is in effect."""
        return {**super().report(), "fill_holes": self.fill_holes, "hole_area": self.hole_area}

    @abstractmethod
    def _load(self) -> TrackerCore:
        """The model on its device."""

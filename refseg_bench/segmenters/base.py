"""The promptable-segmenter interface: open a clip once, prompt it as often as you like.

A session belongs to one clip. It computes the image features of a frame at most once, whatever
the number of expressions, objects and passes. Positions are relative: x and y in [0, 1] of the
frame's width and height, measured at pixel centres, so that no method has to know a model's size.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from refseg_bench import env
from refseg_bench.backbones.weights import choose_device, fetch
from refseg_bench.config.schema import Component
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import BoolHW, Clip, MaskTrack

TrackingDirection = Literal["forward", "backward", "both"]
PromptKind = Literal["points", "box", "mask", "text"]
#: (frame index, boolean masks (n_objects, H, W)) of one frame after the other.
TrackedMasks = Iterator[tuple[int, NDArray[np.bool_]]]
#: The segmenter that left its model and what it found to the next row of a command; ``None`` outside of one.
LEFT: ContextVar[list[Segmenter] | None] = ContextVar("LEFT", default=None)


@contextmanager
def shared_by_rows() -> Iterator[None]:
    """Within the block a segmenter on a CPU goes on with the model, features and tracks of an equal one.

    The rows of a command segment the same frames. What they get is what each would compute itself.
    """
    token = LEFT.set([])
    try:
        yield
    finally:
        LEFT.reset(token)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What points at one object on one frame."""

    points: tuple[tuple[float, float], ...] = ()  #: (x, y) pairs in [0, 1]
    labels: tuple[int, ...] = ()  #: 1 = on the object, 0 = off it; one per point
    box: tuple[float, float, float, float] | None = None  #: (x0, y0, x1, y1) in [0, 1]
    mask: BoolHW | None = None  #: boolean mask at the clip's size
    text: str | None = None  #: a concept in words; only segmenters that say so accept it

    @classmethod
    def click(cls, x: float, y: float) -> Self:
        """One positive point."""
        return cls(points=((x, y),), labels=(1,))

    def key(self) -> tuple[object, ...]:
        """Equal for prompts that say the same on the same clip."""
        mask = None if self.mask is None else hashlib.blake2b(np.packbits(self.mask).data).digest()
        return (self.points, self.labels, self.box, mask, self.text)

    def kinds(self) -> tuple[PromptKind, ...]:
        """Which kinds of pointing it holds."""
        given = {
            "points": bool(self.points),
            "box": self.box is not None,
            "mask": self.mask is not None,
            "text": self.text is not None,
        }
        return tuple(kind for kind in get_args(PromptKind) if given[kind])

    def fault(self, size: tuple[int, int]) -> str:
        """Why it points at nothing in a clip of (height, width) ``size``; empty if it does."""
        if not self.kinds() or not (self.text is None or self.text.strip()):
            return "The prompt is empty."
        if len(self.points) != len(self.labels):
            return f"{len(self.points)} points have {len(self.labels)} labels."
        if any(label not in (0, 1) for label in self.labels):
            return f"Point labels are {self.labels}; allowed are 0 and 1."
        if any(not 0 <= value <= 1 for point in self.points for value in point):
            return f"A point lies outside the frame, 0 … 1: {self.points}."
        x0, y0, x1, y1 = self.box or (0, 0, 1, 1)
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            return f"The box {self.box} is no box inside the frame: 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1."
        if self.mask is not None and len(self.kinds()) > 1:
            return f"A mask prompt stands alone; this one has {self.kinds()}."
        if self.mask is not None and self.mask.shape != size:
            return f"The mask prompt is {self.mask.shape}, its clip {size} (height, width)."
        return ""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The masks a segmenter offers for one prompt, in the model's own order; none where it sees nothing."""

    masks_KHW: NDArray[np.bool_]  #: boolean masks at the clip's size
    ious_K: NDArray[np.float32]  #: the model's predicted IoU of each, float32

    def __len__(self) -> int:
        return len(self.ious_K)

    def mask(self, index: int) -> BoolHW:
        """One candidate at the clip's size."""
        return np.asarray(self.masks_KHW[index])

    def best(self) -> tuple[BoolHW, float]:
        """The candidate with the highest predicted IoU (the first on ties); an empty mask without any."""
        if not len(self):
            return np.zeros(self.masks_KHW.shape[1:], np.bool_), 0.0
        index = int(np.argmax(self.ious_K))
        return self.mask(index), float(self.ious_K[index])


@dataclass(frozen=True, eq=False)
class Instance:
    """One object that words were found to mean."""

    track: MaskTrack  #: its masks over the clip; empty where it isn't in view
    score: float  #: how sure the segmenter is, 0 … 1


@dataclass
class SegmenterCounters:
    """What a session has done so far; goes into the run record."""

    frame_encodings: int = 0  #: passes of the image encoder, recomputations included
    decoder_calls: int = 0  #: passes of prompt encoder and mask decoder, each over a batch of prompts
    propagated_frames: int = 0  #: frames yielded by propagation
    seconds: dict[str, float] = field(default_factory=dict)  #: seconds per stage
    #: Passes for frames encoded before, whose features the memory budget had not kept; 0 means every frame
    #: was encoded once at most.
    recomputed_frames: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to a stage."""
        began = time.perf_counter()
        with env.stage(stage):
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def add(self, other: SegmenterCounters) -> None:
        """Count another session's work as well."""
        for name in ("frame_encodings", "decoder_calls", "propagated_frames", "recomputed_frames"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        # A copy: a process tells of its progress while another thread counts.
        for stage, seconds in list(other.seconds.items()):
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class SegmenterSession(ABC):
    """A clip opened by a segmenter: a context manager. What it is asked is checked here, once for all.

    ``counters``: count into these, where a session is part of another.
    """

    #: The segmenter's name, for errors, and the kinds of prompts it takes.
    name: str = "segmenter"
    accepts: tuple[PromptKind, ...] = ("points", "box", "mask")
    #: Frames on which words are looked for, the middles of equal parts of the clip.
    KEY_FRAMES: ClassVar[int] = 4

    def __init__(self, clip: Clip, counters: SegmenterCounters | None = None) -> None:
        self.clip = clip
        self.counters = counters or SegmenterCounters()

    def segment(self, frame: int, prompts: Sequence[Prompt], *, multimask: bool = True) -> list[Candidates]:
        """Mask candidates on one frame, one :class:`Candidates` per prompt, computed in one batch.

        Prompts are one per object, and objects don't see each other; ``multimask``: ask for several
        candidates of each where the model offers them.

        Raises:
            ConfigError, DataError: see :meth:`check`.
        """
        self.check(frame, prompts)
        return self._segment(frame, prompts, multimask)

    def propagate(
        self,
        frame: int,
        prompts: Sequence[Prompt],
        *,
        frames: Sequence[int] | None = None,
        direction: TrackingDirection = "both",
    ) -> TrackedMasks:
        """Track the prompted objects through the clip, starting from nothing but the prompts.

        Args:
            frame: index of the prompted frame; must be among ``frames``.
            prompts: one per object.
            frames: ascending subset of the clip to treat as the video (all frames by default).
            direction: ``forward`` yields ``frame`` and what follows; ``backward`` yields ``frame`` and
                what precedes, descending; ``both`` is forward, then *without a reset* what precedes.

        Yields:
            (frame index, boolean masks (n_objects, H, W)). Each frame once.

        Raises:
            ConfigError, DataError: see :meth:`check`.
        """
        video = self.check(frame, prompts, frames)
        if direction not in get_args(TrackingDirection):
            raise DataError(f"Direction '{direction}' is unknown.", allowed=get_args(TrackingDirection))
        return self._propagate(frame, prompts, video, direction)

    def find(self, phrase: str) -> list[Instance]:
        """Every instance of a concept in the clip, by descending score; none where there is none.

        By default the instances of that one of :attr:`KEY_FRAMES` frames where their scores add up to
        most, each tracked both ways. A segmenter that looks at every frame has its own way.

        Raises:
            ConfigError: the segmenter takes no words.
        """
        words = [Prompt(text=phrase)]
        self.check(0, words)
        best, most = (0, Candidates(np.zeros((0, *self.clip.size), np.bool_), np.zeros(0, np.float32))), 0.0
        for frame in middles(len(self.clip), self.KEY_FRAMES):
            (seen,) = self.segment(frame, words)
            there = seen.masks_KHW.any(axis=(1, 2))
            total = float(seen.ious_K[there].sum())
            if total > most:
                best, most = (frame, Candidates(seen.masks_KHW[there], seen.ious_K[there])), total
        frame, found = best
        if not len(found):
            return []
        masks: list[list[BoolHW | None]] = [[None] * len(self.clip) for _ in found.ious_K]
        prompts = [Prompt(mask=mask_HW) for mask_HW in found.masks_KHW]
        steps = [(0, found.masks_KHW)] if len(self.clip) == 1 else self.propagate(frame, prompts)
        for index, masks_NHW in steps:
            for row, mask_HW in enumerate(masks_NHW):
                masks[row][index] = mask_HW
        return [
            Instance(MaskTrack.from_masks(kept, self.clip.size), float(score))
            for kept, score in sorted(zip(masks, found.ious_K, strict=True), key=lambda pair: -pair[1])
        ]

    def check(
        self, frame: int, prompts: Sequence[Prompt], frames: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Refuse what can't be segmented, before any model runs; returns the frames of the video.

        Raises:
            ConfigError: a kind of prompt the segmenter doesn't take.
            DataError: no prompt or a faulty one, frames outside the clip, not ascending, or without
                the prompted one.
        """
        if not prompts:
            raise DataError("A segmenter was called without a prompt.", where=self.name)
        for number, prompt in enumerate(prompts):
            where = f"{self.name}, prompt {number}"
            for kind in prompt.kinds():
                if kind not in self.accepts:
                    raise ConfigError(
                        f"Segmenter '{self.name}' takes no {kind} prompt.",
                        where=where,
                        allowed=self.accepts,
                        hint="Choose another segmenter with segmenter=NAME.",
                    )
            if fault := prompt.fault(self.clip.size):
                raise DataError(fault, where=where)
        whole = range(len(self.clip))
        video = tuple(whole if frames is None else map(int, frames))
        if any(b <= a for a, b in pairwise(video)) or not {*video} <= {*whole}:
            raise DataError(
                f"Frames {video} are no ascending subset of the clip.",
                where=self.clip.id,
                allowed=[f"0 … {len(whole) - 1}"],
            )
        if frame not in video:
            raise DataError(
                f"The prompted frame {frame} is not among the frames to track.",
                where=self.clip.id,
                allowed=video,
            )
        return video

    @abstractmethod
    def _segment(self, frame: int, prompts: Sequence[Prompt], multimask: bool) -> list[Candidates]:
        """:meth:`segment` of what was checked."""

    @abstractmethod
    def _propagate(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        """:meth:`propagate` of what was checked."""

    def close(self) -> None:  # noqa: B027 (a hook)
        """Free what the session holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def middles(length: int, count: int) -> list[int]:
    """``count`` places spread evenly over ``length``: the middles of equal parts, each once.

    >>> middles(10, 2), middles(3, 16), middles(7, 1)
    ([2, 7], [0, 1, 2], [3])
    """
    count = min(count, length)
    return [int((place + 0.5) * length / count) for place in range(count)]


def united(tracks: TrackedMasks, owners: Sequence[int], number: int) -> TrackedMasks:
    """Tracks of parts as those of the ``number`` objects that own them: on each frame the parts' union."""
    owner_N = np.array(owners, dtype=int)
    for index, masks_NHW in tracks:
        yield index, np.stack([masks_NHW[owner_N == row].any(axis=0) for row in range(number)])


class Segmenter(Component):
    """Opens clips. A component: its fields are options, its model loads at the first ``open``."""

    kind: ClassVar[str] = "segmenter"

    #: Where its model runs, and whether no weights may be fetched; one with a model has both options.
    device: str | None = None
    offline: bool = False
    #: The sum of all its sessions' counters, once :func:`count_sessions` has been called.
    counted: Callable[[], SegmenterCounters] | None = None

    @abstractmethod
    def open(self, clip: Clip) -> SegmenterSession:
        """Start a session on a clip."""

    def check(self) -> None:
        """See to it that its packages, device and weights are here; weights that the hub has are fetched.

        Raises:
            ConfigError: one is missing.
        """
        super().check()
        if self.device is not None:
            choose_device(self.device)
        for needed in self.weights() or ():
            fetch(needed, offline=self.offline)


def count_sessions(segmenter: Segmenter) -> None:
    """Have a segmenter's sessions counted from now on; its ``counted`` gives the sum."""
    opened, over = deque[SegmenterCounters](), SegmenterCounters()
    plain = segmenter.open

    def open_counted(clip: Clip) -> SegmenterSession:
        session = plain(clip)
        opened.append(session.counters)
        if len(opened) > 16:  # memory doesn't grow with the clips, and no method holds so many at once
            over.add(opened.popleft())
        return session

    def total() -> SegmenterCounters:
        found = SegmenterCounters()
        for counters in (over, *opened):
            found.add(counters)
        return found

    for name, value in (("open", open_counted), ("counted", total)):
        object.__setattr__(segmenter, name, value)  # a component may be frozen

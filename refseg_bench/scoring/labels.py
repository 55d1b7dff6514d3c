"""Masks as the values that a protocol compares: id maps (0 = none), and grey levels of mask files.

Id maps come from PNG files (DAVIS' truth, merged predictions) or are put together from tracks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import ScoreError
from refseg_bench.files.png import read_grey, read_labels, read_regions
from refseg_bench.scoring.counts import Region, label_regions
from refseg_bench.types import Clip, Expression, MaskTrack, Prediction, Target, paint_rle

#: Pixels that belong to nobody, in DAVIS' truth.
VOID = 255


class LabelMaps(ABC):
    """Id maps of one clip, frame by frame: what merged predictions and DAVIS truth are."""

    @abstractmethod
    def missing(self) -> Sequence[str]:
        """Names of frames that have no map."""

    def extra(self) -> Sequence[str]:
        """Names of maps that belong to no frame of the clip."""
        return ()

    @abstractmethod
    def frame(self, index: int) -> NDArray[np.uint8]:
        """The id map of one frame, ``(height, width)``; valid until the next call.

        Raises:
            ScoreError: it is missing, can't be read or is of another size.
        """

    def regions(self, index: int) -> dict[int, Region]:
        """The nonzero ids of one frame, made ready for comparison; raises as :meth:`frame`."""
        return label_regions(self.frame(index))


@dataclass(frozen=True)
class FolderLabels(LabelMaps):
    """Id maps read from PNG files, one at a time."""

    files: tuple[Path | None, ...]  #: one file per frame; ``None`` where there is none
    names: tuple[str, ...]  #: the frames' names
    size: tuple[int, int]  #: (height, width) the maps must have
    surplus: tuple[str, ...] = ()  #: names of files that belong to no frame
    #: Frame read so far → how its file is stored, in words.
    encodings: dict[int, str] = field(default_factory=dict, init=False, compare=False)

    def missing(self) -> Sequence[str]:
        """Names of frames without a file."""
        return [name for name, file in zip(self.names, self.files, strict=True) if file is None]

    def extra(self) -> Sequence[str]:
        """Names of files without a frame."""
        return self.surplus

    def frame(self, index: int) -> NDArray[np.uint8]:
        """See :meth:`LabelMaps.frame`."""
        file = self.files[index]
        if file is None:
            raise ScoreError(f"Frame {self.names[index]} has no id map.")
        labels, self.encodings[index] = read_labels(file)
        if labels.shape != self.size:
            raise ScoreError(
                f"The id map is {labels.shape}, the clip is {self.size} (height, width).",
                where=file,
                hint="Write maps at the original size; no evaluator resizes them.",
            )
        return labels

    def regions(self, index: int) -> dict[int, Region]:
        """See :meth:`LabelMaps.regions`; most files are never unpacked into an array."""
        file = self.files[index]
        found = None if file is None else read_regions(file, self.size)
        if found is None:
            return super().regions(index)
        regions, self.encodings[index] = found
        return regions


@dataclass(frozen=True)
class TrackLabels(LabelMaps):
    """Id maps put together from one track per object; the first of two that overlap wins."""

    size: tuple[int, int]  #: (height, width)
    names: tuple[str, ...]  #: the frames' names
    tracks: tuple[tuple[int, MaskTrack], ...]  #: (id, track) in the order of precedence
    void: MaskTrack | None = None  #: pixels set to 255, or ``None``
    whole: bool = True  #: False if an object's masks are missing, so that no frame has a map

    def missing(self) -> Sequence[str]:
        """Names of frames that a track doesn't cover."""
        tracks = [track for _, track in self.tracks]
        there = (
            self.whole and all(track.rles[t] is not None for track in tracks) for t in range(len(self.names))
        )
        return [name for name, whole in zip(self.names, there, strict=True) if not whole]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The id map of one frame; a track without a mask there shows nothing."""
        labels = np.zeros(self.size, np.uint8)
        void = () if self.void is None else ((VOID, self.void),)
        for number, track in (*reversed(self.tracks), *void):
            if (counts := track.rles[index]) is not None:
                paint_rle(counts, number, labels)
        return labels


@dataclass
class GreyMasks:
    """Grey values of one expression's masks: as OpenCV reads its files, 0 and 1 of run lengths."""

    track: MaskTrack  #: the masks
    #: Their files, ``None`` where a frame has none; ``None`` = they came as run lengths.
    files: tuple[Path | None, ...] | None = None
    above: int = 0  #: the highest grey level that is background
    _seen: set[int] = field(default_factory=set, init=False, repr=False)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Grey values of one frame; zeros where there is no mask."""
        file = None if self.files is None else self.files[index]
        if file is None:
            mask = self.track.mask(index)
            return np.zeros(self.track.size, np.uint8) if mask is None else mask.astype(np.uint8)
        grey = read_grey(file)
        if self.above:
            grey = np.where(grey > self.above, grey, np.uint8(0))
        self._seen.update(np.flatnonzero(np.bincount(grey.ravel(), minlength=256)).tolist())
        return grey

    def encoding(self) -> str:
        """How foreground is written, as far as read frames tell: ``0/1``, ``0/255`` or the values found."""
        return "0/1" if self.files is None else encoding_of(self._seen)


def encoding_of(values: set[int]) -> str:
    """The name of an encoding by its nonzero grey values."""
    nonzero = sorted(values - {0})
    if nonzero in ([1], [255]):
        return f"0/{nonzero[0]}"
    return "empty" if not nonzero else "grey " + "/".join(str(v) for v in nonzero[:8])


def truth_labels(clip: Clip, targets: Iterable[Target]) -> TrackLabels:
    """Id maps of all objects that a clip's expressions mean.

    Raises:
        ScoreError: an object's id is no number an id map can hold.
    """
    tracks: dict[int, MaskTrack] = {}
    void: MaskTrack | None = None
    for target in targets:
        void = void or target.void
        for name, track in zip(target.object_ids, target.objects, strict=False):
            tracks[label_number(name, clip)] = track
    return TrackLabels(clip.size, clip.frame_names, tuple(sorted(tracks.items())), void)


def label_number(name: object, clip: Clip) -> int:
    """An object's id as a pixel value.

    Raises:
        ScoreError: it is no number from 1 to 254.
    """
    text = str(name)
    if not text.isdecimal() or not 0 < int(text) < VOID:
        raise ScoreError(
            f"Object '{text}' of '{clip.id}' can't be a pixel value.",
            allowed=("1 to 254",),
            hint="Score this dataset under a protocol whose unit is the expression.",
        )
    return int(text)


def merged_labels(
    clip: Clip, expressions: Sequence[Expression], predictions: Mapping[str, Prediction | None]
) -> dict[str, TrackLabels]:
    """Id maps put together from one mask per expression.

    Expressions are taken in the dataset's order; the first of two that overlap wins (ReferFormer's
    and VideoLISA's rule for binary masks). Where expressions name an ``annotator``, each gets a map
    of its own, ``anno_0`` ….

    Raises:
        ScoreError: two expressions of one map mean the same object, or one means several.
    """
    sets: dict[str, dict[int, MaskTrack]] = {}
    gone: set[str] = set()
    for expression in expressions:
        annotator = expression.attrs.get("annotator")
        name = "" if annotator is None else f"anno_{annotator}"
        number = _only_object(expression, clip)
        tracks = sets.setdefault(name, {})
        if number in tracks:
            raise ScoreError(
                f"Object {number} of '{clip.id}' has several expressions, so their masks can't be merged "
                "into one id map.",
                where=clip.id,
                hint="Score this dataset under a protocol whose unit is the expression.",
            )
        prediction = predictions.get(expression.id)
        if prediction is None or prediction.track is None:
            gone.add(name)
            tracks[number] = MaskTrack.empty(clip.size, len(clip))
        else:
            tracks[number] = prediction.track
    for name, tracks in sets.items():
        if lacking := {number for each in sets.values() for number in each} - tracks.keys():
            raise ScoreError(
                f"{name} has no expression of object {min(lacking)} of '{clip.id}', which other sets have.",
                where=clip.id,
                hint="Restore the expression file: an expression's id is 4 · object index + annotator.",
            )
    return {
        name: TrackLabels(clip.size, clip.frame_names, tuple(tracks.items()), whole=name not in gone)
        for name, tracks in sets.items()
    }


def _only_object(expression: Expression, clip: Clip) -> int:
    ids = expression.attrs.get("obj_ids", expression.attrs.get("obj_id"))
    if isinstance(ids, (list, tuple)):
        if len(ids) != 1:
            raise ScoreError(
                f"Expression '{expression.id}' of '{clip.id}' means {len(ids)} objects; an id map needs "
                "one each.",
                hint="Score this dataset under a protocol whose unit is the expression.",
            )
        ids = ids[0]
    return label_number(ids, clip)

"""Counts of mask pairs over clips, each pair counted once whoever asks for it.

They are counted by the compiled kernel where it was built, else with numpy and OpenCV; both give the same
integers (a property test holds them together). ``REFSEG_KERNEL`` forces one, see
:mod:`refseg_bench.files.compiled`.

Not for: what is averaged (``scoring.protocols``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg_bench.errors import DataError
from refseg_bench.files import compiled
from refseg_bench.scoring import boundary
from refseg_bench.scoring.boundary import COUNTS, boundary_radius
from refseg_bench.types import MaskTrack, decode_rle, encode_rle

#: A mask made ready for comparison; opaque outside the kernel that made it.
Region = Any


def _kernel() -> Any:
    return boundary if compiled.KERNEL is None else compiled.KERNEL


def region(mask_HW: NDArray[Any]) -> Region:
    """Make a mask of the full frame (nonzero = foreground) ready for :func:`compare`."""
    return _kernel().from_mask(np.ascontiguousarray(mask_HW != 0).view(np.uint8))


def region_rle(counts: bytes, size: tuple[int, int]) -> Region:
    """Make COCO run lengths ready for :func:`compare`; compare such regions only with each other.

    The region lives in the transposed frame: COCO masks run down the columns, and neither J nor F
    changes when both masks are transposed.
    """
    return _kernel().from_rle(counts, size[1], size[0])


def label_regions(labels_HW: NDArray[np.uint8]) -> dict[int, Region]:
    """Regions of all nonzero ids of an id map, by id in ascending order."""
    return _kernel().from_labels(labels_HW)  # type: ignore[no-any-return]


def compare(truth: Region, prediction: Region, radius: int) -> tuple[int, ...]:
    """Integer counts of one pair, in the order of :data:`refseg_bench.scoring.boundary.COUNTS`."""
    return _kernel().compare(truth, prediction, radius)  # type: ignore[no-any-return]


def overlap_rle(first: bytes, second: bytes, size: tuple[int, int]) -> tuple[int, int]:
    """Intersection and union in pixels of two run-length coded masks, without decoding them."""
    pair = [{"size": list(size), "counts": c} for c in (first, second)]
    areas = coco_mask.area(pair)
    shared = int(coco_mask.area(coco_mask.merge(pair, intersect=True)))
    return shared, int(areas[0]) + int(areas[1]) - shared


def subtract_rle(first: bytes, second: bytes, size: tuple[int, int]) -> bytes:
    """The pixels of the first mask that are not in the second."""
    masks = [decode_rle(counts, size) for counts in (first, second)]
    return encode_rle(masks[0] & ~masks[1])


def resized_rle(counts: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> bytes:
    """A mask resized to another (height, width), nearest neighbour as Pillow picks it."""
    from PIL import Image

    mask = Image.fromarray(decode_rle(counts, size).view(np.uint8))
    return encode_rle(np.asarray(mask.resize(wanted[::-1], Image.Resampling.NEAREST)))


class CountBook:
    """Counts of the truth/prediction pairs of one clip.

    Pairs are entered first and counted together, frame by frame, so that a truth shared by several
    expressions, protocols or runs is prepared once per frame and memory doesn't grow with the
    clip's length. A pair entered twice is counted once.
    """

    def __init__(self, size: tuple[int, int], length: int) -> None:
        self._size = size
        self._length = length
        self._radius = boundary_radius(size)
        self._pairs: list[tuple[MaskTrack, MaskTrack]] = []
        self._known: dict[tuple[int, int], int] = {}
        self._counts: list[NDArray[np.int64]] = []

    def enter(self, truth: MaskTrack, prediction: MaskTrack) -> int:
        """Ask for a pair; returns the ticket for :meth:`counts`.

        Raises:
            DataError: the two are of another size or length than the clip.
        """
        for track, which in ((truth, "target"), (prediction, "prediction")):
            if why := track.misfit(self._size, self._length):
                raise DataError(f"A {which} doesn't fit its clip: {why}.")
        key = (id(truth), id(prediction))
        if key not in self._known:
            self._known[key] = len(self._pairs)
            self._pairs.append((truth, prediction))
        return self._known[key]

    def counts(self, ticket: int) -> NDArray[np.int64]:
        """Counts ``(T, 7)`` of a pair, columns as in ``boundary.COUNTS``.

        A frame the truth doesn't annotate counts as empty there; a frame that was not predicted
        has −1 in every column.
        """
        if ticket >= len(self._counts):
            self._count(len(self._counts))
        return self._counts[ticket]

    def _count(self, start: int) -> None:
        pairs = self._pairs[start:]
        out = np.full((len(pairs), self._length, len(COUNTS)), -1, np.int64)
        empty = encode_rle(np.zeros(self._size, np.uint8))
        for frame in range(self._length):
            regions: dict[bytes, Region] = {}
            rows: dict[tuple[bytes, bytes], tuple[int, ...]] = {}
            for index, (truth, prediction) in enumerate(pairs):
                guess = prediction.rles[frame]
                if guess is None:
                    continue
                pair = (truth.rles[frame] or empty, guess)
                if pair not in rows:
                    for counts in pair:
                        if counts not in regions:
                            regions[counts] = region_rle(counts, self._size)
                    rows[pair] = compare(regions[pair[0]], regions[pair[1]], self._radius)
                out[index, frame] = rows[pair]
        self._counts.extend(out)


def stack(rows: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """Count rows as one ``(N, 7)`` array, also for N = 0."""
    return np.asarray(rows, np.int64).reshape(len(rows), len(COUNTS))

"""Checked COCO run-length masks.

Every mask that comes out of a data file is measured (:func:`~refseg_bench.types.rle_fault`) before
anything decodes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg_bench.datasets.damage import Damage, Report, refuse
from refseg_bench.types import encode_rle, rle_fault

Size = tuple[int, int]


@lru_cache(maxsize=64)
def blank(size: Size) -> bytes:
    """The mask that says "absent"."""
    return encode_rle(np.zeros(size, np.uint8))


def checked_rle(
    entry: Any, size: Size | None, *, file: Path, place: str, report: Report = refuse
) -> tuple[bytes, Size] | None:
    """One RLE of a data file as compressed counts.

    Args:
        entry: ``{"size": [h, w], "counts": text, bytes or list of runs}``.
        size: the (height, width) it must have, or ``None`` for any.
        file: where it was read from.
        place: where in that file.
        report: receives the problem.

    Returns:
        Counts and size, or ``None`` after reporting a problem.
    """

    def say(kind: str, what: str) -> None:
        report(Damage(kind, what, file=file, place=place))

    if not isinstance(entry, Mapping) or "size" not in entry or "counts" not in entry:
        say("malformed mask", "A mask must be an object with 'size' and 'counts', or null.")
        return None
    own = entry["size"]
    if not (
        isinstance(own, (list, tuple))
        and len(own) == 2
        and all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and 0 < n <= 65535 for n in own)
    ):
        say("malformed mask", f"The mask's size {own!r} is no [height, width].")
        return None
    mine = (int(own[0]), int(own[1]))
    if size is not None and mine != size:
        swapped = ": height and width are swapped" if mine == size[::-1] else ""
        say(
            "mask of another size",
            f"The mask is {mine[0]} x {mine[1]}, its frame {size[0]} x {size[1]} (height x width){swapped}.",
        )
        return None
    counts = entry["counts"]
    if isinstance(counts, str):
        # Only ASCII is in the alphabet; anything else fails the measurement below.
        counts = counts.encode("ascii", "replace")
    elif isinstance(counts, (list, tuple)):
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts):
            say("torn mask", "The mask's run lengths are not whole numbers from 0 up.")
            return None
        if sum(counts) != mine[0] * mine[1]:
            say("torn mask", f"The mask's runs cover {sum(counts)} pixels of {mine[0] * mine[1]}.")
            return None
        counts = bytes(coco_mask.frPyObjects({"size": list(mine), "counts": list(counts)}, *mine)["counts"])
    if not isinstance(counts, bytes):
        say("malformed mask", f"The mask's counts are {type(counts).__name__}.")
        return None
    reason = rle_fault(counts, mine)
    if reason is not None:
        say("torn mask", f"The mask's run-length code is damaged: {reason}.")
        return None
    return counts, mine


def checked_track(
    entries: Any, size: Size, length: int, *, file: Path, place: str, report: Report = refuse
) -> tuple[bytes, ...]:
    """The masks of one object: one RLE, or null = absent, per frame.

    Returns:
        Compressed counts per frame; a mask that was reported as damaged stands as absent.
    """
    if not isinstance(entries, (list, tuple)):
        report(Damage("malformed mask", "The masks of an object must be a list.", file=file, place=place))
        return (blank(size),) * length
    if len(entries) != length:
        report(
            Damage(
                "mask count differs",
                f"The object has {len(entries)} masks, its video {length} frames.",
                file=file,
                place=place,
                cure="Use the mask file and the expression file of one release.",
            )
        )
    out = [blank(size)] * length
    for index, entry in enumerate(entries[:length]):
        if entry is None:
            continue
        found = checked_rle(entry, size, file=file, place=f"{place}[{index}]", report=report)
        if found is not None:
            out[index] = found[0]
    return tuple(out)

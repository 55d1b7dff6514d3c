"""Scores by attribute: what a mean over everything hides.

Facts of a target (how many objects, how large, how fast, how long the clip) are written beside
every unit when it is scored, so that tables can be split later without the dataset.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg_bench.errors import ScoreError
from refseg_bench.scoring.protocols.base import ScoringProtocol
from refseg_bench.scoring.stats import Bootstrap, intervals
from refseg_bench.scoring.table import ScoreTable
from refseg_bench.types import Clip, Estimate, MaskTrack, Target

#: Upper ends of the groups of numeric attributes, with their names; the last name is beyond all.
GROUPS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "objects": ((0, 1, 2), ("0", "1", "2", "3 or more")),
    "size": ((0, 0.01, 0.1), ("absent", "small, up to 1 %", "medium, up to 10 %", "large, above 10 %")),
    "clip_length": ((1, 30, 80), ("image", "2 to 30 frames", "31 to 80 frames", "above 80 frames")),
    "motion": ((0.002, 0.01), ("still, up to 0.2 %", "slow, up to 1 %", "fast, above 1 %")),
}
#: Columns of a score table that describe the scoring, not the sample.
_BOOKKEEPING = frozenset({"frames_counted", "counted_as"})


def target_facts(clip: Clip, target: Target, union: MaskTrack) -> dict[str, Any]:
    """Attributes of a target for breakdowns.

    Returns:
        ``objects``: number of objects meant. ``size``: mean share of the frame over the frames
        where the target is present, 0 if it never is. ``clip_length``: frames. ``motion``: mean
        distance of the bounding boxes' centres in neighbouring frames where the target is present,
        as a share of the frame's diagonal; ``None`` if there are no two such frames.
    """
    height, width = clip.size
    # A frame nobody annotated counts as one without the target.
    coded = [{"size": [height, width], "counts": c or b""} for c in union.rles]
    areas = np.asarray(coco_mask.area(coded), np.float64)
    present = areas > 0
    facts: dict[str, Any] = {
        "objects": len(target.objects),
        "size": float(areas[present].mean() / (height * width)) if present.any() else 0.0,
        "clip_length": len(clip),
    }
    if len(clip) > 1:
        boxes = np.asarray(coco_mask.toBbox(coded), np.float64).reshape(-1, 4)
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        both = present[1:] & present[:-1]
        steps = np.hypot(*np.diff(centres, axis=0).T)[both]
        facts["motion"] = float(steps.mean() / np.hypot(height, width)) if len(steps) else None
    return facts


def group_of(attribute: str, value: Any) -> str:
    """The group a value of an attribute belongs to."""
    if value is None or value != value:
        return "unknown"
    if attribute in GROUPS and isinstance(value, (int, float)) and not isinstance(value, bool):
        ends, names = GROUPS[attribute]
        return names[int(np.searchsorted(ends, value, side="left"))]
    return str(value)


def breakdown(
    protocol: ScoringProtocol, table: ScoreTable, attribute: str, options: Bootstrap
) -> dict[str, tuple[int, dict[str, Estimate]]]:
    """The protocol's metrics on each group of units.

    Args:
        protocol: the rules the table was made under.
        table: all units.
        attribute: one of :data:`GROUPS`, or any attribute of the units (``type``, ``annotator`` …).
        options: how intervals are made.

    Returns:
        Group → (units, metrics with intervals); known groups in their order, others by name.

    Raises:
        ScoreError: the units don't have the attribute.
    """
    out: dict[str, tuple[int, dict[str, Estimate]]] = {}
    for name, rows in groups_of(table, attribute, protocol.name).items():
        part = table.select(rows)
        terms = protocol.terms(part.values, part.attrs)
        out[name] = (len(rows), intervals(terms, part.clusters, protocol.combine, options))
    return out


def groups_of(table: ScoreTable, attribute: str, where: str = "") -> dict[str, NDArray[np.intp]]:
    """The rows of each group of units; known groups in their order, others by name.

    Raises:
        ScoreError: the units don't have the attribute.
    """
    if attribute not in table.attrs:
        raise ScoreError(
            f"The units have no attribute '{attribute}'.", where=where or None, allowed=sorted(table.attrs)
        )
    groups = np.array([group_of(attribute, value) for value in table.attrs[attribute]])
    order = dict.fromkeys([*GROUPS.get(attribute, ((), ()))[1], *sorted(set(groups.tolist()))])
    found = {name: np.flatnonzero(groups == name) for name in order}
    return {name: rows for name, rows in found.items() if len(rows)}


def splitting(tables: Iterable[ScoreTable]) -> list[str]:
    """Attributes that sort units into 2 to 12 groups (lists of ids, stored as JSON, don't)."""
    found: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        for name, cells in table.attrs.items():
            found[name] |= {group_of(name, cell) for cell in cells}
    return [
        name
        for name, words in found.items()
        if 2 <= len(words) <= 12 and name not in _BOOKKEEPING and not any(w[:1] == "[" for w in words)
    ]

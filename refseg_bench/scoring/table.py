"""Scores as columns: what protocols aggregate, what is written to Parquet, and its groups by attribute.

Facts of a target (how many objects, how large, how fast, how long the clip) are written beside every unit
when it is scored, so that tables can be split later without the dataset. A row object per unit would cost
a kilobyte; a million expressions fit in a few hundred megabytes as columns.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg_bench.errors import ScoreError, StoreError
from refseg_bench.scoring.protocols.base import ScoringProtocol
from refseg_bench.scoring.stats import Bootstrap, intervals
from refseg_bench.types import Clip, Estimate, MaskTrack, Score, Target

_NAN = float("nan")
#: Most rows of a table that is read back.
_MOST_ROWS = 1 << 26


@dataclass(eq=False)
class ScoreTable:
    """Columns of units, in the order they were scored."""

    units: list[str] = field(default_factory=list)  #: id of every unit
    clusters: list[str] = field(default_factory=list)  #: the clip of every unit
    #: Attribute name → column (``None`` where a unit doesn't have it).
    attrs: dict[str, list[Any]] = field(default_factory=dict)
    #: Per-frame values of every unit, where they were asked for.
    frames: list[Mapping[str, Any] | None] = field(default_factory=list)
    _values: dict[str, array[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.units)

    def extend(self, scores: Iterable[Score]) -> None:
        """Append scores; a value a unit lacks is NaN."""
        for score in scores:
            row = len(self.units)
            self.units.append(score.unit)
            self.clusters.append(score.cluster)
            attrs = dict(score.attrs)
            self.frames.append(attrs.pop("frames", None))
            self._values |= {n: array("d", [_NAN]) * row for n in score.values if n not in self._values}
            for name, column in self._values.items():
                column.append(score.values.get(name, _NAN))
            self.attrs |= {name: [None] * row for name in attrs if name not in self.attrs}
            for name, cells in self.attrs.items():
                cells.append(attrs.get(name))

    @property
    def values(self) -> dict[str, NDArray[np.float64]]:
        """Value name → float64 column, without copying."""
        return {name: np.frombuffer(column, np.float64) for name, column in self._values.items()}

    def select(self, rows: Sequence[int] | NDArray[np.intp]) -> ScoreTable:
        """The given rows as a table of their own."""
        index = np.asarray(rows, np.intp)
        units, clusters, frames = ([c[i] for i in index] for c in (self.units, self.clusters, self.frames))
        attrs = {name: [column[i] for i in index] for name, column in self.attrs.items()}
        values = {name: array("d", column[index].tobytes()) for name, column in self.values.items()}
        return ScoreTable(units, clusters, attrs, frames, values)

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``: unit, cluster, value columns, attribute columns (``attr.NAME``)."""
        import pyarrow as pa

        columns = {"unit": _arrow(self.units), "cluster": _arrow(self.clusters)}
        for name, held in self._values.items():
            columns[name] = pa.Array.from_buffers(pa.float64(), len(held), [None, pa.py_buffer(held)])
        columns |= {f"attr.{name}": _arrow(cells) for name, cells in self.attrs.items()}
        return pa.Table.from_arrays([*columns.values()], [*columns])

    def write_parquet(self, file: Path | IO[bytes]) -> None:
        """Write all rows to one Parquet file, or into an open one (not atomic by itself)."""
        import pyarrow.parquet as pq

        pq.write_table(self.to_arrow(), file)

    @classmethod
    def read_parquet(cls, path: Path, data: bytes | None = None) -> ScoreTable:
        """Undo :meth:`write_parquet`, without per-frame values; ``data``: its content, where that was read.

        Raises:
            StoreError: the file is damaged or no such table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        out = cls()
        try:
            stored = pq.ParquetFile(path if data is None else pa.BufferReader(data))
            if stored.metadata.num_rows > _MOST_ROWS:
                raise ValueError(f"it has more than {_MOST_ROWS} rows")
            if len(set(stored.schema_arrow.names)) < len(stored.schema_arrow.names):
                raise ValueError("a column stands twice")
            table = stored.read()
            for name in table.column_names:
                cells = table.column(name)
                if name in ("unit", "cluster"):
                    setattr(out, f"{name}s", cells.cast(pa.string()).to_pylist())
                elif name.startswith("attr."):
                    out.attrs[name.removeprefix("attr.")] = cells.to_pylist()
                else:
                    # Not by to_numpy, which takes half a second to import pandas.
                    found = cells.cast(pa.float64()).to_pylist()
                    out._values[name] = array("d", [_NAN if v is None else v for v in found])
            if None in out.units or None in out.clusters or len(set(out.units)) < table.num_rows:
                raise ValueError("a unit has no name, or stands twice")
            if len(out.units) != len(out.clusters):
                raise ValueError("a unit has no clip")
        except (OSError, ValueError, KeyError, NotImplementedError, pa.ArrowException) as error:
            raise StoreError(
                f"The scores can't be read ({str(error).splitlines()[0] if str(error) else type(error)}).",
                where=path,
                hint="Score the run again: refseg score RUN",
            ) from error
        out.frames = [None] * len(out.units)
        return out


def _arrow(cells: Sequence[Any]) -> Any:
    """Numbers, truths or texts, ``None`` among them, as a ``pyarrow.Array``; all else as JSON.

    Made of buffers: from a list pyarrow takes half a second to import pandas.
    """
    import pyarrow as pa

    kinds = {type(c) for c in cells if c is not None}
    if not kinds:
        return pa.nulls(len(cells))
    fits = all(-(1 << 63) <= c < 1 << 63 for c in cells if isinstance(c, int))
    if kinds != {bool} and not (fits and all(issubclass(k, int | float) and k is not bool for k in kinds)):
        texts = pa.lib.StringBuilder()
        texts.append_values([c if c is None or isinstance(c, str) else json.dumps(c) for c in cells])
        return texts.finish()
    values = np.array([False if c is None else c for c in cells])
    held = np.packbits(values, bitorder="little") if kinds == {bool} else values
    known = pa.py_buffer(np.packbits([c is not None for c in cells], bitorder="little"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(cells), [known, pa.py_buffer(held)])


# ── by attribute: what a mean over everything hides ──────────────────────────

#: Upper ends of the groups of numeric attributes, with their names; the last name is beyond all.
GROUPS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "objects": ((0, 1, 2), ("0", "1", "2", "3 or more")),
    "size": ((0, 0.01, 0.1), ("absent", "small, up to 1 %", "medium, up to 10 %", "large, above 10 %")),
    "clip_length": ((1, 30, 80), ("image", "2 to 30 frames", "31 to 80 frames", "above 80 frames")),
    "motion": ((0.002, 0.01), ("still, up to 0.2 %", "slow, up to 1 %", "fast, above 1 %")),
}
#: Columns of a score table that describe the scoring, not the sample.
_BOOKKEEPING = frozenset({"frames_counted", "counted_as", "answer"})


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
    areas = np.asarray([area or 0 for area in union.area()], np.float64)
    present = areas > 0
    facts: dict[str, Any] = {
        "objects": len(target.objects),
        "size": float(areas[present].mean() / (height * width)) if present.any() else 0.0,
        "clip_length": len(clip),
    }
    if len(clip) > 1:
        coded = [{"size": [height, width], "counts": c or b""} for c in union.rles]
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
    # Where some units lack a whole number, a column of them holds fractions.
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def breakdown(
    protocol: ScoringProtocol, table: ScoreTable, attribute: str, options: Bootstrap
) -> dict[str, tuple[int, dict[str, Estimate]]]:
    """The protocol's metrics on each group of units: group → (units, metrics with intervals); known groups in
    their order, others by name.

    By one of :data:`GROUPS`, or any attribute of the units (``type``, ``annotator`` …).

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

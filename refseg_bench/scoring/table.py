"""Scores as columns: what protocols aggregate, and what is written to Parquet.

A row object per unit would cost a kilobyte; a million expressions fit in a few hundred megabytes
as columns.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import StoreError
from refseg_bench.types import Score

_NAN = float("nan")
#: Most rows of a table that is read back.
_MOST_ROWS = 1 << 26


class ScoreTable:
    """Columns of units, in the order they were scored.

    Attributes:
        units: id of every unit.
        clusters: the clip of every unit.
        values: value name → float64 column.
        attrs: attribute name → column (``None`` where a unit doesn't have it).
        frames: per-frame values of every unit, where they were asked for.
    """

    def __init__(self) -> None:
        self.units: list[str] = []
        self.clusters: list[str] = []
        self._values: dict[str, array[float]] = {}
        self.attrs: dict[str, list[Any]] = {}
        self.frames: list[Mapping[str, Any] | None] = []

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
        """Value name → column, without copying."""
        return {name: np.frombuffer(column, np.float64) for name, column in self._values.items()}

    def select(self, rows: Sequence[int] | NDArray[np.intp]) -> ScoreTable:
        """The given rows as a table of their own."""
        out = ScoreTable()
        index = np.asarray(rows, np.intp)
        out.units = [self.units[i] for i in index]
        out.clusters = [self.clusters[i] for i in index]
        out._values = {name: array("d", column[index].tobytes()) for name, column in self.values.items()}
        out.attrs = {name: [column[i] for i in index] for name, column in self.attrs.items()}
        out.frames = [self.frames[i] for i in index]
        return out

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``: unit, cluster, value columns, attribute columns (``attr.NAME``)."""
        import json

        import pyarrow as pa

        columns: dict[str, Any] = {"unit": pa.array(self.units), "cluster": pa.array(self.clusters)}
        for name, column in self.values.items():
            columns[name] = pa.array(column)
        for name, cells in self.attrs.items():
            simple = all(c is None or isinstance(c, (str, bool, int, float)) for c in cells)
            kinds = {type(c) for c in cells if c is not None}
            if not simple or len(kinds - {int, float}) > (0 if kinds & {int, float} else 1):
                cells = [None if c is None else c if isinstance(c, str) else json.dumps(c) for c in cells]
            columns[f"attr.{name}"] = pa.array(cells)
        return pa.table(columns)

    def write_parquet(self, file: Path | IO[bytes]) -> None:
        """Write all rows to one Parquet file, or into an open one (not atomic by itself)."""
        import pyarrow.parquet as pq

        pq.write_table(self.to_arrow(), file)

    @classmethod
    def read_parquet(cls, path: Path, data: bytes | None = None) -> ScoreTable:
        """Undo :meth:`write_parquet`, without per-frame values.

        Args:
            path: the file.
            data: its content, where that was read already.

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
                    out._values[name] = array("d", cells.cast(pa.float64()).to_numpy().tobytes())
            if not (None not in out.units and None not in out.clusters and len(out.units) == table.num_rows):
                raise ValueError("a unit has no name")
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

"""Published numbers: the rows of ``results/paper/*.csv`` and which of them a run is held against."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from refseg_bench.errors import ConfigError, StoreError
from refseg_bench.files.resources import resource
from refseg_bench.report.tables import in_percent
from refseg_bench.run.build import frozen
from refseg_bench.run.store import RunStore
from refseg_bench.types import Estimate, Result

#: Our data set → what published tables call it.
PAPER_NAMES = {
    "ref_davis17": "Ref-DAVIS17",
    "reasonvos": "ReasonVOS",
    "revos": "ReVOS",
    "mevis": "MeViS",
    "ref_youtube_vos": "Ref-YouTube-VOS",
    "refcoco_unc": "RefCOCO",
    "refcoco_plus_unc": "RefCOCO+",
    "refcocog_umd": "RefCOCOg",
    "grefcoco_unc": "gRefCOCO",
    "reasonseg": "ReasonSeg",
}

#: How far a reproduced number may lie from the published one, in points, unless the experiment says.
TOLERANCE = 1.0


@dataclass(frozen=True)
class PaperRow:
    """One printed number, with the columns of the CSV.

    Attributes:
        paper, table, row: where it is printed; ``row`` is the row's number in its table.
        method, backbone, segmenter, kind: what it belongs to; empty = not printed.
        dataset, split: what it was measured on.
        setting: ``key=value`` pairs joined by ``;``.
        metric: its name.
        value: in percent, as printed.
        source: where a third party printed it.
    """

    paper: str
    table: str
    row: str
    method: str
    backbone: str
    segmenter: str
    kind: str
    dataset: str
    split: str
    setting: str
    metric: str
    value: str
    source: str = ""

    @property
    def pairs(self) -> dict[str, str]:
        """The setting as a mapping."""
        return settings_of(self.setting)

    @property
    def number(self) -> float:
        """The value as a number."""
        return float(self.value)


#: The CSV's columns in order (``source`` only where there is one).
COLUMNS = tuple(f.name for f in fields(PaperRow))


def settings_of(text: str) -> dict[str, str]:
    """``a=1;b=2`` as a mapping."""
    return dict(pair.partition("=")[::2] for pair in text.split(";") if pair)


def paper_rows(file: str) -> list[PaperRow]:
    """The rows of one file of ``results/paper``.

    Raises:
        ConfigError: there is no such file.
        StoreError: the file lacks a column.
    """
    path = resource("results") / "paper" / file
    if Path(file).name != file or not path.is_file():
        have = sorted(p.name for p in path.parent.glob("*.csv"))
        raise ConfigError(f"No file '{file}' of published numbers.", where=path.parent, allowed=have)
    with path.open(encoding="utf-8", newline="") as handle:
        try:
            return [PaperRow(**row) for row in csv.DictReader(handle)]
        except TypeError as error:
            raise StoreError(f"A row has other columns than expected ({error}).", where=path) from error


@dataclass(frozen=True)
class Reference:
    """Which published rows a run is held against, from ``reference:`` of its experiment.

    Attributes:
        file, table: the table.
        method, backbone, dataset, split: what rows must say; ``None`` = anything.
        setting: pairs that rows must hold among theirs.
        tolerance: how far in points the run may be off and still count as reproduced.
    """

    file: str
    table: str
    method: str | None = None
    backbone: str | None = None
    dataset: str | None = None
    split: str | None = None
    setting: str = ""
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Reference:
        """From a config's node; keys that only help its interpolations are left out.

        Raises:
            ConfigError: the node has no file or table.
        """
        known = {f.name: node[f.name] for f in fields(cls) if node.get(f.name) is not None}
        for name in ("file", "table"):
            if name not in known:
                raise ConfigError(f"'reference' lacks '{name}'.", where="experiment")
        tolerance = known.pop("tolerance", TOLERANCE)
        if type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
            raise ConfigError(
                f"'reference.tolerance' is {tolerance!r}.", where="experiment", allowed=["points, 0 or more"]
            )
        return cls(**{name: str(value) for name, value in known.items()}, tolerance=tolerance)

    @classmethod
    def of_run(cls, store: RunStore) -> Reference | None:
        """What a run is held against, ``None`` if nothing."""
        node = frozen(store).get("reference")
        return cls.of(node) if node else None

    def rows(self) -> list[PaperRow]:
        """The published rows that fit, in print order."""
        dataset = PAPER_NAMES.get(self.dataset or "", self.dataset)
        wanted = settings_of(self.setting)
        return [
            row
            for row in paper_rows(self.file)
            if row.table == self.table
            and self.method in (None, row.method)
            and self.backbone in (None, row.backbone)
            and dataset in (None, row.dataset)
            and self.split in (None, row.split)
            and wanted.items() <= row.pairs.items()
        ]


@dataclass(frozen=True)
class Held:
    """One number of a run beside the published one.

    Attributes:
        row: the published number.
        run: the run's name.
        protocol: what the run was scored under.
        estimate: the run's number, in percent.
        result: the whole result row, for its coverage.
        tolerance: how far it may be off.
    """

    row: PaperRow
    run: str
    protocol: str
    estimate: Estimate
    result: Result
    tolerance: float

    @property
    def delta(self) -> float:
        """Ours minus the published number, in points."""
        return self.estimate.value - self.row.number

    @property
    def within(self) -> bool:
        """True if the number counts as reproduced."""
        # A hair more: both numbers are printed with one or two decimals.
        return abs(self.delta) <= self.tolerance + 1e-9


def metric_name(row: PaperRow) -> str:
    """How our protocols call a row's metric: ReVOS prints the parts of its split as splits."""
    part = row.split.partition("/")[2]
    return row.metric if part in ("", "overall") else f"{part}/{row.metric}"


def held_against(store: RunStore) -> list[Held]:
    """Every published number that a scored run has a counterpart of.

    A metric that several protocols of the run give is taken from the first that has it.
    """
    reference = Reference.of_run(store)
    if reference is None:
        return []
    results = _in_order(store)
    out = []
    for row in reference.rows():
        name = metric_name(row)
        for result in results:
            estimate = result.metrics.get(name)
            if estimate is not None and math.isfinite(estimate.value):
                ours = in_percent(result, estimate)
                out.append(Held(row, store.root.name, result.protocol, ours, result, reference.tolerance))
                break
    return out


def _in_order(store: RunStore) -> list[Result]:
    """Results in the order of the run's own protocols, others after them."""
    asked = [str(word).partition("@")[0] for word in frozen(store).get("protocols") or ()]
    place = {name: index for index, name in enumerate(asked)}
    results = store.results().values()
    return sorted(results, key=lambda r: place.get(r.protocol.partition("@")[0], len(place)))


def runs_held_against(stores: Iterable[RunStore], file: str, table: str) -> list[RunStore]:
    """The runs that are held against one table."""
    found = []
    for store in stores:
        reference = Reference.of_run(store)
        if reference is not None and (reference.file, reference.table) == (file, table):
            found.append(store)
    return found

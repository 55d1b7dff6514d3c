"""A sweep as a picture: what changed between runs, and what it did to a metric.

One swept option gives a line with its intervals, two a heat map, more a ranked table and parallel
coordinates.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refseg_bench.errors import ScoreError, printable, require
from refseg_bench.report.compare import differing, less_is_better, options_of, said, shared_protocol
from refseg_bench.report.tables import (
    Cell,
    ResultTable,
    Row,
    best_of,
    equal_in_print,
    in_percent,
    number_cell,
    rows_of,
)
from refseg_bench.run.build import lasting_of
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.results import level_of
from refseg_bench.types import Estimate


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep: the values of the swept options, and the metric in percent."""

    row: Row
    values: Mapping[str, Any]
    estimate: Estimate
    best: bool  #: whether it is printed as the best, by the rules of a table


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in a few options (``keys``, in the order of the config), under one protocol."""

    metric: str
    protocol: str
    keys: tuple[str, ...]
    points: tuple[SweepPoint, ...]


def sweep_of(stores: Sequence[RunStore], *, metric: str | None = None, keys: Sequence[str] = ()) -> Sweep:
    """What differs between runs, and their metric under the first protocol that all are scored under.

    ``metric``: by default the protocol's headline; ``keys``: options to draw, by default every one that
    differs. A component that differs (another backbone) counts as one option.

    Raises:
        ScoreError: the runs are of different data, share no protocol or metric, or differ in nothing.
    """
    data = {store.info().data: ", ".join(store.info().data) for store in stores}
    if len(data) > 1:
        raise ScoreError(
            "The runs are of different data.", allowed=list(data.values()), hint="Give runs of one of them."
        )
    results = [store.results() for store in stores]
    name = shared_protocol(stores, None)
    metric = metric or next(iter(results[0][name].metrics))
    absent = [
        s.root.name for s, known in zip(stores, results, strict=True) if metric not in known[name].metrics
    ]
    if absent:
        raise ScoreError(
            f"No metric '{metric}' in {absent[0]}.", where=name, allowed=list(results[0][name].metrics)
        )
    options = [options_of(store.info().choices, lasting_of(store)) for store in stores]
    swept = differing(options)
    unknown = [key for key in keys if not any(key in known for known in options)]
    if unknown:
        raise ScoreError(f"The runs have no option '{unknown[0]}'.", allowed=swept)
    chosen = tuple(keys) or tuple(swept)
    if not chosen:
        raise ScoreError(
            "The runs differ in no option.", hint="Give runs of a sweep: refseg run -m key=a,b,c"
        )
    rows = {row.root: row for row in rows_of(stores) if row.result.protocol == name}
    top, points = best_of(rows.values(), metric), []
    for store, known in zip(stores, options, strict=True):
        row, values = rows[store.root], {k: known.get(k) for k in chosen}
        estimate, most = in_percent(row.result, metric), top * row.result.percent(metric)
        best = len(stores) > 1 and row.ranked and equal_in_print(estimate.value, most)
        points.append(SweepPoint(row, values, estimate, best))
    places = [tuple(said(p.values[key]) for key in chosen) for p in points]
    if len(chosen) <= 2 and len(set(places)) < len(places):
        raise ScoreError(
            f"Several runs have the same {' and '.join(chosen)}.",
            allowed=swept,
            hint="Name every option that differs, or give fewer runs.",
        )
    return Sweep(metric, name, chosen, tuple(points))


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Distinct values: numbers by size, words as they come."""
    distinct = list({said(v): v for v in values}.values())
    return sorted(distinct) if _numeric(distinct) else distinct


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


# ── pictures ─────────────────────────────────────────────────────────────────


def draw(sweep: Sweep) -> str:
    """:func:`figure_of` as SVG text.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib", "Drawing a sweep")
    import matplotlib

    out = io.StringIO()
    # Text stays text, and the same sweep gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "refseg", "text.parse_math": False}):
        figure_of(sweep).savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def figure_of(sweep: Sweep) -> Any:
    """The matplotlib figure that fits the number of swept options."""
    from matplotlib.figure import Figure

    drawers: dict[int, Callable[[Sweep, Any], None]] = {1: _line, 2: _heat_map}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(printable(_title(sweep)))
    drawers.get(len(sweep.keys), _parallel)(sweep, axes)
    return figure


def _title(sweep: Sweep) -> str:
    level = level_of(point.row.result for point in sweep.points)
    lacking = sum(point.row.lacks for point in sweep.points)
    return (
        f"{sweep.metric}, {sweep.protocol}, percent"
        + (f", {level} intervals" if level else "")
        + (f"; {lacking} of {len(sweep.points)} runs lack samples (*)" if lacking else "")
    )


def _finite(sweep: Sweep) -> list[SweepPoint]:
    """The runs that have a value, best first."""
    found = [p for p in sweep.points if math.isfinite(p.estimate.value)]
    return sorted(found, key=lambda p: p.estimate.value, reverse=not less_is_better(sweep.metric))


def _shown(point: SweepPoint) -> Cell:
    """A run's number, with a star where it isn't of all samples of the split."""
    return replace(number_cell(point.estimate, 1.0, point.best), mark="*" * point.row.lacks)


def _positions(sweep: Sweep, key: str) -> dict[str, int]:
    """Value in print → its place among the values of an option."""
    return {said(v): i for i, v in enumerate(_ordered([p.values[key] for p in sweep.points]))}


def _line(sweep: Sweep, axes: Any) -> None:
    """One option along the bottom, the metric upwards, with intervals."""
    (key,) = sweep.keys
    numeric = _numeric([p.values[key] for p in sweep.points])
    places = _positions(sweep, key)
    at = {p.row.root: p.values[key] if numeric else places[said(p.values[key])] for p in sweep.points}
    points = sorted(_finite(sweep), key=lambda p: at[p.row.root])
    values = [p.estimate.value for p in points]
    ends = [[p.estimate.value - p.estimate.low, p.estimate.high - p.estimate.value] for p in points]
    axes.errorbar(
        [at[p.row.root] for p in points], values, np.transpose(ends) if ends else None,
        fmt="o-" if numeric else "o", capsize=3,
    )  # fmt: skip
    for p in points:
        shown, place = _shown(p), (at[p.row.root], p.estimate.value)
        axes.annotate(f"{shown.text}{shown.mark}", place, (6, 4), textcoords="offset points")
    axes.set_xticks(sorted(set(at.values())), [printable(text) for text in places])
    axes.set_xlabel(printable(key))


def _heat_map(sweep: Sweep, axes: Any) -> None:
    """Two options as columns and rows; a cell is coloured by the metric and says it."""
    across, down = sweep.keys
    columns, rows = _positions(sweep, across), _positions(sweep, down)
    grid = np.full((len(rows), len(columns)), np.nan)
    for p in _finite(sweep):
        row, column, shown = rows[said(p.values[down])], columns[said(p.values[across])], _shown(p)
        grid[row, column] = p.estimate.value
        text = f"{shown.text}{shown.mark}\n{shown.interval}".rstrip()
        axes.text(column, row, text, ha="center", va="center")
    axes.imshow(grid, cmap="Blues", aspect="auto", alpha=0.6)
    axes.set_xticks(range(len(columns)), [printable(text) for text in columns])
    axes.set_yticks(range(len(rows)), [printable(text) for text in rows])
    axes.set_xlabel(printable(across))
    axes.set_ylabel(printable(down))


def _parallel(sweep: Sweep, axes: Any) -> None:
    """Each option an axis, each run a line from its values to its metric; the best is drawn thick."""
    points = _finite(sweep)[::-1]
    low, high = (points[0].estimate.value, points[-1].estimate.value) if points else (0.0, 1.0)
    places = {key: _positions(sweep, key) for key in sweep.keys}
    for rank, p in enumerate(points, start=1):
        heights = [_share(places[key][said(p.values[key])], len(places[key]) - 1) for key in sweep.keys]
        axes.plot(
            [*heights, _share(p.estimate.value - low, high - low)],
            color="C1" if p.best else "C0",
            linewidth=3 if p.best else 1.2,
            alpha=0.25 + 0.75 * rank / len(points),
        )
    labels = [
        *((printable(t), x, _share(place, len(places[key]) - 1))
          for x, key in enumerate(sweep.keys) for t, place in places[key].items()),
        *((f"{value:z.1f}", len(sweep.keys), _share(value - low, high - low)) for value in (low, high)),
    ]  # fmt: skip
    for text, x, y in labels:
        axes.annotate(text, (x, y), (4, 2), textcoords="offset points")
    for x in range(len(sweep.keys)):
        axes.axvline(x, color="0.8", zorder=0)
    axes.set_xticks(range(len(sweep.keys) + 1), [printable(k) for k in (*sweep.keys, sweep.metric)])
    axes.set_yticks([])


def _share(part: float, whole: float) -> float:
    """A part of a whole in [0, 1]; the middle where there is no extent."""
    return part / whole if whole else 0.5


def ranked(sweep: Sweep) -> ResultTable:
    """All runs, best first."""
    nan = [p for p in sweep.points if not math.isfinite(p.estimate.value)]
    rows = []
    for p in [*_finite(sweep), *nan]:
        r = p.row.result
        options = [Cell(said(p.values[key])) for key in sweep.keys]
        rows.append((*options, _shown(p), Cell(str(r.n)), Cell(str(r.failed)), Cell(str(r.missing))))
    header = (*sweep.keys, sweep.metric, "n", "failed", "missing")
    return ResultTable(_title(sweep), header, tuple(rows), names=len(sweep.keys))

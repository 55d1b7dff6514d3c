"""A sweep as a picture: what changed between runs, and what it did to a metric.

One swept option gives a line with its intervals, two a heat map, more a ranked table and parallel
coordinates. The pictures are SVG, written here: a few hundred marks need no plotting library, and the
text in them stays text.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refseg_bench.errors import ScoreError
from refseg_bench.files.store_io import printable
from refseg_bench.report.compare import flatten
from refseg_bench.report.tables import Cell, ResultTable, level_of, number_cell
from refseg_bench.run.loop import lasting_of
from refseg_bench.run.store import RunStore
from refseg_bench.types import Estimate, Result

_WIDTH, _HEIGHT, _PAD = 640, 400, 60
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#222}line.a,path.a{stroke:#ccc}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}line.a,path.a{stroke:#555}}</style>"
)


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        run: its name.
        values: swept option → its value.
        estimate: the metric, in percent.
        result: the whole result row.
    """

    run: str
    values: Mapping[str, Any]
    estimate: Estimate
    result: Result


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in a few options, under one protocol.

    Attributes:
        metric, protocol: what is drawn.
        keys: the options that differ, in the order of the config.
        points: the runs.
    """

    metric: str
    protocol: str
    keys: tuple[str, ...]
    points: tuple[Point, ...]


def sweep_of(
    stores: Sequence[RunStore],
    *,
    metric: str | None = None,
    protocol: str | None = None,
    keys: Sequence[str] = (),
) -> Sweep:
    """What differs between runs, and their metric.

    Args:
        stores: scored runs.
        metric: by default the protocol's headline.
        protocol: id or ``id@version``; by default the first that all runs are scored under.
        keys: options to draw; by default every one that differs. A component that differs (another
            backbone) counts as one option.

    Raises:
        ScoreError: the runs share no protocol or metric, or differ in nothing.
    """
    results = [store.results() for store in stores]
    shared = [
        name
        for name in (results[0] if results else {})
        if all(name in known for known in results) and protocol in (None, name, name.partition("@")[0])
    ]
    if not shared:
        raise ScoreError(
            f"The runs are not all scored under {protocol or 'a common protocol'}.",
            where=", ".join(store.root.name for store in stores[:5]),
            cure="refseg score RUNS --protocol ID",
        )
    name = shared[0]
    metric = metric or next(iter(results[0][name].metrics))
    absent = [
        s.root.name for s, known in zip(stores, results, strict=True) if metric not in known[name].metrics
    ]
    if absent:
        raise ScoreError(
            f"No metric '{metric}' in {absent[0]}.", where=name, allowed=list(results[0][name].metrics)
        )
    options = [_options(store) for store in stores]
    differing = _differing(options)
    unknown = [key for key in keys if not any(key in known for known in options)]
    if unknown:
        raise ScoreError(f"The runs have no option '{unknown[0]}'.", allowed=differing)
    chosen = tuple(keys) or tuple(differing)
    if not chosen:
        raise ScoreError(
            "The runs differ in no option.", cure="Give runs of a sweep: refseg run -m key=a,b,c"
        )
    points = []
    for store, known, found in zip(stores, options, results, strict=True):
        result = found[name]
        percent = 100.0 / result.scale
        e = result.metrics[metric]
        estimate = Estimate(e.value * percent, e.low * percent, e.high * percent)
        points.append(Point(store.root.name, {k: known.get(k) for k in chosen}, estimate, result))
    places = [tuple(_text(p.values[key]) for key in chosen) for p in points]
    if len(chosen) <= 2 and len(set(places)) < len(places):
        raise ScoreError(
            f"Several runs have the same {' and '.join(chosen)}.",
            allowed=differing,
            cure="Name every option that differs, or give fewer runs.",
        )
    return Sweep(metric, name, chosen, tuple(points))


def _options(store: RunStore) -> dict[str, Any]:
    """The options that can change a prediction; a component chosen by name goes by that name first."""
    choices = store.info().get("choices", {})
    named = {part: choices.get(part) for part in ("dataset", "method", "backbone", "segmenter")}
    return {
        **{k: v for k, v in named.items() if v not in (None, "None")},
        **dict(flatten(lasting_of(store))),
    }


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for known in options for key in known))
    differing = [k for k in keys if len({_text(known.get(k)) for known in options}) > 1]
    parts = {k for k in differing if "." not in k}
    # What differs because another component was chosen is told by the component's name.
    return [k for k in differing if "." not in k or k.partition(".")[0] not in parts]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Distinct values: numbers by size, words as they come."""
    distinct = list({_text(v): v for v in values}.values())
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in distinct)
    return sorted(distinct) if numbers else distinct


# ── pictures ─────────────────────────────────────────────────────────────────


def draw(sweep: Sweep) -> str:
    """The picture that fits the number of swept options, as SVG text."""
    if len(sweep.keys) == 1:
        return line_plot(sweep)
    if len(sweep.keys) == 2:
        return heat_map(sweep)
    return parallel(sweep)


def _svg(marks: Sequence[str], title: str, height: int = _HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}">'
        f"<title>{escape(title)}</title>{_STYLE}"
        f'<text x="{_PAD}" y="18">{escape(title)}</text>{"".join(marks)}</svg>\n'
    )


def escape(text: str) -> str:
    """Text as XML shows it."""
    return html.escape(printable(text))


def _word(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _title(sweep: Sweep) -> str:
    level = level_of(point.result for point in sweep.points)
    return f"{sweep.metric}, {sweep.protocol}, percent" + (f", {level} intervals" if level else "")


def _scale(sweep: Sweep) -> Callable[[float], float]:
    """Percent → y, over the range that the points and their intervals need."""
    ends = [
        value
        for p in sweep.points
        for value in (p.estimate.value, p.estimate.low, p.estimate.high)
        if math.isfinite(value)
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 100.0)
    room = max(1.0, 0.1 * (high - low))
    low, high = low - room, high + room
    return lambda value: _HEIGHT - _PAD - (value - low) / (high - low) * (_HEIGHT - 2 * _PAD)


def line_plot(sweep: Sweep) -> str:
    """One option along the bottom, the metric upwards, with intervals."""
    (key,) = sweep.keys
    values = _ordered([p.values[key] for p in sweep.points])
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) and len(values) > 1
    y = _scale(sweep)

    def x(value: Any) -> float:
        if numeric:
            share = (value - values[0]) / (values[-1] - values[0])
        else:
            share = ([_text(v) for v in values].index(_text(value)) + 0.5) / len(values)
        return float(_PAD + share * (_WIDTH - 2 * _PAD))

    marks = [_word(x(v), _HEIGHT - _PAD + 22, _text(v)) for v in values]
    marks.append(_word(_WIDTH / 2, _HEIGHT - 12, key))
    order = sorted(sweep.points, key=lambda p: x(p.values[key]))
    finite = [p for p in order if math.isfinite(p.estimate.value)]
    if numeric:
        path = " ".join(f"{x(p.values[key]):.1f},{y(p.estimate.value):.1f}" for p in finite)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS[0]}" stroke-width="2"/>')
    for p in finite:
        at, e = x(p.values[key]), p.estimate
        if math.isfinite(e.low) and math.isfinite(e.high):
            marks.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(e.low):.1f}" y2="{y(e.high):.1f}" '
                f'stroke="{_COLOURS[0]}" stroke-width="2" opacity=".6"/>'
            )
        marks.append(
            f'<circle cx="{at:.1f}" cy="{y(e.value):.1f}" r="4" fill="{_COLOURS[0]}">'
            f"<title>{escape(p.run)}</title></circle>"
        )
        marks.append(_word(at + 8, y(e.value) - 6, f"{e.value:.1f}", "start"))
    return _svg(marks, _title(sweep))


def heat_map(sweep: Sweep) -> str:
    """Two options as columns and rows; a cell is coloured by the metric and says it."""
    across, down = sweep.keys
    columns = _ordered([p.values[across] for p in sweep.points])
    rows = _ordered([p.values[down] for p in sweep.points])
    values = [p.estimate.value for p in sweep.points if math.isfinite(p.estimate.value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    left, top = 150, 50
    wide, tall = (_WIDTH - left - 20) / len(columns), 44.0
    marks = [_word(left + (i + 0.5) * wide, top - 8, _text(v)) for i, v in enumerate(columns)]
    marks += [_word(left - 8, top + (j + 0.6) * tall, _text(v), "end") for j, v in enumerate(rows)]
    marks.append(_word(left, top - 24, f"{across} →  {down} ↓", "start"))
    places = {(_text(p.values[across]), _text(p.values[down])): p for p in sweep.points}
    for i, column in enumerate(columns):
        for j, row in enumerate(rows):
            p = places.get((_text(column), _text(row)))
            x, y = left + i * wide, top + j * tall
            if p is None or not math.isfinite(p.estimate.value):
                continue
            share = 0.5 if high == low else (p.estimate.value - low) / (high - low)
            shade = round(245 - 150 * share)
            e = p.estimate
            marks.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{tall - 2:.1f}" '
                f'fill="rgb({shade},{round(250 - 70 * share)},255)"><title>{escape(p.run)}</title></rect>'
            )
            spread = f"{e.low:.1f}–{e.high:.1f}" if math.isfinite(e.low) and math.isfinite(e.high) else ""
            for step, text in ((18, f"{e.value:.1f}"), (34, spread)):
                marks.append(
                    f'<text x="{x + wide / 2:.1f}" y="{y + step:.1f}" text-anchor="middle" '
                    f'style="fill:#111">{text}</text>'
                )
    return _svg(marks, _title(sweep), int(top + tall * len(rows) + 20))


def parallel(sweep: Sweep) -> str:
    """Each option an axis, each run a line from its values to its metric; the best is drawn thick."""
    axes = [*sweep.keys, sweep.metric]
    y = _scale(sweep)
    orders = {key: [_text(v) for v in _ordered([p.values[key] for p in sweep.points])] for key in sweep.keys}
    step = (_WIDTH - 2 * _PAD) / max(1, len(axes) - 1)

    def place(key: str, p: Point) -> float:
        if key == sweep.metric:
            return y(p.estimate.value)
        order = orders[key]
        share = 0.5 if len(order) == 1 else order.index(_text(p.values[key])) / (len(order) - 1)
        return _HEIGHT - _PAD - share * (_HEIGHT - 2 * _PAD)

    marks = []
    for index, key in enumerate(axes):
        x = _PAD + index * step
        marks.append(f'<line class="a" x1="{x:.1f}" x2="{x:.1f}" y1="{_PAD}" y2="{_HEIGHT - _PAD}"/>')
        marks.append(_word(x, _HEIGHT - _PAD + 20 + 14 * (index % 2), key.rpartition(".")[2]))
        for at, text in enumerate(orders.get(key, ())):
            share = 0.5 if len(orders[key]) == 1 else at / (len(orders[key]) - 1)
            marks.append(_word(x + 4, _HEIGHT - _PAD - share * (_HEIGHT - 2 * _PAD) - 4, text, "start"))
    finite = [p for p in sweep.points if math.isfinite(p.estimate.value)]
    ranked = sorted(finite, key=lambda p: p.estimate.value)
    for rank, p in enumerate(ranked):
        path = " ".join(f"{_PAD + i * step:.1f},{place(key, p):.1f}" for i, key in enumerate(axes))
        best = rank == len(ranked) - 1
        colour, stroke = (_COLOURS[1], 3.0) if best else (_COLOURS[0], 1.2)
        seen = 1.0 if best else 0.25 + 0.5 * rank / len(ranked)
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}" '
            f'opacity="{seen:.2f}">'
            f"<title>{escape(p.run)}: {p.estimate.value:.1f}</title></polyline>"
        )
    return _svg(marks, _title(sweep))


def ranked(sweep: Sweep) -> ResultTable:
    """All runs, best first."""
    nan = [p for p in sweep.points if not math.isfinite(p.estimate.value)]
    rest = [p for p in sweep.points if math.isfinite(p.estimate.value)]
    order = [*sorted(rest, key=lambda p: -p.estimate.value), *nan]
    rows = []
    for index, p in enumerate(order):
        r = p.result
        options = [Cell(_text(p.values[key])) for key in sweep.keys]
        numbers = [number_cell(p.estimate, 1.0, index == 0 and len(order) > 1)]
        rows.append((*options, *numbers, Cell(str(r.n)), Cell(str(r.failed)), Cell(str(r.missing))))
    header = (*sweep.keys, sweep.metric, "n", "failed", "missing")
    return ResultTable(_title(sweep), header, tuple(rows), names=len(sweep.keys))

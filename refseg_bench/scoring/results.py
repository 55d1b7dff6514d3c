"""Outcomes of scoring in words and as JSON: metrics, what lacks, groups, and which rule made which number."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refseg_bench.errors import ScoreError
from refseg_bench.files.store_io import without_nan
from refseg_bench.scoring.protocols.base import ScoringProtocol
from refseg_bench.scoring.score import Scored
from refseg_bench.scoring.sources import Coverage, LackingError
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.scoring.table import breakdown
from refseg_bench.types import Estimate, Result

#: Protocol as typed → attribute → group → (units, metrics), or why there are no groups.
Splits = Mapping[str, Mapping[str, "Groups | ScoreError"]]
Groups = Mapping[str, "tuple[int, Mapping[str, Estimate]]"]


def splits(outcomes: Sequence[tuple[str, Scored | ScoreError]], by: str | None) -> Splits:
    """The metrics of every protocol by attribute (``--by``)."""
    attributes = [word.strip() for word in (by or "").split(",") if word.strip()]
    return {
        word: {attribute: _split(outcome, attribute) for attribute in attributes}
        for word, outcome in outcomes
        if not isinstance(outcome, ScoreError)
    }


def _split(scored: Scored, attribute: str) -> Groups | ScoreError:
    try:
        return breakdown(scored.protocol, scored.table, attribute, Bootstrap.of(scored.result))
    except ScoreError as refusal:
        return refusal


def document(
    outcomes: Sequence[tuple[str, Scored | ScoreError]], *, per_frame: bool, by: Splits | None = None
) -> dict[str, Any]:
    """What ``--json`` holds: protocol as typed → metrics, units, n, failed, missing and more."""
    out: dict[str, Any] = {}
    for word, outcome in outcomes:
        coverage = outcome.coverage if isinstance(outcome, Scored | LackingError) else Coverage()
        missing = [*coverage.missing, *coverage.gaps]
        lacks = {"failed": coverage.failed, "missing": missing, "why": coverage.why}
        lacks["left_out"] = coverage.left_out
        if isinstance(outcome, ScoreError):
            out[word] = {"error": str(outcome), "metrics": None, "units": [], "n": 0, **lacks}
            continue
        result, table = outcome.result, outcome.table
        columns = table.values
        out[word] = {
            "protocol": result.protocol,
            **_metrics(result.metrics),
            "no_value": outcome.protocol.no_value(columns, table.attrs),
            "printed": dict(result.details["printed"]),
            "scale": result.scale,
            "n": result.n,
            "expected": result.expected,
            **lacks,
            "missing_frames": coverage.gaps,
            "by": {
                attribute: {group: {"n": n, **_metrics(found)} for group, (n, found) in groups.items()}
                for attribute, groups in (by or {}).get(word, {}).items()
                if not isinstance(groups, ScoreError)
            },
            "notes": dict(outcome.notes),
            "units": [
                {
                    "id": unit,
                    "clip": table.clusters[row],
                    "values": {name: float(column[row]) for name, column in columns.items()},
                    "attrs": {k: c[row] for k, c in table.attrs.items() if c[row] is not None},
                    **({"frames": dict(table.frames[row] or {})} if per_frame else {}),
                }
                for row, unit in enumerate(table.units)
            ],
        }
    found: dict[str, Any] = without_nan(out)  # which JSON lacks
    return found


def _metrics(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "metrics": {name: e.value for name, e in found.items()},
        "intervals": {name: [e.low, e.high] for name, e in found.items()},
    }


def level_of(results: Iterable[Result]) -> str:
    """The confidence level of the results' intervals in words; empty where there are none."""
    levels = {
        float(r.details["interval"]["level"])
        for r in results
        if "level" in (r.details.get("interval") or {})
        and any(math.isfinite(e.low) for e in r.metrics.values())
    }
    return " and ".join(f"{100 * level:g} %" for level in sorted(levels))


def lines_of(outcome: Scored, seen: set[str]) -> list[str]:
    """An outcome as a screen shows it: counts, what lacks, metrics and notes.

    Notes go into ``seen`` and are shown once: what was read is the same under every protocol.
    """
    result = outcome.result
    printed, percent = result.details["printed"], result.percent
    absent = outcome.protocol.no_value(outcome.table.values, outcome.table.attrs)
    level = level_of([result])
    lines = [
        f"{result.protocol}  n={result.n} of {result.expected}  failed={result.failed}  "
        f"missing={result.missing}  percent" + (f", {level} intervals" if level else ""),
        *(f"  {line}" for line in losses(outcome)),
        *(
            f"  {name:<16} {printed[name] * percent(name):z.2f}{_interval(estimate, percent(name))}"
            for name, estimate in result.metrics.items()
            if name not in absent
        ),
    ]
    for why in dict.fromkeys(absent.values()):
        names = ", ".join(name for name, reason in absent.items() if reason == why)
        lines.append(f"  no value for {names}: {why}")
    for name, value in outcome.notes.items():
        if name == "answers":
            if value.keys() & {"absent", "empty"}:
                lines.append(f"  answers: {', '.join(f'{n} {answer}' for answer, n in value.items())}")
            continue
        counts = isinstance(value, Mapping)
        line = f"  {name}: {counted(value, ' file' * name.endswith('read')) if counts else value}"
        if line not in seen or not counts:
            lines.append(line)
            if counts and any(name.startswith("soft") for name in value):
                lines.append("    soft: levels between; of predictions --threshold N takes those above N")
        seen.add(line)
    return lines


def counted(files: Mapping[str, int], unit: str = " file") -> str:
    """Encodings (or other kinds of a unit), the most frequent first, in the words of a line."""
    ranked = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(ranked) - 6} other encodings"] if len(ranked) > 6 else []
    # Run lengths have no files; what repeats is told of masks.
    units = {name: " mask" if name.startswith("the same") else unit for name in files}
    shown = [f"{name} ({n}{units[name]}{'s' * (n > 1 and bool(unit))})" for name, n in ranked[:6]]
    return "; ".join(shown + more)


def losses(outcome: Scored) -> list[str]:
    """What lacks, what it counts as, and what the protocol leaves out: the lines a screen takes."""
    coverage = outcome.coverage
    told = coverage.shown()
    if coverage.lacking:
        zeros = outcome.table.attrs.get("counted_as", []).count("zero")
        rest = coverage.lacking - zeros
        told.insert(0, f"{coverage.lacking} incomplete: {zeros} counted as 0, {rest} left out")
    return told


def _interval(estimate: Estimate, percent: float) -> str:
    low, high = estimate.low * percent, estimate.high * percent
    return f" [{low:z.2f}, {high:z.2f}]" if low == low else ""


def grouped(protocol: ScoringProtocol, attribute: str, groups: Groups) -> str:
    """The first metrics of every group of an attribute, a line each."""
    lines, percent = [f"  by {attribute}"], protocol.policy.percent
    for group, (n, metrics) in groups.items():
        valued = [name for name in protocol.metrics if metrics[name].value == metrics[name].value]
        cells = "  ".join(
            f"{x} {metrics[x].value * percent(x):z.2f}{_interval(metrics[x], percent(x))}" for x in valued[:3]
        )
        lines.append(f"    {group:<22} n={n:<6} {cells}")
    return "\n".join(lines)


_MATCH = {
    "none": "none: the prediction is held against its own target",
    "id": "a predicted id is held against the object of the same id",
    "hungarian_j": "proposals are assigned to objects, best sum of mean J",
    "hungarian_jf": "proposals are assigned to objects, best sum of mean (J + F) / 2",
}
_VOID = {
    "none": "none: void pixels have no part in this protocol",
    "ignore": "pixels marked 255 in the truth are taken out of both masks",
    "background": "pixels marked 255 in the truth become background",
    "object": "255 is an ordinary object id",
}
_FRAMES = {
    "all": "all frames of the list",
    "inner": "all but the first and the last",
    "annotated": "frames that the truth annotates",
    "predicted": "frames that have a prediction",
}


def explained(scored: Scored, sample: str) -> str:
    """Every number of a sample under one protocol, with the rules that made it.

    ``scored`` has per-frame values (``Options.detail``); a ``sample`` is its id, a unit's, or a clip's (then
    all its units).

    Raises:
        ScoreError: the protocol knows no such sample.
    """
    protocol, table, coverage = scored.protocol, scored.table, scored.coverage
    policy = protocol.policy
    rows = [
        row
        for row, (unit, clip) in enumerate(zip(table.units, table.clusters, strict=True))
        if unit == sample or clip == sample or unit.startswith(f"{sample}/") or unit.endswith(f"/{sample}")
    ]
    absent = [line for line in coverage.lines() if f" {sample}" in f"{line} ".replace(":", " ")]
    lines = [
        f"── {sample} under {protocol.name} ──",
        f"  imitates  {protocol.imitates}",
        f"  unit      {policy.unit}",
        f"  frames    {_FRAMES[policy.frames]}",
        f"  matching  {_MATCH[protocol.matching]}",
        f"  void      {_VOID[policy.void]}",
        f"  missing   {policy.missing_why}",
        f"  rounding  {_rounding(scored)}",
    ]
    for line in absent:
        lines.append(f"  {'' if line.startswith('left out') else 'not predicted: '}{line}")
    if not rows and not absent:
        raise ScoreError(
            f"{protocol.name} has no unit '{sample}'.",
            allowed=[*table.units[:10], *(["…"] if len(table) > 10 else [])],
            hint="Give a sample id (CLIP/EXPRESSION), a unit id or a clip id.",
        )
    values = table.values
    for row in rows:
        lines.append(f"  {table.units[row]}")
        for name, cells in table.attrs.items():
            if cells[row] is not None:
                lines.append(f"    {name.replace('_', ' ')}: {cells[row]}")
        for name, column in values.items():
            if column[row] == column[row]:
                lines.append(f"    {name} = {float(column[row])!r}")
        for frame, found in (table.frames[row] or {}).items():
            lines.append(f"      {frame}  " + "  ".join(f"{k} {v:.6g}" for k, v in found.items()))
    lines.append("  " + inspect.cleandoc(type(protocol).__doc__ or "").replace("\n", "\n  "))
    return "\n".join(lines)


def _rounding(scored: Scored) -> str:
    policy = scored.protocol.policy
    unit = "percent" if policy.scale == 100 else "fractions"
    unit += f" ({', '.join(policy.fractions)}: fractions)" if policy.fractions else ""
    if policy.rounding == "unit":
        return f"{unit}, every unit to {policy.digits} decimals before averaging"
    if policy.rounding == "final":
        return f"{unit}, {policy.digits} decimals only when printed"
    return f"{unit}, none"

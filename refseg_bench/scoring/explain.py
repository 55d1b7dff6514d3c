"""Say which rule made which number of a sample."""

from __future__ import annotations

import inspect

from refseg_bench.errors import ScoreError
from refseg_bench.scoring.score import Scored

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

    Args:
        scored: outcome with per-frame values (``Options.detail``).
        sample: a sample id, a unit id, or a clip id (then all its units).

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
        f"  matching  {_MATCH[str(getattr(protocol, 'match', policy.match))]}",
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
            cure="Give a sample id (CLIP/EXPRESSION), a unit id or a clip id.",
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
    if policy.rounding == "unit":
        return f"{unit}, every unit to {policy.digits} decimals before averaging"
    if policy.rounding == "final":
        return f"{unit}, {policy.digits} decimals only when printed"
    return f"{unit}, none"

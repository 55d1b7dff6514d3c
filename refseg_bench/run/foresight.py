"""What a run would cost, told before it starts: cache hits, and memory and FLOPs by the model's config."""

from __future__ import annotations

import json
from itertools import islice

from refseg_bench.config import schema
from refseg_bench.errors import RefsegError
from refseg_bench.methods.estimate import cached, estimate
from refseg_bench.run.loop import build_method, dataset_of
from refseg_bench.run.planning import Planned

#: Clips whose expressions are looked up in the cache (each lookup reads the clip's frames).
LOOKED_UP = 20


def foreseen(run: Planned) -> list[str]:
    """Lines for ``--dry``; none for a method that estimates nothing, or a run that is done.

    No weights are loaded. What can't be told (a model that is not on this machine) is said, not raised.
    """
    method_class = schema.locate(str(run.values["method"][schema.TARGET]), "method")
    if not run.work or not hasattr(method_class, "estimate"):
        return []
    method = build_method(run.values, dataset_of(run.values))
    lines: list[str] = []
    try:
        ready = total = clips = 0
        for clip, expressions in islice(run.work, LOOKED_UP):
            found, asked = cached(method, clip, [expression.text for expression in expressions])
            ready, total, clips = ready + found, total + asked, clips + 1
        lines.append(f"  cache: {ready} of {total} expressions of the first {clips} clips need no model call")
    except RefsegError as error:
        lines.append(f"  cache: can't be asked: {error.what}")
    try:
        clip, expressions = run.work[0]
        cost = estimate(method, clip, len(expressions))
        lines.append(f"  estimate for clip '{clip.id}' with {len(expressions)} expressions:")
        lines += [f"    {name}: {json.dumps(value)}" for name, value in cost.items()]
    except RefsegError as error:
        lines.append(f"  estimate: can't be made: {error.what}")
    return lines

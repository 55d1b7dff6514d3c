"""What a run would find in the cache, told before it starts."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.run.build import build_method, dataset_of
from refseg_bench.run.shards import Planned

#: Clips whose expressions are looked up in the cache (each lookup reads the clip's frames).
LOOKED_UP = 20


def foreseen(run: Planned) -> list[str]:
    """Lines for ``--dry``; none for a method that keeps no cache, or a run that is done.

    No weights are loaded. What can't be told (a model that is not on this machine) is said, not raised.
    """
    method_class = schema.locate(str(run.values["method"][schema.TARGET]), "method")
    if not run.work or not hasattr(method_class, "cached"):
        return []
    method = build_method(run.values, dataset_of(run.values))
    ready = total = clips = 0
    try:
        for clip, expressions in islice(run.work, LOOKED_UP):
            clips, total = clips + 1, total + len(expressions)
            # A model that isn't on this machine and can't be asked for has left nothing in the cache.
            with suppress(ConfigError):
                ready += method.cached(clip, [expression.text for expression in expressions])  # type: ignore[attr-defined]
    except RefsegError as error:
        return [f"  cache: can't be asked: {error.what}"]
    return [f"  cache: {ready} of {total} expressions of the first {clips} clips need no model call"]

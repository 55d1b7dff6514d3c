"""What a method says a clip will cost before anything runs."""

from __future__ import annotations

from typing import Any

from refseg_bench.errors import ConfigError
from refseg_bench.types import Clip, Method


def estimate(method: Method, clip: Clip, n_expressions: int) -> dict[str, Any]:
    """Tokens, FLOPs and memory of one clip, as far as the method can tell; empty if it can't.

    Args:
        method: a built method; no weights are loaded.
        clip: a clip of the dataset (its size and number of frames count).
        n_expressions: how many expressions share the clip's work.
    """
    ask = getattr(method, "estimate", None)
    return dict(ask(clip, n_expressions)) if callable(ask) else {}


def cached(method: Method, clip: Clip, texts: list[str]) -> tuple[int, int]:
    """(expressions whose model outputs are all in the cache, expressions asked about)."""
    ask = getattr(method, "cached", None)
    if not callable(ask):
        return 0, len(texts)
    try:
        return int(ask(clip, texts)), len(texts)
    except ConfigError:
        # A model that isn't on this machine and can't be asked for has left nothing in the cache.
        return 0, len(texts)

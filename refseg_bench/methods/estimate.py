"""What a method says a clip will cost before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.types import Clip, Expression, Method


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


def forecast(method: Method, work: Sequence[tuple[Clip, Sequence[Expression]]]) -> Iterator[str]:
    """Lines that say what is in the cache and what the heaviest clip will cost.

    Args:
        method: a built method.
        work: clips with their open expressions.

    Yields:
        Nothing for a method that can't tell.
    """
    if not work:
        return
    if hasattr(method, "cached"):
        found = [cached(method, clip, [expression.text for expression in es]) for clip, es in work]
        ready, asked = (sum(column) for column in zip(*found, strict=True))
        yield f"  cache: {ready} of {asked} expressions need no model call"
    clip, es = max(work, key=lambda item: (len(item[1]), len(item[0])))
    try:
        cost = estimate(method, clip, len(es))
    except RefsegError as error:
        yield f"  no estimate: {error.what}"
        return
    if cost:
        size = f"{clip.size[0]}x{clip.size[1]}"
        yield f"  estimate for clip '{clip.id}' ({len(clip)} frames, {size}, {len(es)} expressions):"
        for name, value in cost.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            yield f"    {name}: {shown}"

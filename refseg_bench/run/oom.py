"""CUDA out of memory: tell it from other failures, and try again with half the batch.

A component (method, backbone, segmenter) whose work comes in batches has an attribute ``batch_size``:
a transient knob, so results must not depend on it. It is a bound: a pass may hold less, and then
halving it once changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

from refseg_bench.config.schema import INJECTED


def is_out_of_memory(error: BaseException) -> bool:
    """True if an accelerator's memory ran out; needs no torch."""
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def batched(method: Any) -> list[Any]:
    """The method and its parts that could work with a smaller batch."""
    parts = [method, *(getattr(method, name, None) for name in INJECTED)]
    return [part for part in parts if isinstance(size := getattr(part, "batch_size", None), int) and size > 1]


@contextlib.contextmanager
def half_batches(method: Any) -> Iterator[None]:
    """Within the block every batch is half as large; the memory that failed is given back first."""
    parts = batched(method)
    sizes = [part.batch_size for part in parts]
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        for part, size in zip(parts, sizes, strict=True):
            part.batch_size = size // 2
        yield
    finally:
        for part, size in zip(parts, sizes, strict=True):
            part.batch_size = size

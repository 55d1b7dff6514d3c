"""What is done with every pixel of every file: in C where the extension was built, else with numpy.

Both give the same bytes (property tests hold them together); ``REFSEG_KERNEL=plain`` or
``REFSEG_KERNEL=compiled`` forces one. Counting, the other half of the extension, is reached through
:mod:`refseg_bench.scoring.counts`.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import ConfigError

#: Of the extension's functions: one that was built from other sources is none.
REVISION = 4


def _choose() -> ModuleType | None:
    wanted = os.environ.get("REFSEG_KERNEL", "auto")
    if wanted not in ("auto", "plain", "compiled"):
        raise ConfigError(f"REFSEG_KERNEL is '{wanted}'.", allowed=("auto", "plain", "compiled"))
    if wanted == "plain":
        return None
    try:
        kernel = importlib.import_module("refseg_bench.files._kernel")
        if getattr(kernel, "REVISION", 1) != REVISION:
            raise ImportError("it was built from other sources")
        return kernel
    except ImportError as error:
        if wanted == "auto":
            return None
        raise ConfigError(
            f"REFSEG_KERNEL=compiled, but the extension was not built ({error}).",
            hint="Install refseg-bench again where a C compiler is present, or unset REFSEG_KERNEL.",
        ) from error


#: The extension module, or ``None``.
KERNEL = _choose()


def split(values_HW: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int, bool]:
    """Where values are not 0; the only other value (0 if there is none, -1 for several); is there a 0?"""
    if KERNEL is not None:
        out = np.empty(values_HW.shape, np.bool_)
        return (out, *KERNEL.split(np.ascontiguousarray(values_HW), out.view(np.uint8)))
    mask = values_HW != 0
    top, covered = int(values_HW.max()), int(np.count_nonzero(mask))
    several = top and covered != np.count_nonzero(values_HW == top)
    return mask, -1 if several else top, covered < mask.size


def unfilter(raw: bytes, height: int, width: int) -> NDArray[np.uint8] | None:
    """Pixels ``(height, width)`` of inflated 8-bit one-channel PNG rows, each behind its filter byte.

    Returns:
        The pixels (of ``raw`` itself where no filter was used), or ``None`` where a row has a filter that
        isn't undone here (without the extension: any).
    """
    rows = np.frombuffer(raw, np.uint8).reshape(height, width + 1)
    if not rows[:, 0].any():
        return rows[:, 1:]
    out = np.empty((height, width), np.uint8)
    return out if KERNEL is not None and KERNEL.unfilter(raw, out) else None

"""torch at its first use: what only composes, plans or shows a run never waits seconds for it.

Components take ``torch`` and its kin from here, and nothing of them runs while a module is imported: a
decorator is :func:`inference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
    from torch import nn as nn

    F = nn.functional
else:

    class _Later:
        """A module that is imported when something of it is asked for."""

        __slots__ = ("__dict__", "_name")

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            module = import_module(self._name)
            self.__dict__ = vars(module)  # from now on as quick as the module itself
            return getattr(module, name)

    torch, nn, F = map(_Later, ("torch", "torch.nn", "torch.nn.functional"))
    Tensor = Any


@contextmanager
def inference() -> Iterator[None]:
    """``torch.inference_mode()``, which also decorates where torch isn't imported yet."""
    with torch.inference_mode():
        yield

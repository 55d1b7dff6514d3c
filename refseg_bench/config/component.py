"""What the harness may ask of any component, and how a class that inherits nothing comes by the answers.

A component is a dataclass of one of five kinds. Each kind has a base class that lists everything the
harness asks for. What is abstract there must be written; the rest are *hooks*: attributes and methods
that answer for a component with nothing to say.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import field, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from refseg_bench.errors import ConfigError

#: Kind → its base class. This package's own classes of a kind live beside it.
BASES = {
    "dataset": "refseg_bench.datasets.base.Dataset",
    "backbone": "refseg_bench.backbones.base.Backbone",
    "segmenter": "refseg_bench.segmenters.base.Segmenter",
    "method": "refseg_bench.methods.base.Method",
    "protocol": "refseg_bench.scoring.protocols.base.ScoringProtocol",
}


class Component(ABC):  # noqa: B024 (what is abstract differs by kind)
    """The hooks that all kinds share.

    A dataclass that declares one of the attributes again without a value has an option that must be given.
    """

    #: The group of ``conf/`` that its YAML files lie in.
    kind: ClassVar[str] = "component"
    #: How many items go through a model at once; ``None`` = it makes no batches. A transient option: results
    #: must not depend on it, since it is halved where the accelerator's memory runs out.
    batch_size: int | None = None
    #: Where it may keep what other runs can reuse; set before the first clip.
    cache_root: Path | None = None

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        for name, hint in inspect.get_annotations(cls).items():
            owner = next(one for one in cls.__mro__ if name in vars(one) or one is object)
            if owner not in (cls, object) and "ClassVar" not in str(hint) and not is_dataclass(owner):
                # Or `dataclass` would take the value of the hook for the option's default.
                setattr(cls, name, field())

    def weights(self) -> Sequence[Any] | None:
        """The :class:`~refseg_bench.backbones.weights.Weights` it loads at first use.

        ``None`` = it has none.
        """
        return None

    def report(self) -> Mapping[str, Any]:
        """JSON facts for the run record (counters, kernels and precision in effect). Loads nothing."""
        return {}


def base_of(kind: str) -> type[Component]:
    """The base class of a kind; for anything else the one that all kinds share."""
    if kind not in BASES:
        return Component
    module, _, name = BASES[kind].rpartition(".")
    found: type[Component] = vars(importlib.import_module(module))[name]
    return found


def adopt(cls: type[Any], base: type[Component], where: str) -> None:
    """Make sure that a class answers all that the harness asks of a kind.

    One that doesn't inherit the base is given the base's hooks where it has none of that name.

    Args:
        cls: the component's class.
        base: the base class of its kind.
        where: the component's place in the config, for the error.

    Raises:
        ConfigError: it lacks what every component of the kind must have.
    """
    named = f"{cls.__module__}.{cls.__qualname__}"
    methods = sorted(base.__abstractmethods__)
    values = [name for name in inspect.get_annotations(base) if not hasattr(base, name)]
    lacking = [
        *(f"{name}()" for name in methods if getattr(cls, name, None) in (None, getattr(base, name))),
        *(name for name in values if name not in cls.__dataclass_fields__ and not hasattr(cls, name)),
    ]
    if lacking:
        raise ConfigError(
            f"'{named}' is no {base.kind}: it has no {', '.join(lacking)}.",
            where=where,
            hint=f"Write what {base.__module__}.{base.__name__} describes.",
        )
    if issubclass(cls, base):
        return
    if not cls.__dictoffset__:
        raise ConfigError(
            f"'{named}' has slots, and no room for what a run hands to a {base.__name__}.",
            where=where,
            hint=f"Leave out slots=True, or inherit {base.__module__}.{base.__name__}.",
        )
    for owner in (base, Component):
        for name, hook in vars(owner).items():
            if not name.startswith("_") and not hasattr(cls, name):
                setattr(cls, name, hook)
    base.register(cls)

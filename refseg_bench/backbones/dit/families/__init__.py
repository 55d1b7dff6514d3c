"""One small adapter per family of diffusion transformers of diffusers.

To add a family, write a subclass of :class:`~refseg_bench.backbones.dit.families.base.DiTFamily` and
name it in a backbone's YAML: ``family: package.module.Class``, or under a short name here.
"""

from __future__ import annotations

from refseg_bench.backbones.dit.families.base import DiTFamily, ForwardInputs
from refseg_bench.backbones.dit.families.cogvideox import CogVideoX
from refseg_bench.backbones.dit.families.flux import Flux
from refseg_bench.backbones.dit.families.mochi import Mochi
from refseg_bench.backbones.dit.families.sd3 import SD3
from refseg_bench.backbones.dit.families.wan import Wan
from refseg_bench.errors import ConfigError

FAMILIES: dict[str, type[DiTFamily]] = {
    "flux": Flux,
    "sd3": SD3,
    "mochi": Mochi,
    "cogvideox": CogVideoX,
    "wan": Wan,
}


def family(name: str) -> DiTFamily:
    """The adapter of a short name or dotted path.

    Raises:
        ConfigError: there is none.
    """
    if name in FAMILIES:
        return FAMILIES[name]()
    module, _, attribute = name.rpartition(".")
    if module:
        from importlib import import_module

        found = getattr(import_module(module), attribute, None)
        if isinstance(found, type) and issubclass(found, DiTFamily):
            return found()
    raise ConfigError(f"No family '{name}'.", where="backbone.family", allowed=sorted(FAMILIES))


__all__ = ["FAMILIES", "DiTFamily", "ForwardInputs", "family"]

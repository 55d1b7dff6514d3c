"""Model families that a multimodal backbone can be of: one small adapter each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refseg_bench.backbones.mllm.families.base import MLLMFamily, Visual
from refseg_bench.backbones.mllm.families.internvl import InternVL
from refseg_bench.backbones.mllm.families.llava_onevision import LlavaOnevision
from refseg_bench.backbones.mllm.families.qwen_vl import Qwen3VL, Qwen25VL, QwenVL
from refseg_bench.errors import ConfigError

FAMILIES: tuple[type[MLLMFamily], ...] = (QwenVL, Qwen25VL, Qwen3VL, InternVL, LlavaOnevision)


def family_of(config: Any, preprocessing: Mapping[str, Any]) -> MLLMFamily:
    """The adapter of a checkpoint, by its config's ``model_type``.

    Raises:
        ConfigError: no adapter knows the type.
    """
    kind = str(getattr(config, "model_type", None))
    for family in FAMILIES:
        if kind in family.model_types:
            return family(config, preprocessing)
    raise ConfigError(
        f"Models of type '{kind}' can't be used: nothing is known of their visual tokens and layout.",
        allowed=[name for family in FAMILIES for name in family.model_types],
        hint="Choose another backbone, or give backbone.family the dotted path of your own adapter class.",
    )


__all__ = ["FAMILIES", "MLLMFamily", "Visual", "family_of"]

"""Multimodal language models of transformers as grounding backbones."""

from refseg_bench.backbones.mllm.model import MLLM

__all__ = ["MLLM"]

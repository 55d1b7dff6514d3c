"""Diffusion transformers of diffusers as grounding backbones."""

from refseg_bench.backbones.dit.model import DiT

__all__ = ["DiT"]

"""Stable Diffusion 3 and 3.5: image before text in the joint attention."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from refseg_bench.backbones.dit.families.base import DiTFamily, ForwardInputs, config, mode, scaled


class SD3(DiTFamily):
    """``SD3Transformer2DModel``. 3.5 medium has a second, image-only attention in its dual layers."""

    name: ClassVar[str] = "sd3"
    transformer_class: ClassVar[str] = "SD3Transformer2DModel"
    vae_class: ClassVar[str] = "AutoencoderKL"
    text_first: ClassVar[bool] = False
    prompt_length: ClassVar[int] = 256
    max_text: ClassVar[int] = 256
    pooled_output: ClassVar[str | None] = "text_embeds"

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """One call per block, and one to ignore after it in a dual layer."""
        dual = set(config(transformer, "dual_attention_layers", ()))
        calls: list[int | None] = []
        for layer in range(len(self.blocks(transformer))):
            calls += [layer, None] if layer in dual else [layer]
        return tuple(calls)

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, channels, height, width)``."""
        return scaled(vae, mode(vae, pixels_1CHW))

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """Patches of the transformer's own size."""
        patch = config(transformer, "patch_size")
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """The timestep is 1000·σ."""
        output: Tensor = transformer(
            hidden_states=inputs.latents,
            encoder_hidden_states=inputs.text,
            pooled_projections=inputs.pooled,
            timestep=torch.full((1,), 1000 * inputs.sigma, device=inputs.latents.device),
            return_dict=False,
        )[0]
        return output

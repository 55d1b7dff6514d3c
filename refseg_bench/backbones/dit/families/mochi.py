"""Mochi: video tokens before the valid text tokens; its timestep runs the other way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refseg_bench.backbones.dit.families.base import DiTFamily, ForwardInputs, config, mode, standardised


class Mochi(DiTFamily):
    """``MochiTransformer3DModel`` on a single frame."""

    name: ClassVar[str] = "mochi"
    transformer_class: ClassVar[str] = "MochiTransformer3DModel"
    vae_class: ClassVar[str] = "AutoencoderKLMochi"
    text_first: ClassVar[bool] = False
    prompt_length: ClassVar[int] = 256
    padding_attends: ClassVar[bool] = False
    max_text: ClassVar[int] = 256
    size: ClassVar[tuple[int, int]] = (480, 848)

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """The caption pool of the time embedding comes first, then one call per block."""
        return (None, *range(len(self.blocks(transformer))))

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, channels, 1, height, width)``."""
        return standardised(vae, mode(vae, pixels_1CHW[:, :, None]))

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """Patches of one latent frame."""
        patch = config(transformer, "patch_size")
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """The timestep is 1000·(1 − σ): 0 is pure noise."""
        device = inputs.latents.device
        output: Tensor = transformer(
            hidden_states=inputs.latents,
            encoder_hidden_states=inputs.text,
            timestep=torch.full((1,), 1000 * (1 - inputs.sigma), device=device),
            encoder_attention_mask=torch.ones(inputs.text.shape[:2], dtype=torch.bool, device=device),
            return_dict=False,
        )[0]
        return output

    @contextmanager
    def prompt_only_conditioning(self, transformer: nn.Module, prompt_tokens: int) -> Iterator[None]:
        """The caption pool mixes all text into the conditioning vector: show it the prompt alone."""
        embed: Any = transformer.time_embed
        original, wrapper = embed.forward, vars(embed).get("forward")

        def forward(timestep: Tensor, text: Tensor, mask: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
            conditioning, _ = original(timestep, text[:, :prompt_tokens], mask[:, :prompt_tokens], **rest)
            return conditioning, embed.caption_proj(text)

        embed.forward = forward
        try:
            yield
        finally:
            if wrapper is None:
                del embed.forward
            else:  # offloading has its own
                embed.forward = wrapper

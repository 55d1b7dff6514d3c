"""Wan 2.x (text to video): self-attention of the video, then cross-attention to the text.

Text is never updated and never queries, so there is no text-to-text matrix: attention sinks can
only be seen from the image side.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from refseg_bench.backbones.dit.families.base import DiTFamily, ForwardInputs, config, mode, standardised


class Wan(DiTFamily):
    """``WanTransformer3DModel`` on a single frame."""

    name: ClassVar[str] = "wan"
    transformer_class: ClassVar[str] = "WanTransformer3DModel"
    vae_class: ClassVar[str] = "AutoencoderKLWan"
    text_first: ClassVar[bool] = False
    cross: ClassVar[bool] = True
    prompt_length: ClassVar[int] = 512
    max_text: ClassVar[int] = 512
    size: ClassVar[tuple[int, int]] = (480, 832)

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """Self-attention to ignore, cross-attention to read, per block."""
        calls: list[int | None] = []
        for layer in range(len(self.blocks(transformer))):
            calls += [None, layer]
        return tuple(calls)

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """The blocks."""
        return list(transformer.blocks)  # type: ignore[arg-type]

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, channels, 1, height, width)``."""
        return standardised(vae, mode(vae, pixels_1CHW[:, :, None]))

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """Patches of one latent frame."""
        _, height, width = config(transformer, "patch_size")
        return latents.shape[-2] // height, latents.shape[-1] // width

    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """The timestep is 1000·σ."""
        output: Tensor = transformer(
            hidden_states=inputs.latents,
            timestep=torch.full((1,), 1000 * inputs.sigma, device=inputs.latents.device),
            encoder_hidden_states=inputs.text,
            return_dict=False,
        )[0]
        return output

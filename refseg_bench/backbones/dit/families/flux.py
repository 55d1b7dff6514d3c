"""FLUX.1 dev and schnell: double blocks then single blocks, text before image throughout."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refseg_bench.backbones.dit.families.base import DiTFamily, ForwardInputs, config, mode, scaled


class Flux(DiTFamily):
    """``FluxTransformer2DModel``. Layers count through: double 0 … 18, single 19 … 56."""

    name: ClassVar[str] = "flux"
    transformer_class: ClassVar[str] = "FluxTransformer2DModel"
    vae_class: ClassVar[str] = "AutoencoderKL"
    text_first: ClassVar[bool] = True
    prompt_length: ClassVar[int] = 512
    max_text: ClassVar[int] = 512
    pooled_output: ClassVar[str | None] = "pooler_output"

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """One call per block."""
        return tuple(range(len(self.blocks(transformer))))

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """Double blocks, then single blocks."""
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]  # type: ignore[misc]

    def layer_groups(self, transformer: nn.Module) -> dict[str, tuple[int, ...]]:
        """Also ``all_double`` and ``single``; the late half is that of the double blocks."""
        double = tuple(range(len(transformer.transformer_blocks)))  # type: ignore[arg-type]
        every = tuple(range(len(self.blocks(transformer))))
        return {
            "all": every,
            "late_half": double[len(double) // 2 :],
            "all_double": double,
            "single": every[len(double) :],
        }

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, channels, height, width)``, not yet packed."""
        return scaled(vae, mode(vae, pixels_1CHW))

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """2 × 2 latents make a token."""
        return latents.shape[-2] // 2, latents.shape[-1] // 2

    def pad_to(self, transformer: nn.Module) -> int:
        """512 for dev, 256 for schnell, which has no guidance embedding."""
        return self.prompt_length if config(transformer, "guidance_embeds", False) else 256

    def guidance_default(self, transformer: nn.Module) -> float | None:
        """1.0 for the guidance-distilled dev model."""
        return 1.0 if config(transformer, "guidance_embeds", False) else None

    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """Timestep and guidance go in as they are; the model multiplies both by 1000."""
        latents = inputs.latents
        rows, columns = self.grid(latents, transformer)
        like: dict[str, Any] = {"device": latents.device, "dtype": torch.float32}
        ids = torch.zeros(rows, columns, 3, **like)
        ids[..., 1] += torch.arange(rows, **like)[:, None]
        ids[..., 2] += torch.arange(columns, **like)[None, :]
        guided = config(transformer, "guidance_embeds", False)
        output: Tensor = transformer(
            hidden_states=pack(latents),
            encoder_hidden_states=inputs.text,
            pooled_projections=inputs.pooled,
            timestep=torch.full((1,), inputs.sigma, **like),
            img_ids=ids.reshape(-1, 3),
            txt_ids=torch.zeros(inputs.text.shape[1], 3, **like),
            guidance=torch.full((1,), inputs.guidance or 0.0, **like) if guided else None,
            return_dict=False,
        )[0]
        return output


def pack(latents_1CHW: Tensor) -> Tensor:
    """2 × 2 neighbours to one token, row-major: ``(1, H/2 · W/2, 4C)``."""
    blocks = latents_1CHW.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, C, h, w, 2, 2)
    return blocks.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

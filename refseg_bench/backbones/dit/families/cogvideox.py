"""CogVideoX: text before video; a discrete variance-preserving schedule instead of a flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refseg_bench.backbones.dit.families.base import DiTFamily, ForwardInputs, config, mode


class CogVideoX(DiTFamily):
    """``CogVideoXTransformer3DModel`` on a single frame. Models without rotation want 226 text tokens."""

    name: ClassVar[str] = "cogvideox"
    transformer_class: ClassVar[str] = "CogVideoXTransformer3DModel"
    vae_class: ClassVar[str] = "AutoencoderKLCogVideoX"
    text_first: ClassVar[bool] = True
    prompt_length: ClassVar[int] = 226
    max_text: ClassVar[int] = 226
    size: ClassVar[tuple[int, int]] = (480, 720)

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """One call per block."""
        return tuple(range(len(self.blocks(transformer))))

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, frames, channels, height, width)``; 1.5 models take their frames in pairs."""
        latents = mode(vae, pixels_1CHW[:, :, None]).permute(0, 2, 1, 3, 4)
        return latents * float(config(vae, "scaling_factor", 1.0))

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """Patches of one latent frame."""
        patch = config(transformer, "patch_size")
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def timestep(self, sigma: float, scheduler: Mapping[str, Any] | None = None) -> int:
        """σ as a place in the 1000 training steps."""
        return min(999, round(1000 * sigma))

    def noised(self, latents: Tensor, noise: Tensor, sigma: float, scheduler: Mapping[str, Any]) -> Tensor:
        """√ᾱ·z₀ + √(1 − ᾱ)·ε at the training step nearest to σ."""
        from diffusers import CogVideoXDDIMScheduler

        known = CogVideoXDDIMScheduler.from_config(dict(scheduler))
        alpha = float(known.alphas_cumprod[self.timestep(sigma)])
        signal, spread = alpha**0.5, (1 - alpha) ** 0.5
        return float(signal) * latents + float(spread) * noise

    def text_length(self, transformer: nn.Module) -> int | None:
        """Position tables of the models without rotation count on the full text."""
        if config(transformer, "use_rotary_positional_embeddings", False):
            return None
        return int(config(transformer, "max_text_seq_length", 226))

    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """Discrete timestep; rotation of the video tokens where the model was trained with it."""
        latents = inputs.latents
        pair = config(transformer, "patch_size_t")
        if pair is not None:
            latents = latents.repeat(1, pair, 1, 1, 1)
        output: Tensor = transformer(
            hidden_states=latents,
            encoder_hidden_states=inputs.text,
            timestep=torch.full((1,), self.timestep(inputs.sigma), device=latents.device),
            image_rotary_emb=self._rotation(transformer, latents, pair),
            return_dict=False,
        )[0]
        return output

    def _rotation(self, transformer: nn.Module, latents: Tensor, pair: int | None) -> Any:
        if not config(transformer, "use_rotary_positional_embeddings", False):
            return None
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        patch = config(transformer, "patch_size")
        rows, columns = self.grid(latents, transformer)
        table = (config(transformer, "sample_height") // patch, config(transformer, "sample_width") // patch)
        head = config(transformer, "attention_head_dim")
        if pair is not None:
            return get_3d_rotary_pos_embed(
                head, None, (rows, columns), 1, grid_type="slice", max_size=table, device=latents.device
            )
        # The grid is laid, in proportion, over the middle of the table the model was trained on.
        factor = min(table[0] / rows, table[1] / columns)
        height, width = round(rows * factor), round(columns * factor)
        top, left = round((table[0] - height) / 2), round((table[1] - width) / 2)
        return get_3d_rotary_pos_embed(
            head, ((top, left), (top + height, left + width)), (rows, columns), 1, device=latents.device
        )

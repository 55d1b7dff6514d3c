"""What differs between families of diffusion transformers, and nothing else.

A family says in which order its attention sees tokens, how an image becomes latents, what a noise
level means to it, and how its forward pass is called. The models themselves stay unmodified.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class ForwardInputs:
    """One forward pass, in terms every family understands.

    Attributes:
        latents: noised latents, batch of one, in the family's own layout.
        text: ``(1, tokens, channels)`` embeddings of prompt and extraction tokens.
        pooled: ``(1, channels)`` pooled text vector, or ``None`` where the family takes none.
        sigma: noise level in [0, 1].
        guidance: guidance embedding, or ``None``.
        prompt_tokens: how many of ``text`` belong to the prompt (they come first).
    """

    latents: Tensor
    text: Tensor
    pooled: Tensor | None
    sigma: float
    guidance: float | None
    prompt_tokens: int


class DiTFamily(ABC):
    """Adapter of one family."""

    name: ClassVar[str]
    #: class names in diffusers, as a model folder's index spells them.
    transformer_class: ClassVar[str]
    vae_class: ClassVar[str]
    text_first: ClassVar[bool]
    #: True where text is only ever keys of a cross-attention.
    cross: ClassVar[bool] = False
    #: tokens the pipelines pad a prompt to, and whether the padding takes part in attention.
    prompt_length: ClassVar[int]
    padding_attends: ClassVar[bool] = True
    #: most text tokens the model was made for, prompt and extraction tokens each.
    max_text: ClassVar[int]
    #: (height, width) an image is brought to.
    size: ClassVar[tuple[int, int]] = (1024, 1024)
    #: pooled text vector: ``None``, or which output of the CLIP encoders.
    pooled_output: ClassVar[str | None] = None

    # ── layers ──

    @abstractmethod
    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """Layer number of each attention call of a forward pass; ``None`` = nothing to read."""

    def layer_groups(self, transformer: nn.Module) -> dict[str, tuple[int, ...]]:
        """Named groups of layers; ``all`` and ``late_half`` exist for every family."""
        every = tuple(layer for layer in self.schedule(transformer) if layer is not None)
        return {"all": every, "late_half": every[len(every) // 2 :]}

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """The module of each layer number."""
        return list(transformer.transformer_blocks)  # type: ignore[arg-type]

    # ── latents ──

    @abstractmethod
    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """Clean latents of an image in [−1, 1], scaled as the transformer expects them."""

    @abstractmethod
    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""

    def noised(self, latents: Tensor, noise: Tensor, sigma: float, scheduler: Mapping[str, Any]) -> Tensor:
        """Latents at a noise level; rectified flow: σ·ε + (1 − σ)·z₀."""
        return sigma * noise + (1 - sigma) * latents

    def shifted(self, sigma: float, tokens: int, scheduler: Mapping[str, Any]) -> float:
        """The noise level after the model's own schedule shift.

        Static shift s: s·σ / (1 + (s − 1)·σ). Dynamic shift (FLUX dev): e^μ / (e^μ + 1/σ − 1), μ linear
        in the number of image tokens.
        """
        if sigma <= 0:
            return sigma
        if scheduler.get("use_dynamic_shifting"):
            low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
            base, top = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
            mu = base + (top - base) * (tokens - low) / (high - low)
            return math.exp(mu) / (math.exp(mu) + 1 / sigma - 1)
        shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0)
        return shift * sigma / (1 + (shift - 1) * sigma)

    # ── the forward pass ──

    def guidance_default(self, transformer: nn.Module) -> float | None:
        """Guidance embedding where none is asked for."""
        return None

    def pad_to(self, transformer: nn.Module) -> int:
        """Tokens the checkpoint's own pipeline pads a prompt to."""
        return self.prompt_length

    def text_length(self, transformer: nn.Module) -> int | None:
        """The exact number of text tokens the model needs, or ``None`` for any."""
        return None

    @abstractmethod
    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """Call the transformer; returns its output."""

    @contextmanager
    def prompt_only_conditioning(self, transformer: nn.Module, prompt_tokens: int) -> Iterator[None]:
        """Keep extraction tokens out of whatever global vector the model makes of its text.

        Most families make none from token embeddings; Mochi does.
        """
        yield


def config(module: nn.Module, name: str, default: Any = None) -> Any:
    """An entry of a diffusers module's config."""
    value = module.config.get(name, default)  # type: ignore[operator, union-attr]
    return default if value is None else value


def scaled(vae: nn.Module, latents: Tensor) -> Tensor:
    """(z − shift) · scale, as image VAEs have it."""
    shift = float(config(vae, "shift_factor", 0.0))
    return (latents - shift) * float(config(vae, "scaling_factor", 1.0))


def standardised(vae: nn.Module, latents: Tensor) -> Tensor:
    """((z − mean) / std) · scale per channel, where the VAE names mean and std."""
    mean, std = config(vae, "latents_mean"), config(vae, "latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        latents = (latents - torch.tensor(mean, device=latents.device).view(shape)) / torch.tensor(
            std, device=latents.device
        ).view(shape)
    return latents * float(config(vae, "scaling_factor", 1.0))


def mode(vae: nn.Module, pixels: Tensor) -> Tensor:
    """The most likely latents, in float32."""
    dtype = next(vae.parameters()).dtype
    latents: Tensor = vae.encode(pixels.to(dtype)).latent_dist.mode()  # type: ignore[operator]
    return latents.float()

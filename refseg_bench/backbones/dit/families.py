"""What differs between families of diffusion transformers of diffusers, and nothing else.

A family says in which order its attention sees tokens, how an image becomes latents, what a noise
level means to it, and how its forward pass is called. The models themselves stay unmodified.

To add a family, write a subclass of :class:`DiTFamily` and name it in a backbone's YAML:
``family: package.module.Class``, or under a short name in :data:`FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from refseg_bench.backbones.lazy_torch import Tensor, nn, torch
from refseg_bench.errors import ConfigError


@dataclass(frozen=True, eq=False)
class ForwardInputs:
    """One forward pass, in terms every family understands."""

    latents: Tensor  #: noised latents, batch of one, in the family's own layout
    text: Tensor  #: ``(1, tokens, channels)`` embeddings of prompt and extraction tokens
    pooled: Tensor | None  #: ``(1, channels)`` pooled text vector, or ``None`` where the family takes none
    sigma: float  #: noise level in [0, 1]
    guidance: float | None  #: guidance embedding, or ``None``
    prompt_tokens: int  #: how many of ``text`` belong to the prompt (they come first)


class DiTFamily:
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

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """Layer number of each attention call of a forward pass; ``None`` = nothing to read.

        One call per block, unless a family says otherwise.
        """
        return tuple(range(len(self.blocks(transformer))))

    def layer_groups(self, transformer: nn.Module) -> dict[str, tuple[int, ...]]:
        """Named groups of layers; ``all`` and ``late_half`` exist for every family."""
        every = tuple(layer for layer in self.schedule(transformer) if layer is not None)
        return {"all": every, "late_half": every[len(every) // 2 :]}

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """The module of each layer number."""
        return list(transformer.transformer_blocks)  # type: ignore[arg-type]

    # ── latents ──

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """Clean latents of an image in [−1, 1], scaled as the transformer expects them.

        By default ``(1, channels, height, width)``, as image VAEs make them.
        """
        return scaled(vae, mode(vae, pixels_1CHW))

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """(rows, columns) of the image tokens: patches of one latent frame."""
        patch = config(transformer, "patch_size")
        height, width = (patch, patch) if isinstance(patch, int) else patch[-2:]
        return latents.shape[-2] // height, latents.shape[-1] // width

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

    def arguments(self, transformer: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
        """What the transformer is called with beside text and latents; most take 1000·σ as their timestep."""
        return {"timestep": torch.full((1,), 1000 * inputs.sigma, device=inputs.latents.device)}

    def forward(self, transformer: nn.Module, inputs: ForwardInputs) -> Tensor:
        """Call the transformer; returns its output."""
        given = {"hidden_states": inputs.latents, "encoder_hidden_states": inputs.text, "return_dict": False}
        output: Tensor = transformer(**given | self.arguments(transformer, inputs))[0]
        return output

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


class Flux(DiTFamily):
    """``FluxTransformer2DModel``. Layers count through: double 0 … 18, single 19 … 56."""

    name = "flux"
    transformer_class = "FluxTransformer2DModel"
    vae_class = "AutoencoderKL"
    text_first = True
    prompt_length = 512
    max_text = 512
    pooled_output = "pooler_output"

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

    def grid(self, latents: Tensor, transformer: nn.Module) -> tuple[int, int]:
        """2 × 2 latents make a token."""
        return latents.shape[-2] // 2, latents.shape[-1] // 2

    def pad_to(self, transformer: nn.Module) -> int:
        """512 for dev, 256 for schnell, which has no guidance embedding."""
        return self.prompt_length if config(transformer, "guidance_embeds", False) else 256

    def guidance_default(self, transformer: nn.Module) -> float | None:
        """1.0 for the guidance-distilled dev model."""
        return 1.0 if config(transformer, "guidance_embeds", False) else None

    def arguments(self, transformer: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
        """Timestep and guidance go in as they are; the model multiplies both by 1000."""
        latents = inputs.latents
        rows, columns = self.grid(latents, transformer)
        like: dict[str, Any] = {"device": latents.device, "dtype": torch.float32}
        ids = torch.zeros(rows, columns, 3, **like)
        ids[..., 1] += torch.arange(rows, **like)[:, None]
        ids[..., 2] += torch.arange(columns, **like)[None, :]
        guided = config(transformer, "guidance_embeds", False)
        return {
            "hidden_states": pack(latents),
            "pooled_projections": inputs.pooled,
            "timestep": torch.full((1,), inputs.sigma, **like),
            "img_ids": ids.reshape(-1, 3),
            "txt_ids": torch.zeros(inputs.text.shape[1], 3, **like),
            "guidance": torch.full((1,), inputs.guidance or 0.0, **like) if guided else None,
        }


def pack(latents_1CHW: Tensor) -> Tensor:
    """2 × 2 neighbours to one token, row-major: ``(1, H/2 · W/2, 4C)``."""
    blocks = latents_1CHW.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, C, h, w, 2, 2)
    return blocks.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class SD3(DiTFamily):
    """``SD3Transformer2DModel``. 3.5 medium has a second, image-only attention in its dual layers."""

    name = "sd3"
    transformer_class = "SD3Transformer2DModel"
    vae_class = "AutoencoderKL"
    text_first = False
    prompt_length = 256
    max_text = 256
    pooled_output = "text_embeds"

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """One call per block, and one to ignore after it in a dual layer."""
        dual = set(config(transformer, "dual_attention_layers", ()))
        calls = ([layer, None][: 1 + (layer in dual)] for layer in range(len(self.blocks(transformer))))
        return tuple(chain.from_iterable(calls))

    def arguments(self, transformer: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
        """With the pooled text."""
        return {**super().arguments(transformer, inputs), "pooled_projections": inputs.pooled}


class Mochi(DiTFamily):
    """``MochiTransformer3DModel`` on a single frame."""

    name = "mochi"
    transformer_class = "MochiTransformer3DModel"
    vae_class = "AutoencoderKLMochi"
    text_first = False
    prompt_length = 256
    padding_attends = False
    max_text = 256
    size = (480, 848)

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """The caption pool of the time embedding comes first, then one call per block."""
        return (None, *range(len(self.blocks(transformer))))

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, channels, 1, height, width)``."""
        return standardised(vae, mode(vae, pixels_1CHW[:, :, None]))

    def arguments(self, transformer: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
        """The timestep is 1000·(1 − σ): 0 is pure noise."""
        device = inputs.latents.device
        return {
            "timestep": torch.full((1,), 1000 * (1 - inputs.sigma), device=device),
            "encoder_attention_mask": torch.ones(inputs.text.shape[:2], dtype=torch.bool, device=device),
        }

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


class CogVideoX(DiTFamily):
    """``CogVideoXTransformer3DModel`` on a single frame. Models without rotation want 226 text tokens."""

    name = "cogvideox"
    transformer_class = "CogVideoXTransformer3DModel"
    vae_class = "AutoencoderKLCogVideoX"
    text_first = True
    prompt_length = 226
    max_text = 226
    size = (480, 720)

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, frames, channels, height, width)``; 1.5 models take their frames in pairs."""
        latents = mode(vae, pixels_1CHW[:, :, None]).permute(0, 2, 1, 3, 4)
        return latents * float(config(vae, "scaling_factor", 1.0))

    def timestep(self, sigma: float) -> int:
        """σ as a place in the 1000 training steps."""
        return min(999, round(1000 * sigma))

    def noised(self, latents: Tensor, noise: Tensor, sigma: float, scheduler: Mapping[str, Any]) -> Tensor:
        """√ᾱ·z₀ + √(1 − ᾱ)·ε at the training step nearest to σ."""
        from diffusers import CogVideoXDDIMScheduler

        known = CogVideoXDDIMScheduler.from_config(dict(scheduler))
        alpha = float(known.alphas_cumprod[self.timestep(sigma)])
        return float(alpha**0.5) * latents + float((1 - alpha) ** 0.5) * noise

    def text_length(self, transformer: nn.Module) -> int | None:
        """Position tables of the models without rotation count on the full text."""
        if config(transformer, "use_rotary_positional_embeddings", False):
            return None
        return int(config(transformer, "max_text_seq_length", 226))

    def arguments(self, transformer: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
        """Discrete timestep; rotation of the video tokens where the model was trained with it."""
        latents = inputs.latents
        pair = config(transformer, "patch_size_t")
        if pair is not None:
            latents = latents.repeat(1, pair, 1, 1, 1)
        return {
            "hidden_states": latents,
            "timestep": torch.full((1,), self.timestep(inputs.sigma), device=latents.device),
            "image_rotary_emb": self._rotation(transformer, latents, pair),
        }

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


class Wan(DiTFamily):
    """``WanTransformer3DModel`` (2.x, text to video) on a single frame.

    Text is never updated and never queries, so there is no text-to-text matrix: attention sinks can
    only be seen from the image side.
    """

    name = "wan"
    transformer_class = "WanTransformer3DModel"
    vae_class = "AutoencoderKLWan"
    text_first = False
    cross = True
    prompt_length = 512
    max_text = 512
    size = (480, 832)

    def schedule(self, transformer: nn.Module) -> tuple[int | None, ...]:
        """Self-attention to ignore, cross-attention to read, per block."""
        return tuple(call for layer in range(len(self.blocks(transformer))) for call in (None, layer))

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """The blocks."""
        return list(transformer.blocks)  # type: ignore[arg-type]

    def encode(self, vae: nn.Module, pixels_1CHW: Tensor) -> Tensor:
        """``(1, channels, 1, height, width)``."""
        return standardised(vae, mode(vae, pixels_1CHW[:, :, None]))


FAMILIES: dict[str, type[DiTFamily]] = {cls.name: cls for cls in (Flux, SD3, Mochi, CogVideoX, Wan)}


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

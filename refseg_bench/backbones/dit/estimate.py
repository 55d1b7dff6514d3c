"""What a diffusion transformer needs, computed from configs on the meta device: no weights, no GPU.

The models are built without storage, their parameters counted, and one forward pass up to the last
wanted layer is traced for its FLOPs. Where a model's configs are not on this machine, the published
architecture of its hub id stands in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from refseg_bench.backbones.dit.families import Family, ForwardInputs
from refseg_bench.backbones.sdpa_tap import SdpaTap
from refseg_bench.errors import ConfigError

if TYPE_CHECKING:
    from refseg_bench.backbones.dit.model import DiT

_T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "tie_word_embeddings": False,
}  # fmt: skip
_KL16 = {
    "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
_SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
#: hub id → config of transformer and VAE, as published (only what differs from diffusers' defaults).
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "black-forest-labs/FLUX.1-dev": ({"guidance_embeds": True}, _KL16),
    "black-forest-labs/FLUX.1-schnell": ({}, _KL16),
    "stabilityai/stable-diffusion-3-medium-diffusers": (
        {
            **_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
        },
        _KL16,
    ),
    "stabilityai/stable-diffusion-3.5-medium": (
        {
            **_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)),
        },
        _KL16,
    ),
    "stabilityai/stable-diffusion-3.5-large": (
        {
            **_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
            "pos_embed_max_size": 192, "qk_norm": "rms_norm",
        },
        _KL16,
    ),
    "genmo/mochi-1-preview": ({}, {}),
}  # fmt: skip
#: Bytes of a weight by dtype name.
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
#: What CUDA, cuDNN and fragmentation take beside the tensors (rule of thumb), bytes.
_OVERHEAD = 1.5e9


@dataclass(frozen=True)
class Plan:
    """One way of placing the parts, with the device memory it needs at its fullest moment.

    Attributes:
        name: what is done.
        options: the knobs that do it.
        bytes: device memory.
    """

    name: str
    options: str
    bytes: float


@dataclass(frozen=True)
class DiTEstimate:
    """What one model needs.

    Attributes:
        parameters: per part; ``used`` counts the transformer up to the last layer read.
        flops: of one forward pass up to that layer, text encoder and VAE apart.
        joint_tokens: tokens of its joint attention.
        activations: bytes of the forward pass's largest moment beside the weights (estimate).
        dense_maps: bytes that all layers' full attention matrices would take in the weights' dtype.
        streamed_maps: bytes the accumulators take.
        plans: ways of placing the parts, largest memory first.
    """

    parameters: Mapping[str, int]
    flops: float
    joint_tokens: int
    activations: float
    dense_maps: float
    streamed_maps: float
    plans: tuple[Plan, ...]

    def lines(self) -> list[str]:
        """For ``--dry``."""
        billions = ", ".join(f"{name} {count / 1e9:.2f}" for name, count in self.parameters.items())
        return [
            f"parameters (billions): {billions}",
            f"one forward pass: {self.flops / 1e12:.2f} TFLOP, {self.joint_tokens} joint tokens, "
            f"{self.activations / 1e9:.2f} GB of activations",
            f"attention maps: {self.streamed_maps / 1e6:.2f} MB streamed "
            f"({self.dense_maps / 1e9:.2f} GB if kept dense)",
            *(
                f"{plan.bytes / 1e9:5.1f} GB of device memory: {plan.name} ({plan.options}); "
                f"{fits(plan.bytes)}"
                for plan in self.plans
            ),
        ]


def fits(needed: float) -> str:
    """Which of the usual cards hold it."""
    holds = [size for size in (24, 40, 80) if needed <= size * 1e9]
    return f"fits {holds[0]} GB" if holds else "needs more than 80 GB"


def estimate(dit: DiT, *, text_tokens: int = 25) -> DiTEstimate:
    """Estimate memory and compute of a backbone as it is configured.

    Args:
        dit: the backbone; nothing of it is loaded.
        text_tokens: extraction tokens of one expression with its magnets.

    Raises:
        ConfigError: the model's configs are neither here nor published in this module.
    """
    family, size = dit.adapter, _BYTES[dit.dtype]
    configs = _configs(dit)
    with torch.device("meta"):
        transformer = _make("diffusers", family.transformer_class, configs["transformer"])
        vae = _make("diffusers", family.vae_class, configs["vae"])
        t5 = _text_encoder(configs["text_encoder"])
    from refseg_bench.backbones.dit.model import resolve_layers

    wanted = resolve_layers(dit.layers, family.layer_groups(transformer))
    blocks = family.blocks(transformer)
    late = sum(_count(block) for block in blocks[max(wanted) + 1 :])
    parameters = {
        "transformer": _count(transformer),
        "used": _count(transformer) - late,
        "vae": _count(vae),
        "t5": _count(t5),
    }
    padded = dit.text_mode == "concept_stream" and family.padding_attends
    prompt = family.pad_to(transformer) if padded else 0
    sets = dit.batch_size if dit.text_mode == "concept_stream" else 1
    text = family.text_length(transformer) or prompt + sets * text_tokens
    flops, grid, heads, widest = _trace(dit, family, transformer, vae, text, wanted)
    image = grid[0] * grid[1]
    joint = image if family.cross else image + text
    # Hidden states, q, k, v and the feed-forward's inner states of one block, batch of one.
    activations = 10.0 * joint * widest * size
    dense = float(len(blocks)) * heads * joint * joint * size
    largest = max(_count(block) for block in blocks)
    weights = {name: count * size for name, count in parameters.items()}
    working = activations + _OVERHEAD
    resident = weights["used"] + weights["vae"] + working
    text_pass = weights["t5"] + _OVERHEAD
    plans = (
        Plan("everything stays on the device", "text_encoders=keep", resident + weights["t5"]),
        Plan(
            "T5 visits the device beside the transformer, before each clip",
            "text_encoders=cpu",
            max(resident, weights["used"] + weights["vae"] + text_pass),
        ),
        Plan(
            "T5 never visits the device at the same time as the transformer's blocks",
            "text_encoders=cpu offload=blocks",
            max(2 * largest * size + weights["vae"] + working, text_pass),
        ),
    )
    return DiTEstimate(
        parameters, flops, joint, activations, dense, 4.0 * text_tokens * (image + text_tokens) * sets, plans
    )


def _configs(dit: DiT) -> dict[str, dict[str, Any]]:
    """Configs of transformer, VAE and T5: from the folder or the hub's cache, else as published."""
    from refseg_bench.backbones.dit.model import model_folder

    try:
        folder = model_folder(replace(dit, offline=True))
    except Exception as absent:
        if dit.path not in PUBLISHED:
            raise ConfigError(
                f"'{dit.path}' is not on this machine, so its size can't be computed.",
                where="backbone.path",
                allowed=sorted(PUBLISHED),
                cure="Fetch the model (or only its config files) first.",
            ) from absent
        transformer, vae = PUBLISHED[dit.path]
        return {"transformer": transformer, "vae": vae, "text_encoder": _T5_XXL}
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    t5 = next(k for k, v in index.items() if isinstance(v, list) and "T5EncoderModel" in str(v[1]))
    return {
        part: json.loads((folder / place / "config.json").read_text("utf-8"))
        for part, place in (("transformer", "transformer"), ("vae", "vae"), ("text_encoder", t5))
    }


def _make(library: str, name: str, config: Mapping[str, Any]) -> nn.Module:
    cls = getattr(import_module(library), name)
    made: nn.Module = cls.from_config(dict(config)) if config else cls()
    return made.eval().requires_grad_(False)


def _text_encoder(config: Mapping[str, Any]) -> nn.Module:
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    multilingual = config.get("model_type") == "umt5"
    made: nn.Module = (
        UMT5EncoderModel(UMT5Config(**config)) if multilingual else T5EncoderModel(T5Config(**config))
    )
    return made.eval().requires_grad_(False)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class _FullMasks(TorchFunctionMode):
    """Meta tensors hold no values; where a model asks which mask entries are set, the answer is all."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nonzero and args[0].is_meta:
            return torch.arange(args[0].numel(), device="meta")[:, None]
        return func(*args, **(kwargs or {}))


def _trace(
    dit: DiT, family: Family, transformer: nn.Module, vae: nn.Module, text: int, wanted: tuple[int, ...]
) -> tuple[float, tuple[int, int], int, int]:
    """FLOPs of a pass, its grid, the attention's heads and the width of a token."""
    from torch.utils.flop_counter import FlopCounterMode

    family.make_traceable(transformer)
    height, width = dit.input_size()
    config: Mapping[str, Any] = transformer.config  # type: ignore[assignment]
    with torch.device("meta"), torch.inference_mode():
        latents = family.encode(vae, torch.zeros(1, 3, height, width))
        width_of_text = next(
            config[name] for name in ("joint_attention_dim", "text_embed_dim", "text_dim") if name in config
        )
        states = torch.zeros(1, text, int(width_of_text))
        pooled = (
            torch.zeros(1, int(config.get("pooled_projection_dim") or 1)) if family.pooled_output else None
        )
        inputs = ForwardInputs(latents, states, pooled, 0.5, family.guidance_default(transformer), 0)
        tap = SdpaTap(family.schedule(transformer), wanted, lambda call: None)
        with _FullMasks(), FlopCounterMode(display=False) as counter:
            tap.run(lambda: family.forward(transformer, inputs))
    heads, channels = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    return float(counter.get_total_flops()), family.grid(latents, transformer), heads, heads * channels

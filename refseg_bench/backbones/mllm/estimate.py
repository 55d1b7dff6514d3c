"""What a clip will cost on a model, from the model's config alone: no weights, no GPU.

The model is built on torch's meta device to count its parameters; the rest is arithmetic on token
counts. Within some tens of percent: windows of a vision tower count as full attention, elementwise
work counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refseg_bench.backbones.base import RolloutSettings, VisualSettings, layer_range
from refseg_bench.backbones.mllm.families import Family
from refseg_bench.backbones.rollout import BLOCK_BYTES

#: Tokens of a prompt of the method's own wording around a usual expression.
PROMPT_TOKENS = 100
#: Tokens of the text-only choice prompt with its candidates.
CHOICE_TOKENS = 250
#: Tokens of an answer.
ANSWER_TOKENS = 3


def _qwen2(
    hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, *, tied: bool = False
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def _qwen3(hidden: int, inner: int, *, tied: bool) -> dict[str, Any]:
    return {**_qwen2(hidden, inner, 36, 32, 8, 151936, tied=tied), "head_dim": 128}


_INTERN_VIT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}
_QWEN25_VIT = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_SMALL, _SEVEN, _FOURTEEN = (1536, 8960, 28, 12, 2), (3584, 18944, 28, 28, 4), (5120, 13824, 48, 40, 8)
#: hub id → config class of transformers, language part, vision part: the published architectures.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Qwen/Qwen2-VL-2B-Instruct": ("Qwen2VLConfig", _qwen2(*_SMALL, 151936, tied=True), {"hidden_size": 1536}),
    "Qwen/Qwen2-VL-7B-Instruct": ("Qwen2VLConfig", _qwen2(*_SEVEN, 152064), {"hidden_size": 3584}),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "Qwen2_5_VLConfig",
        _qwen2(2048, 11008, 36, 16, 2, 151936, tied=True),
        {**_QWEN25_VIT, "out_hidden_size": 2048},
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "Qwen2_5_VLConfig",
        _qwen2(*_SEVEN, 152064),
        {**_QWEN25_VIT, "out_hidden_size": 3584},
    ),
    "OpenGVLab/InternVL3-2B-hf": ("InternVLConfig", _qwen2(*_SMALL, 151674, tied=True), _INTERN_VIT),
    "OpenGVLab/InternVL3-8B-hf": ("InternVLConfig", _qwen2(*_SEVEN, 151674), _INTERN_VIT),
    "OpenGVLab/InternVL3-14B-hf": ("InternVLConfig", _qwen2(*_FOURTEEN, 151674), _INTERN_VIT),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        "LlavaOnevisionConfig",
        _qwen2(*_SEVEN, 152000),
        {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "Qwen3VLConfig",
        _qwen3(2560, 9728, tied=True),
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
        },
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        "Qwen3VLConfig",
        _qwen3(4096, 12288, tied=False),
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
        },
    ),
}


def published(path: str) -> Any | None:
    """The config of a known hub id by its published architecture, or ``None``. Asks nobody."""
    if path not in PUBLISHED:
        return None
    import transformers

    name, text, vision = PUBLISHED[path]
    if name in ("InternVLConfig", "LlavaOnevisionConfig"):
        text = {"model_type": "qwen2", **text}
    tied = bool(text["tie_word_embeddings"])
    return getattr(transformers, name)(text_config=text, vision_config=vision, tie_word_embeddings=tied)


@dataclass(frozen=True)
class Size:
    """A model in numbers.

    Attributes:
        language: parameters that every text token passes through.
        vision: parameters of tower and projector.
        total: all parameters, embeddings included.
    """

    language: int
    vision: int
    total: int


def size_of(config: Any) -> Size:
    """Count parameters on the meta device."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    vocabulary = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    embeddings = sum(p.numel() for p in model.parameters() if id(p) in vocabulary)
    language = sum(
        p.numel()
        for name, p in model.named_parameters()
        if "language_model" in name and id(p) not in vocabulary
    )
    return Size(language, total - language - embeddings, total)


def clip_cost(
    family: Family,
    size: tuple[int, int],
    frames: int,
    expressions: int,
    visual: VisualSettings,
    rollout: RolloutSettings,
    *,
    bytes_per_number: int = 2,
    budget_gb: float = 8.0,
    batch_size: int = 16,
    background: bool = True,
) -> dict[str, Any]:
    """Tokens, FLOPs and memory of reading the attention of one clip's expressions.

    Args:
        family: the adapter around the model's config.
        size: (height, width) of the frames in pixels.
        frames: sampled frames.
        expressions: prompts per place and kind.
        visual: how frames become tokens.
        rollout: which layers are read.
        bytes_per_number: of weights and activations.
        budget_gb: what prefixes may keep.
        batch_size: prompts in one pass.
        background: whether background prompts are run.

    Returns:
        JSON numbers: FLOPs in TFLOP for the clip and per expression, memory in GB at its peak.
    """
    model = size_of(family.config)
    text = family.text_config
    layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    depth = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    read = len(layer_range(rollout.start, rollout.end, layers))
    kinds = 2 if background else 1

    video = int(np.prod(family.video_grid(size, frames, visual)))
    frame = int(np.prod(family.frame_grid(size, visual)))
    places = [video, *([frame] * frames)]
    patches = family.vision_tokens(size, frames, visual)
    vision = 2.0 * model.vision * (patches[0] + frames * patches[1])
    # A token's linear work, and half of a square for causal attention (scores and values).
    prefix = sum(2.0 * model.language * n + 4.0 * layers * heads * depth * n * n / 2 for n in places)
    one_prompt = sum(
        2.0 * model.language * PROMPT_TOKENS + 4.0 * layers * heads * depth * PROMPT_TOKENS * n
        for n in places
    )
    prompts = one_prompt * kinds * expressions
    decode = 2.0 * model.total * (ANSWER_TOKENS * len(places) + CHOICE_TOKENS) * expressions
    scores = sum(2.0 * read * heads * depth * n * n / 2 for n in places) * kinds
    pulls = sum(2.0 * read * heads * n * n / 2 for n in places) * kinds * expressions

    per_token = bytes_per_number * depth * (2 * layers * groups + read * heads)
    kept = min(sum(places) * per_token, budget_gb * 2**30)
    copies = min(
        bytes_per_number * depth * 2 * layers * groups * max(places) * min(batch_size, expressions),
        budget_gb * 2**30,
    )
    weights = model.total * bytes_per_number
    scratch = 3 * BLOCK_BYTES + 4 * heads * max(places) * min(batch_size, expressions)
    tera, giga = 1e12, 1e9
    total = vision + prefix + prompts + decode + scores + pulls
    return {
        "parameters": model.total,
        "visual_tokens": {"video": video, "frame": frame, "clip": sum(places)},
        "tflop": {
            "vision": round(vision / tera, 4),
            "prefix": round(prefix / tera, 4),
            "prompts": round(prompts / tera, 4),
            "decode": round(decode / tera, 4),
            "rollout": round((scores + pulls) / tera, 4),
            "clip": round(total / tera, 4),
            "per_expression": round(total / max(1, expressions) / tera, 4),
        },
        "memory_gb": {
            "weights": round(weights / giga, 3),
            "prefixes": round(kept / giga, 3),
            "prompts": round(copies / giga, 3),
            "rollout": round(scratch / giga, 3),
            "peak": round((weights + kept + copies + scratch) / giga, 3),
        },
    }

"""Tiny random-weight models of the five families with one byte-level tokenizer, made in memory."""

from __future__ import annotations

import functools

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refseg_bench.backbones.mllm import MLLM
from refseg_bench.methods.decaf import prompts

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<image>",
    "<video>",
]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision")
LAYERS = 4


@functools.cache
def tokenizer():
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    corpus = [text for texts in prompts.TEXTS.values() for text in texts.values()]
    base.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
        padding_side="left",
    )


def _text(**more):
    return dict(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        **more,
    )


def build(family, seed=0):
    """A model with random weights, large enough to attend unevenly."""
    import transformers as t

    ids = {name: tokenizer().convert_tokens_to_ids(name) for name in SPECIAL}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    qwen = dict(
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    if family == "qwen2_vl":
        config = t.Qwen2VLConfig(
            text_config=_text(rope_parameters=rope),
            vision_config=dict(depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=7),
            **qwen,
        )
        cls = t.Qwen2VLForConditionalGeneration
    elif family == "qwen2_5_vl":
        config = t.Qwen2_5_VLConfig(
            text_config=_text(rope_parameters=rope),
            vision_config=dict(
                depth=2,
                hidden_size=16,
                out_hidden_size=32,
                num_heads=2,
                intermediate_size=24,
                patch_size=7,
                window_size=28,
                fullatt_block_indexes=[1],
                tokens_per_second=2,
            ),
            **qwen,
        )
        cls = t.Qwen2_5_VLForConditionalGeneration
    elif family == "qwen3_vl":
        config = t.Qwen3VLConfig(
            text_config=_text(rope_parameters=rope, head_dim=8),
            vision_config=dict(
                depth=2,
                hidden_size=16,
                out_hidden_size=32,
                num_heads=2,
                intermediate_size=24,
                patch_size=8,
                num_position_embeddings=64,
                deepstack_visual_indexes=[0, 1],
            ),
            **qwen,
        )
        cls = t.Qwen3VLForConditionalGeneration
    elif family == "internvl":
        config = t.InternVLConfig(
            text_config=dict(model_type="qwen2", **_text()),
            vision_config=dict(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                image_size=[56, 56],
                patch_size=[14, 14],
            ),
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=4,
        )
        cls = t.InternVLForConditionalGeneration
    else:
        config = t.LlavaOnevisionConfig(
            text_config=dict(model_type="qwen2", **_text()),
            vision_config=dict(
                model_type="siglip_vision_model",
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                image_size=42,
                patch_size=14,
                vision_use_head=False,
            ),
            image_token_id=ids["<image>"],
            video_token_id=ids["<video>"],
            image_grid_pinpoints=[[42 * r, 42 * c] for r in range(1, 7) for c in range(1, 7)],
        )
        cls = t.LlavaOnevisionForConditionalGeneration
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25 if "proj" in name or "qkv" in name else 0.5)
    model.generation_config.eos_token_id = [ids["<|im_end|>"]]
    model.generation_config.pad_token_id = 0
    return model


def backbone(family, **options):
    """A backbone around a fresh tiny model."""
    made = MLLM(path=f"tiny:{family}", dtype="float32", device="cpu", **{"max_new_tokens": 6, **options})
    made.use(build(family), tokenizer())
    return made


def clip_frames(count=5, size=(60, 84), seed=0):
    """Smooth random frames, uint8 RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, 6, 8, 3), np.uint8)
    import cv2

    return np.stack(
        [cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) for frame in coarse]
    )

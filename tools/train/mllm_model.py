"""``tiny_mllm`` before training: tokenizer, processor, model, all of the Qwen2-VL family's form.

A machine to train on may lack torchvision, which the processor needs; then the finished folder holds none and
``python tools/train/mllm_model.py FOLDER`` adds it elsewhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from refseg_bench.methods.decaf import prompts
from tools.shapes_world import COLOURS, GROUNDS, NOTHING, SEVERAL, TEXTURES

PATCH, MERGE = 8, 2
CELL = PATCH * MERGE  # pixels per visual token
START_LAYER = 3  # of 6: the rollout's first layer, the middle one

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

SYSTEM = "You are a helpful assistant."
NAMES = tuple(f"{c}-{t}" for c in COLOURS for t in TEXTURES)
ANSWERS = (*NAMES, *COLOURS, *TEXTURES, SEVERAL, NOTHING)

# The training prompts are the method's own, so that it runs on this model unchanged; the default first.
OBJECT, BACKGROUND, CHOICE = (tuple(texts.values()) for texts in prompts.TEXTS.values())

# Whatever stands between the blanks of these prompts is one token each: 15 tokens a question instead of
# 90, which is what makes training on one core possible. Any other text is spelled by bytes and merges.
PHRASES = (
    SYSTEM,
    *dict.fromkeys(p for t in (*OBJECT, *BACKGROUND, *CHOICE) for p in re.split(r"{\w+}", t) if len(p) > 3),
)

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE like the real family's; every frequent word of the corpus becomes one token."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    words = [*ANSWERS, *GROUNDS, "system", "user", "assistant", "one", "the", "pink"]
    lines = [*corpus, *(f"{w}\n {w}" for w in words for _ in range(20)), *(OBJECT + BACKGROUND + CHOICE) * 5]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(lines, trainer)
    tok.add_tokens(
        [AddedToken(p, normalized=False) for p in sorted((*PHRASES, *NAMES), key=len, reverse=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=8192,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """Images and clips to patches of 8 pixels, 2 x 2 of them (and 2 frames) to a token."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    shape = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    norm = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 4 * CELL * CELL, "longest_edge": 1024 * CELL * CELL}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **shape, **norm),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, do_sample_frames=False, **shape, **norm),
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """3.2 M parameters: six text layers of width 192, three vision layers of width 96."""

    def id_of(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": id_of("<|im_end|>"),
            "pad_token_id": id_of("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": 192,
            "num_heads": 3,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=id_of("<|im_end|>"),
        pad_token_id=id_of("<|endoftext|>"),
        do_sample=False,
        max_new_tokens=8,
    )
    return model


if __name__ == "__main__":
    made = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
    make_processor(made).save_pretrained(sys.argv[1])

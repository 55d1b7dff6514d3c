"""FLOPs of the shared visual prefix against running every prompt whole, by torch's flop counter.

    python benchmarks/prefix.py [--frames 4 --size 480 854 --expressions 1 4 16 32]

A Qwen2.5-VL-shaped model of random weights with the real token counts (364 tokens per video cell,
1,456 per frame at 480×854) and the method's own prompts: per expression one object and one
background prompt on the video and on every frame. Prefill is the model alone; the rollout is counted
beside it. Ends with status 1 if 16 expressions don't save 8 times the prefill FLOPs.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from refseg_bench.files.store_io import count

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TEXTS = (
    "the dog on the left that runs after the ball",
    "which animal is most likely to win the race?",
    "a person in a red jacket standing behind the car",
    "the object that the child is holding in her hand",
)


def cpu_attention(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(query_shape, key_shape, value_shape)


#: The counter knows the GPU's attention kernels only; this is the CPU's.
KERNEL = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention}


def counting():
    return FlopCounterMode(display=False, custom_mapping=KERNEL)


def count_rollout(session_class, flops):
    """Add the FLOPs of every rollout to the list, to tell them from the prefill."""
    stock = session_class._roll

    def counted(session, *given):
        with counting() as counter:
            rows = stock(session, *given)
        flops.append(counter.get_total_flops())
        return rows

    session_class._roll = counted
    return stock


def model_of(args):
    import transformers as t

    from refseg_bench.backbones.mllm import MLLM
    from tests.tiny_mllm import SPECIAL, tokenizer

    words = tokenizer()
    ids = {name: words.convert_tokens_to_ids(name) for name in SPECIAL}
    config = t.Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(words),
            hidden_size=args.hidden,
            intermediate_size=4 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 32,
            num_key_value_heads=max(1, args.hidden // 128),
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=64,
            out_hidden_size=args.hidden,
            num_heads=2,
            intermediate_size=128,
            fullatt_block_indexes=[1],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = t.Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    made = MLLM(path="random", dtype="float32", device="cpu", max_new_tokens=1)
    made.use(model, words)
    return made


def run(made, frames, expressions, share):
    from refseg_bench.backbones.base import RolloutSettings, VisualSettings
    from refseg_bench.backbones.mllm import Session
    from refseg_bench.methods.decaf.prompts import background_prompt, object_prompt, template

    made.share_prefix = share
    texts = [f"{TEXTS[i % len(TEXTS)]} {i}" for i in range(expressions)]
    objects = [object_prompt(template("object", "default"), text) for text in texts]
    grounds = [background_prompt(template("background", "default"), text, "dog") for text in texts]
    rollout = []
    stock = count_rollout(Session, rollout)
    began = time.process_time()
    try:
        with counting() as counter, made.open(frames, VisualSettings(), RolloutSettings()) as s:
            for prompts, answer in ((objects, True), (grounds, False)):
                for where in ("video", *range(len(frames))):
                    s.read(where, prompts, answer=answer)
    finally:
        Session._roll = stock
    return counter.get_total_flops() - sum(rollout), sum(rollout), time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=count(1), default=4)
    parser.add_argument("--size", type=count(1), nargs=2, default=(480, 854))
    parser.add_argument("--hidden", type=count(1), default=128)
    parser.add_argument("--layers", type=count(1), default=4)
    parser.add_argument("--expressions", type=count(1), nargs="+", default=(1, 4, 16, 32))
    args = parser.parse_args()
    torch.set_num_threads(1)
    from tests.tiny_mllm import clip_frames

    made = model_of(args)
    frames = clip_frames(args.frames, tuple(args.size))
    alone, alone_rollout, seconds = run(made, frames, 1, share=False)
    print(f"{'expressions':>11} {'prefill GFLOP':>14} {'rollout GFLOP':>14} {'CPU s':>7}   per expression")
    print(f"{'unshared':>11} {alone / 1e9:14.2f} {alone_rollout / 1e9:14.2f} {seconds:7.2f}")
    saved = {}
    for many in args.expressions:
        prefill, rollout, seconds = run(made, frames, many, share=True)
        saved[many] = alone / (prefill / many)
        print(
            f"{many:11d} {prefill / many / 1e9:14.2f} {rollout / many / 1e9:14.2f} {seconds / many:7.2f}"
            f"   {saved[many]:.1f}x fewer prefill FLOPs"
        )
    return 0 if saved.get(16, 8.0) >= 8 else 1


if __name__ == "__main__":
    sys.exit(main())

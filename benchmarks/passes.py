"""Passes, tokens and seconds of a language model per expression: frame by frame against frames together.

    python benchmarks/passes.py [--model shipped:tiny_mllm --device cpu --expressions 1 4 16 --batch 16]

DecAF's prompts (object, with answers, and background) on one clip of the shapes world and its sampled
frames, asked for place by place (`read`) and all places at once (`read_places`), first as this device does
it. On a CPU then again with passes shared as on an accelerator, which no run does there; seconds are the
process' own. Ends with status 1 if one expression doesn't save two thirds of the passes over prompts and
answers, or maps or answers differ.
"""

import argparse
import sys
import time
from dataclasses import replace

import numpy as np

from refseg_bench.backbones import mllm
from refseg_bench.backbones.base import RolloutSettings
from refseg_bench.config.compose import compose
from refseg_bench.files.store_io import count
from refseg_bench.methods.decaf import DecAF
from refseg_bench.methods.decaf.fusion import sample_frames
from refseg_bench.methods.decaf.prompts import background_prompt, object_prompt, template
from refseg_bench.run.build import dataset_of


def run(made, frames, visual, texts, together):
    """Everything that was read, what it took, and its seconds."""
    made.counters = type(made.counters)()
    objects = [object_prompt(template("object", "default"), text) for text in texts]
    grounds = [background_prompt(template("background", "default"), text, "square") for text in texts]
    places = ["video", *range(len(frames))]
    found = []
    clock = time.process_time if made.device == "cpu" else time.perf_counter
    began = clock()
    with made.open(frames, visual, RolloutSettings()) as session:
        for prompts, answer in ((objects, True), (grounds, False)):
            if together:
                found += session.read_places(places, prompts, answer=answer)
            else:
                found += [session.read(where, prompts, answer=answer) for where in places]
    return [reading for place in found for reading in place], made.counters, clock() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shipped:tiny_mllm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=count(1), default=16)
    parser.add_argument("--expressions", type=count(1), nargs="+", default=(1, 4, 16))
    args = parser.parse_args()
    values = compose(["method=decaf_tiny", "dataset=shapes"])[0].values
    data = dataset_of(values)
    clip = data.clips()[0]
    frames = clip.load(sample_frames(len(clip), values["method"]["n_frames"]))
    made = mllm.MLLM(args.model, dtype=args.dtype, device=args.device, batch_size=args.batch)
    method = DecAF(made, mask="attention", video_tokens=values["method"]["video_tokens"])
    known = [expression.text for other in data.clips() for expression in data.expressions(other)]
    run(made, frames, method.visual_settings(), known[:1], True)  # warm
    good = measured(made, frames, method.visual_settings(), known, args.expressions)
    if made.device == "cpu":
        mllm.shared_pass = lambda device, size: size
        print("as on an accelerator:")
        good &= measured(made, frames, method.visual_settings(), known, args.expressions)
    return 0 if good else 1


def measured(made, frames, visual, known, counts):
    """Print the rows of a table; whether they are as they should be."""
    print(
        f"{'expressions':>11} {'places':>9} {'passes':>8} {'prefixes':>9} {'prompt tokens':>14}"
        f" {'answer tokens':>14} {'seconds':>8}   each"
    )
    good = True
    for many in counts:
        texts = list(dict.fromkeys(known))[:many]
        rows = []
        for together in (False, True):
            found, did, seconds = run(made, frames, visual, texts, together)
            rows.append((found, replace(did), seconds))
            print(
                f"{many:11d} {'together' if together else 'one by one':>9} {did.passes / many:8.1f}"
                f" {did.visual_prefixes / many:9.1f} {did.prompt_tokens / many:14.1f}"
                f" {did.generated_tokens / many:14.1f} {seconds / many:8.3f}"
            )
        (alone, one, slow), (joint, two, fast) = rows
        passes = [did.passes - did.visual_prefixes for did in (one, two)]
        print(f"{'':11} {passes[0] / passes[1]:.1f} times fewer passes, {slow / fast:.2f} times less time")
        good &= all(a.answer == b.answer for a, b in zip(alone, joint, strict=True))
        apart = max(
            float(np.abs(a.map_Thw - b.map_Thw).max() / a.map_Thw.max())
            for a, b in zip(alone, joint, strict=True)
        )
        good &= apart < (1e-4 if made.dtype == "float32" else 0.1)
        good &= many > 1 or passes[0] >= 3 * passes[1]
    return good


if __name__ == "__main__":
    sys.exit(main())

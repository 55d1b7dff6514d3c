"""What an expression costs each method from frames to masks, at 1, 4 and 16 expressions of a clip.

    python benchmarks/methods.py                          # the models that ship, on a CPU
    python benchmarks/methods.py --methods decaf --options backbone=qwen2_5_vl_7b segmenter=sam2_hf

Passes and tokens of the model that is read (texts, of a diffusion transformer), passes of image encoders,
operations (kernels) that torch starts, the bytes that they write, and those that go between host and device
(on a CPU there is no way to go). All are counted, so they say the same on a busy machine; on the CPU passes
are shared as on an accelerator, which no run does there. Ends with status 1 if the most expressions don't
cost each fewer operations than the fewest.
"""

import argparse
import sys
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refseg_bench.backbones import dit, mllm
from refseg_bench.config.compose import compose
from refseg_bench.files.store_io import count
from refseg_bench.run.build import build_method, dataset_of
from refseg_bench.run.loop import predict_clip
from refseg_bench.types import Expression


class Count(TorchDispatchMode):
    """Operations, bytes written, and bytes that changed the device."""

    operations = written = moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            given = {t.device for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
            size = sum(t.nbytes for t in tensors)
            self.operations += 1
            self.written += size
            self.moved += size if given and given | {t.device for t in tensors} != given else 0
        return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", default=["decaf_tiny", "loc_head_tiny", "tam_tiny", "refam_tiny"]
    )
    parser.add_argument("--options", nargs="*", default=[], help="more of `refseg run`")
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--expressions", type=count(1), nargs="+", default=(1, 4, 16))
    args = parser.parse_args()
    torch.set_num_threads(1)
    mllm.shared_pass = dit.shared_pass = lambda device, size: size
    columns = ("passes", "tokens", "encoder", "operations", "MB written", "MB moved")
    print(f"{'per expression':16} {'of':>3}", *(f"{name:>11}" for name in columns))
    good = True
    for name in args.methods:
        values = compose([f"method={name}", f"dataset={args.dataset}", *args.options])[0].values
        data = dataset_of(values)
        clip = min(data.clips(), key=len)
        texts = dict.fromkeys(e.text for other in data.clips() for e in data.expressions(other))
        method, each = build_method(values, data), []
        for many in (0, *args.expressions):  # the first loads the models
            for part in (method, method.backbone):
                object.__setattr__(part, "cache_root", None)  # nothing is known from before
            vars(method).pop("cache", None)
            asked = [Expression(str(i), text) for i, text in enumerate(list(texts)[: many or 1])]
            before = counted(method)
            with Count() if many else nullcontext() as seen:
                failures = [p.failure for p, _ in predict_clip(method, clip, asked) if p.failure]
            if failures:
                sys.exit(f"{name}: {failures[0].message}")
            if seen is None:
                continue
            did = [after - was for after, was in zip(counted(method), before, strict=True)]
            row = [n / len(asked) for n in (*did, seen.operations, seen.written / 1e6, seen.moved / 1e6)]
            each.append(row)
            print(f"{name:16} {len(asked):3d}", *(f"{n:11.1f}" for n in row), flush=True)
        good &= len(each) == 1 or each[-1][3] < each[0][3]
    return 0 if good else 1


def counted(method):
    """Passes of the model that is read and tokens through it, passes of the segmenter's encoder."""
    did, segmenter = method.backbone.counters, getattr(method, "segmenter", None)
    encoder = segmenter.counted().frame_encodings if segmenter is not None else 0
    if hasattr(did, "dit_forwards"):
        return did.dit_forwards, did.text_encodings, encoder + did.vae_encodings
    return did.passes, did.prompt_tokens + did.generated_tokens, encoder


if __name__ == "__main__":
    sys.exit(main())

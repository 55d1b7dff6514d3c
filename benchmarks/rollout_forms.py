"""Both forms of the rollout on one device: all prompts together, and one prompt after the other.

    python benchmarks/rollout_forms.py                      # shapes of Qwen2.5-VL-7B, a video of 3,200 tokens
    python benchmarks/rollout_forms.py --tokens 7000 --prompts 1 16

Prints time, kernels (operations on a CPU) and waits for the device, each per layer, and how far the rows
are from the CPU's form in the same type. Ends with status 1 if that is more than 1e-5 of the peak.
"""

import argparse
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from refseg_bench.backbones.rollout import LayerQK, shared_rollout
from refseg_bench.backbones.weights import choose_device
from refseg_bench.files.store_io import count


def streamed_rollout(layers, visual_N, mode="v_max", residual=0.5, dtype=None, block_bytes=None):
    """The row of `dense_rollout`, without any N×N matrix: `shared_rollout` of one prompt.

    The last token, on which the prompt ends, must not be a visual one.
    """
    at = visual_N.shape[0] - 1
    return shared_rollout(
        [[layer[:, :at] for layer in layers]],
        [[layer[:, at:][None] for layer in layers]],
        [[1]],
        visual_N[:at],
        mode,
        residual,
        dtype,
        block_bytes,
    )[0, 0]


def form(layers, shape, tokens, prompts, dtype, device, *, together):
    """A rollout of drawn queries and keys as a call without arguments, and the CPU's form of it.

    Args:
        layers: how many.
        shape: (query heads, key heads, channels of a head).
        tokens: of the prefix, and most of a prompt.
        prompts: how many.
        dtype: of queries and keys.
        device: where the call runs.
        together: one pass of all prompts, padded, or a pass of each, as on a CPU.
    """
    heads, groups, depth = shape
    generator = torch.Generator().manual_seed(0)

    def drawn(*place):
        q, k = (torch.randn(*place[:-1], n, place[-1], depth, generator=generator) for n in (heads, groups))
        return LayerQK(q.to(dtype), k.to(dtype), depth**-0.5)

    prefix = [drawn(tokens[0]) for _ in range(layers)]
    tails = [drawn(prompts, tokens[1]) for _ in range(layers)]
    lengths = [tokens[1] - index % (tokens[1] // 3) for index in range(prompts)]
    visual = torch.ones(tokens[0], dtype=torch.bool)

    def on(device, together):
        first, own = (
            [LayerQK(one.q_HND.to(device), one.k_GND.to(device), one.scale) for one in part]
            for part in (prefix, tails)
        )
        if together:
            return lambda: shared_rollout([first], [own], [lengths], visual)[0]
        parts = [[one[k : k + 1, :, :size] for one in own] for k, size in enumerate(lengths)]
        return lambda: shared_rollout([first], parts, [[size] for size in lengths], visual)[0]

    return on(device, together), on(torch.device("cpu"), False)


def launches(call, device):
    """Kernels that a call starts (operations on a CPU), and how often it waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
        events = [(str(event.device_type), event.name) for event in seen.events()]
        kernels = sum(kind.endswith("CUDA") for kind, _ in events)
        return kernels, sum("StreamSynchronize" in name for _, name in events)
    names = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Count():
        call()
    return len(names), sum("_local_scalar_dense" in name or "nonzero" in name for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=count(1), default=3200)
    parser.add_argument("--prompts", type=count(1), nargs="+", default=(1, 4, 16))
    parser.add_argument(
        "--shape", type=count(1), nargs=3, default=(28, 4, 128), help="heads, key heads, channels"
    )
    parser.add_argument("--layers", type=count(1), default=2)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, worst = choose_device(args.device), 0.0
    for prompts in args.prompts:
        for name, together in (("one after the other", False), ("all together", True)):
            call, alone = form(
                args.layers, args.shape, (args.tokens, 60), prompts, torch.bfloat16, device, together=together
            )
            call()
            began = time.perf_counter()
            row = call().cpu()
            spent = 1e3 * (time.perf_counter() - began) / args.layers
            kernels, waits = (count / args.layers for count in launches(call, device))
            apart = float((row - alone()).abs().max() / row.abs().max())
            worst = max(worst, apart)
            print(
                f"{prompts:3d} prompts, {name:20} {spent:9.2f} ms {kernels:7.1f} kernels {waits:5.1f} waits"
                f"   from the CPU's form {apart:.1e}",
                flush=True,
            )
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())

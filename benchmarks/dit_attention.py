"""What reading attention costs: streamed, against keeping every layer's attention matrix.

``python benchmarks/dit_attention.py [--grid 32] [--blocks 6] [--tokens 19]``

One random transformer of diffusers' FLUX class, one forward pass per variant, each in a process of
its own so that its peak memory is its own. ``plain`` reads nothing; ``streamed`` is the package's
recorder; ``dense`` keeps softmax(q·k) of all layers, as a hook that stores attention does. The
ratios at the end are what counts; absolute numbers are this machine's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from refseg_bench.files.store_io import count


def measure(variant: str, grid: int, blocks: int, tokens: int, heads: int) -> dict[str, float]:
    """Seconds and peak MB beyond the model of one forward pass."""
    import torch
    from diffusers import FluxTransformer2DModel

    from refseg_bench.backbones.attention_maps import MapObserver, MapOptions, SoftmaxTokens, TokenLayout
    from refseg_bench.backbones.dit.families import ForwardInputs, family
    from refseg_bench.backbones.sdpa_tap import SdpaTap

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=blocks // 2, num_single_layers=blocks - blocks // 2,
        attention_head_dim=64, num_attention_heads=heads, joint_attention_dim=64, pooled_projection_dim=16,
        axes_dims_rope=(8, 28, 28),
    ).eval()  # fmt: skip
    adapter, image = family("flux"), grid * grid
    inputs = ForwardInputs(
        torch.randn(1, 4, 2 * grid, 2 * grid), torch.randn(1, tokens, 64), torch.randn(1, 16), 0.5, None, 0
    )
    kept: list[torch.Tensor] = []
    recorder = MapObserver(
        TokenLayout(slice(tokens, tokens + image), (), (tuple(range(tokens)),)),
        MapOptions(),
        [{"all": SoftmaxTokens(tuple(range(tokens)))}],
    )

    def dense(call):
        kept.append((call.query.float() @ call.key.float().mT * call.scale).softmax(-1))

    observe = {"plain": lambda call: None, "streamed": recorder, "dense": dense}[variant]
    tap = SdpaTap(adapter.schedule(model), range(blocks), observe, early_exit=False)
    with torch.inference_mode():
        small = ForwardInputs(torch.randn(1, 4, 4, 4), inputs.text, inputs.pooled, 0.5, None, 0)
        adapter.forward(model, small)  # libraries load and buffers grow outside the measurement
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        tap.run(lambda: adapter.forward(model, inputs))
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "mb": peak / 1024}


def main() -> None:
    """Measure all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=count(1), default=32, help="image tokens per side (FLUX at 1024²: 64)")
    parser.add_argument("--blocks", type=count(1), default=6)
    parser.add_argument("--tokens", type=count(1), default=19)
    parser.add_argument("--heads", type=count(1), default=8)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = (args.grid, args.blocks, args.tokens, args.heads)
    if args.variant:
        print(json.dumps(measure(args.variant, *shape)))
        return
    found = {}
    for variant in ("plain", "streamed", "dense"):
        command = [sys.executable, __file__, "--variant", variant]
        for name in ("grid", "blocks", "tokens", "heads"):
            command += [f"--{name}", str(getattr(args, name))]
        found[variant] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
    shape_said = f"{args.grid}×{args.grid} image tokens, {args.tokens} text tokens"
    print(f"{shape_said}, {args.blocks} blocks, {args.heads} heads")
    print(f"{'variant':<10}{'seconds':>9}{'peak MB':>9}{'extra s':>9}{'extra MB':>10}")
    base = found["plain"]
    for variant, row in found.items():
        extra = row["seconds"] - base["seconds"], row["mb"] - base["mb"]
        print(f"{variant:<10}{row['seconds']:9.2f}{row['mb']:9.1f}{extra[0]:9.2f}{extra[1]:10.1f}")
    extra = {
        v: (found[v]["mb"] - base["mb"], found[v]["seconds"] - base["seconds"]) for v in ("streamed", "dense")
    }
    print(
        f"extra memory, dense / streamed: {extra['dense'][0] / max(extra['streamed'][0], 0.1):.0f}×; "
        f"time, dense / streamed pass: {found['dense']['seconds'] / found['streamed']['seconds']:.1f}×"
    )


if __name__ == "__main__":
    main()

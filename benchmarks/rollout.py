"""Memory and time of the streamed rollout against the dense one, in one run on the CPU.

    python benchmarks/rollout.py [--tokens 3200 --heads 28 --groups 4 --dim 128 --layers 2]

Extra memory is the rise of the process's peak resident size over the level before the call; each
way runs in a process of its own. Ends with status 1 if the streamed way is not within 1/20 of the
memory and 1/3 of the time, or if the rows differ by more than 1e-5 of the largest entry.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from refseg_bench.files.store_io import count


def resident():
    """Resident bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(way, args, out):
    import numpy as np
    import torch
    from rollout_forms import streamed_rollout

    from refseg_bench.backbones.rollout import LayerQK, dense_rollout

    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    layers = [
        LayerQK(
            torch.randn(args.heads, args.tokens, args.dim, generator=generator).bfloat16(),
            torch.randn(args.groups, args.tokens, args.dim, generator=generator).bfloat16(),
            args.dim**-0.5,
        )
        for _ in range(args.layers)
    ]
    visual = torch.zeros(args.tokens, dtype=torch.bool)
    visual[15 : args.tokens - 120] = True
    function = {"dense": dense_rollout, "streamed": streamed_rollout}[way]
    small = [LayerQK(layer.q_HND[:, :64], layer.k_GND[:, :64], layer.scale) for layer in layers]
    function(small, visual[:64])  # the libraries' own buffers are not the method's memory
    before = resident()
    peak, done = before, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, started_cpu = time.perf_counter(), time.process_time()
    row = function(layers, visual)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    done.set()
    watcher.join()
    np.save(out, row.numpy())
    print(
        json.dumps({"way": way, "seconds": seconds, "cpu_seconds": cpu, "extra_mb": (peak - before) / 2**20})
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (
        ("tokens", 3200),
        ("heads", 28),
        ("groups", 4),
        ("dim", 128),
        ("layers", 2),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=count(1), default=value)
    parser.add_argument("--way", choices=("dense", "streamed"))
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.way:
        measure(args.way, args, args.out)
        return 0
    import numpy as np

    found, rows = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("dense", "streamed"):
            out = str(Path(folder) / f"{way}.npy")
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--way", way, "--out", out],
                check=True,
                capture_output=True,
                text=True,
            )
            found[way] = json.loads(done.stdout.splitlines()[-1])
            rows[way] = np.load(out)
    memory = found["streamed"]["extra_mb"] / found["dense"]["extra_mb"]
    wall = found["streamed"]["seconds"] / found["dense"]["seconds"]
    error = float(np.abs(rows["dense"] - rows["streamed"]).max() / rows["dense"].max())
    for way, row in found.items():
        print(
            f"{way:9s} {row['seconds']:7.2f} s wall  {row['cpu_seconds']:7.2f} s CPU  "
            f"{row['extra_mb']:8.1f} MB extra"
        )
    print(
        f"streamed/dense: memory 1/{1 / memory:.1f}  time 1/{1 / wall:.2f}  "
        f"largest difference {error:.1e} of the peak"
    )
    return 0 if memory <= 1 / 20 and wall <= 1 / 3 and error <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())

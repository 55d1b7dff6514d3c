"""Peak memory of predicting, scoring and showing one long clip with many expressions.

    python benchmarks/long_clip.py                                          # 360 and 3,600 frames of 720p
    python benchmarks/long_clip.py --frames 36 360 --size 96 160 --expressions 4
    python benchmarks/long_clip.py --keep DIR method=decaf_tiny             # another method, files kept

Writes Long-RVOS sets of one clip each (squares that move over noise; pictures repeat after 60 frames) and
runs every stage in a process of its own, whose peak resident memory the system tells. Masks take what
is printed beside it: the sizes of the stored predictions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from refseg_bench.files.store_io import count

#: Pictures that differ; the others are links to them.
PERIOD = 60
OBJECTS = 4


def write_set(root: Path, frames: int, size: tuple[int, int], expressions: int) -> None:
    """One clip in Long-RVOS' layout."""
    height, width = size
    clip, masks = root / "valid/JPEGImages/long", root / "valid/Annotations/long"
    side, rng = height // 6, np.random.default_rng(0)
    ground_HWC = rng.integers(60, 120, (height // 8, width // 8, 3), np.uint8)
    ground_HWC = np.asarray(Image.fromarray(ground_HWC).resize((width, height)))
    names = [f"{t:05d}" for t in range(frames)]
    for folder in (clip, *(masks / str(k) for k in range(OBJECTS))):
        folder.mkdir(parents=True)
    for t, name in enumerate(names):
        if t >= PERIOD:
            os.link(clip / f"{names[t % PERIOD]}.jpg", clip / f"{name}.jpg")
        frame_HWC = ground_HWC.copy()
        for k in range(OBJECTS):
            top, left = (2 * k + 1) * height // 9, (width - side) * (t % PERIOD) // PERIOD
            png = masks / str(k) / f"{name}.png"
            if t >= PERIOD:
                os.link(masks / str(k) / f"{names[t % PERIOD]}.png", png)
                continue
            mask_HW = np.zeros(size, np.uint8)
            mask_HW[top : top + side, left : left + side] = 255
            frame_HWC[mask_HW > 0] = (250, 60 * k, 30)
            Image.fromarray(mask_HW).save(png)
        if t < PERIOD:
            Image.fromarray(frame_HWC).save(clip / f"{name}.jpg")
    words = {
        str(e): {"exp": f"the square in row {e % OBJECTS}", "obj_id": e % OBJECTS, "type": "static"}
        for e in range(expressions)
    }
    meta = {"videos": {"long": {"frames": names, "expressions": words}}}
    (root / "valid/meta_expressions.json").write_text(json.dumps(meta), encoding="utf-8")


def peak(*command: str) -> tuple[float, float]:
    """Megabytes of resident memory at the most, and seconds, of a command and those it starts."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_maxrss / (1 if sys.platform == "darwin" else 1024), time.perf_counter() - began


def main() -> None:
    """Print a line per length and stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=count(1), nargs="+", default=[360, 3600])
    parser.add_argument("--size", type=count(1), nargs=2, default=[720, 1280], metavar=("H", "W"))
    parser.add_argument("--expressions", type=count(1), default=20)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here and leave everything")
    parser.add_argument("--limit", type=float, metavar="MB", help="exit with 1 above it")
    parser.add_argument("override", nargs="*", help="of `refseg run`")
    args = parser.parse_args()
    work = args.keep or Path(tempfile.mkdtemp(prefix="long-clip-"))
    chosen = args.override or ["method=centre_point", "segmenter=tiny_sam2"]
    print(f"{args.size[0]} x {args.size[1]}, {args.expressions} expressions, {' '.join(chosen)}")
    worst = 0.0
    try:
        for frames in args.frames:
            data, runs = work / f"set{frames}", work / f"runs{frames}"
            if not data.exists():
                write_set(data, frames, (args.size[0], args.size[1]), args.expressions)
            where = ["dataset=long_rvos", f"dataset.root={data}", f"paths.runs={runs}"]
            stages = {
                "predict": ["run", "--no-score", *chosen, *where, f"paths.cache={work / 'cache'}"],
                "score": ["score", "-j", "1", str(runs)],
                "pages": ["report", str(runs), "--html"],
            }
            for stage, words in stages.items():
                most, seconds = peak("-m", "refseg_bench", *words)
                worst = max(worst, most)
                print(f"{frames:>6} frames  {stage:<8} {most:7.0f} MB {seconds:7.1f} s", flush=True)
            kept = sum(path.stat().st_size for path in runs.glob("*/predictions/*.jsonl"))
            print(f"{frames:>6} frames  masks    {kept / 1e6:7.1f} MB", flush=True)
    finally:
        if args.keep is None:
            shutil.rmtree(work)
    if args.limit is not None and worst > args.limit:
        sys.exit(f"{worst:.0f} MB are more than {args.limit:.0f}")


if __name__ == "__main__":
    main()

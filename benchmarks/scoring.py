"""How much CPU scoring takes: this harness, vos-benchmark and TrackEval on the same made-up case.

    python benchmarks/scoring.py                 # 30 clips x 60 frames x 854x480, two lumpy objects
    python benchmarks/scoring.py --quick         # a tenth of it

Every tool runs as a process of its own, start-up included, with one worker and one thread; CPU
seconds are what to trust, wall seconds depend on who else uses the machine. The harness is the
command `refseg score`, on id maps in PNG files and on the same masks as run lengths (a MeViS set and a
JSON file). The exit code is 1 if results differ or a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_bench.files.store_io import count

ROOT = Path(__file__).resolve().parents[1]
PALETTE = [v for i in range(256) for v in ((i * 67) % 256, (i * 129) % 256, (i * 31) % 256)]
#: Times less CPU than vos-benchmark that each way to count must reach.
TARGETS = {"refseg, no compiled code": 1, "refseg, compiled": 60, "refseg, compiled, run lengths": 40}

VOSB = """
import sys
from vos_benchmark.benchmark import benchmark
jf, j, f, _ = benchmark([sys.argv[1]], [sys.argv[2]], num_processes=1, verbose=False)
print(repr((float(j[0]), float(f[0]))))
"""
TRACKEVAL = """
import contextlib, io, sys
from trackeval import Evaluator
from trackeval.datasets import DAVIS
from trackeval.metrics import JAndF
quiet = {k: False for k in ("PRINT_RESULTS", "PRINT_CONFIG", "TIME_PROGRESS", "PLOT_CURVES", 
                            "OUTPUT_SUMMARY", "OUTPUT_DETAILED", "OUTPUT_EMPTY_CLASSES")}
data = {"GT_FOLDER": sys.argv[1], "TRACKERS_FOLDER": sys.argv[2], "TRACKER_SUB_FOLDER": "",
        "PRINT_CONFIG": False, "TRACKERS_TO_EVAL": ["."]}
with contextlib.redirect_stdout(io.StringIO()):
    found, _ = Evaluator(quiet).evaluate([DAVIS(data)], [JAndF()])
one = found["DAVIS"]["."]["COMBINED_SEQ"]["general"]["JAndF"]
print(repr((100 * float(one["J-Mean"]), 100 * float(one["F-Mean"]))))
"""


@dataclass(frozen=True)
class Measured:
    """What one tool cost and found."""

    tool: str
    cpu: float
    wall: float
    peak_mib: float
    j: float
    f: float


def lumpy(size, centre, radius, waves, shift=(0.0, 0.0), swell=1.0):
    """A disk whose outline is a sum of sines, as a boolean mask."""
    middle = np.add(centre, shift)
    low = np.clip((middle - 1.6 * radius).astype(int), 0, size)
    high = np.clip((middle + 1.6 * radius).astype(int) + 1, 0, size)
    y, x = np.mgrid[low[0] : high[0], low[1] : high[1]].astype(np.float32)
    dy, dx = y - middle[0], x - middle[1]
    turns = np.linspace(-np.pi, np.pi, 1024)
    outline = 1 + sum(a * np.sin(k * turns + p) for k, (a, p) in enumerate(waves, start=2))
    edge = np.interp(np.arctan2(dy, dx), turns, outline)
    mask = np.zeros(size, bool)
    mask[low[0] : high[0], low[1] : high[1]] = dx * dx + dy * dy < (radius * swell * edge) ** 2
    return mask


def make_case(folder, sequences, frames, size):
    """Truth and predictions as id maps; about 6.6 % of the frame per object, J about 0.88."""
    height, width = size
    radius = math.sqrt(0.066 * height * width / math.pi)
    coded = {"gt": {}, "pred": {}}
    for s in range(sequences):
        rng = np.random.default_rng(s)
        starts = np.array([[0.5 * height, 0.27 * width], [0.5 * height, 0.73 * width]])
        speeds = rng.uniform(-0.6, 0.6, (2, 2))
        waves = [np.stack([rng.uniform(0.01, 0.05, 9), rng.uniform(0, 6.28, 9)], 1) for _ in range(2)]
        for t in range(frames):
            maps = {"gt": np.zeros(size, np.uint8), "pred": np.zeros(size, np.uint8)}
            for k in range(2):
                centre = starts[k] + speeds[k] * t
                maps["gt"][lumpy(size, centre, radius, waves[k])] = k + 1
                shaken = waves[k] + np.stack([rng.normal(0, 0.02, 9), np.zeros(9)], 1)
                shift = rng.normal(0, 5, 2)
                maps["pred"][lumpy(size, centre, radius, shaken, shift, rng.normal(1, 0.025))] = k + 1
            for name, labels in maps.items():
                place = folder / name / f"clip{s:02d}"
                place.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(labels)
                image.putpalette(PALETTE)
                image.save(place / f"{t:05d}.png")
                for k in range(2):
                    coded[name].setdefault((place.name, k), []).append(run_lengths(labels == k + 1))
    write_run_lengths(folder, size, coded["gt"], coded["pred"])


def run_lengths(mask):
    found = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def write_run_lengths(folder, size, truth, answer):
    """The same masks as a MeViS set with one expression per object, and as a JSON file of answers."""
    split = folder / "mevis" / "valid_u"
    split.mkdir(parents=True)
    Image.new("RGB", size[::-1]).save(split / "frame.jpg")
    videos = {}
    for (video, k), masks in truth.items():
        names = [f"{t:05d}" for t in range(len(masks))]
        if k == 0:
            (split / "JPEGImages" / video).mkdir(parents=True)
            for name in names:
                os.link(split / "frame.jpg", split / "JPEGImages" / video / f"{name}.jpg")
            videos[video] = {"vid_id": len(videos), "frames": names, "expressions": {}}
        meant = {"exp": f"object {k}", "obj_id": [k + 1], "anno_id": [f"{video}/{k}"]}
        videos[video]["expressions"][str(k)] = meant
    (split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (split / "mask_dict.json").write_text(json.dumps({f"{v}/{k}": m for (v, k), m in truth.items()}))
    records = [{"video_id": v, "exp_id": str(k), "masks": m} for (v, k), m in answer.items()]
    (folder / "pred.json").write_text(json.dumps(records))


def run(tool, command, read, **env):
    """Run one tool to its end and say what it cost."""
    # Byte code is compiled by the rehearsal, as it is after any installation's first use.
    quiet = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
    )
    assert child.stdout is not None
    said = child.stdout.read().decode()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{tool} failed with exit code {child.returncode}")
    wall = time.perf_counter() - start
    return Measured(tool, used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024, *read(said))


def ours(tool, folder, protocol, scale, coded=False, **env):
    out = folder / "out.json"
    answer, dataset, truth = ("pred.json", "mevis", "mevis") if coded else ("pred", "id_maps", "gt")
    command = [
        sys.executable, "-m", "refseg_bench", "score", "--predictions", folder / answer, "--dataset", dataset,
        "--root", folder / truth, "--protocol", protocol, "--json", out, "-j", "1",
    ]  # fmt: skip

    def read(said):
        metrics = json.loads(Path(out).read_text())[protocol]["metrics"]
        return metrics["J"] * scale, metrics["F"] * scale

    return run(tool, list(map(str, command)), read, **env)


def theirs(tool, code, *folders):
    return run(
        tool, [sys.executable, "-c", code, *map(str, folders)], lambda said: eval(said.split("\n")[-2])
    )


def measure(folder):
    truth, answer = folder / "gt", folder / "pred"
    plain, compiled = {"REFSEG_KERNEL": "plain"}, {"REFSEG_KERNEL": "compiled"}
    rows = [
        theirs("vos-benchmark -n 1", VOSB, truth, answer),
        ours("refseg, no compiled code", folder, "vosb", 1, **plain),
        ours("refseg, compiled", folder, "vosb", 1, **compiled),
        ours("refseg, no compiled code, run lengths", folder, "vosb", 1, coded=True, **plain),
        ours("refseg, compiled, run lengths", folder, "vosb", 1, coded=True, **compiled),
    ]
    # vos-benchmark leaves a results.csv among the predictions.
    (answer / "results.csv").unlink(missing_ok=True)
    return [
        *rows,
        theirs("TrackEval, 1 process", TRACKEVAL, truth, answer),
        ours("refseg, no compiled code (trackeval)", folder, "trackeval", 100, **plain),
        ours("refseg, compiled (trackeval)", folder, "trackeval", 100, **compiled),
    ]


def report(rows, targets):
    """Print the table; True if results agree and targets are met."""
    fine = True
    vosb, trackeval = (row for row in rows if "refseg" not in row.tool)
    print(f"{'tool':<38}{'CPU s':>8}{'wall s':>8}{'MiB':>6}{'times less CPU':>16}   J        F")
    for row in rows:
        base = trackeval if "trackeval" in row.tool.lower() else vosb
        times = base.cpu / row.cpu
        same = abs(row.j - base.j) < 1e-9 and abs(row.f - base.f) < 1e-9
        target = targets.get(row.tool)
        missed = target is not None and times < target
        note = ("" if same else "  RESULTS DIFFER") + (f"  TARGET {target} MISSED" if missed else "")
        fine &= same and not missed
        print(
            f"{row.tool:<38}{row.cpu:8.2f}{row.wall:8.2f}{row.peak_mib:6.0f}{times:16.1f}"
            f"   {row.j:.4f}  {row.f:.4f}{note}"
        )
    return fine


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=count(1), default=30)
    parser.add_argument("--frames", type=count(1), default=60)
    parser.add_argument("--size", type=count(1), nargs=2, default=(480, 854), metavar=("H", "W"))
    parser.add_argument("--quick", action="store_true", help="6 clips x 30 frames: no target holds")
    args = parser.parse_args()
    if args.quick:
        args.sequences, args.frames = 6, 30
    with tempfile.TemporaryDirectory() as name:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{name}/bytecode"
        folder = Path(name) / "case"
        make_case(Path(name) / "rehearsal", 1, 4, (48, 64))
        measure(Path(name) / "rehearsal")
        make_case(folder, args.sequences, args.frames, tuple(args.size))
        print(f"{args.sequences} clips x {args.frames} frames x {args.size[1]}x{args.size[0]}, 2 objects")
        return 0 if report(measure(folder), {} if args.quick else TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())

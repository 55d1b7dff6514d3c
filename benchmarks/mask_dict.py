"""Memory and time of opening a set with a huge mask dictionary and reading one clip of it.

    python benchmarks/mask_dict.py [--megabytes 500] [--pickle] [--folder DIR]

Writes a MeViS set whose ``mask_dict`` has the given size (kept in ``--folder`` for the next
time), then opens it in fresh processes: once without an index, once with it. Prints wall and
CPU seconds and the peak resident memory of each process, the libraries included.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIZE, FRAMES, OBJECTS = (480, 854), 80, 4

READ = """
import resource, sys, time
started = time.perf_counter()
from pathlib import Path
from refseg_bench.datasets.meta_expressions import MetaExpressions
imported, busy = time.perf_counter(), time.process_time()
data = MetaExpressions(root=Path(sys.argv[1]), cache=Path(sys.argv[2]))
clips = data.clips()
source = data._source
opened, busy = time.perf_counter(), time.process_time() - busy
clip = clips[len(clips) // 2]
tracks = sum(len(data.target(clip, e).objects) for e in data.expressions(clip))
read = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{len(clips)} videos, {len(source.entries)} objects: open {opened - imported:.2f} s ({busy:.2f} CPU), "
      f"{tracks} tracks of one clip {read - opened:.2f} s, peak RSS {peak:.0f} MB")
"""


def ragged_mask(rng):
    """A blob with a rough outline: about 1 kB of run lengths, as real masks have."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(0.3, 0.7, 2) * SIZE
    angle = np.arctan2(y - centre[0], x - centre[1])
    radius = 120 + sum(rng.uniform(2, 12) * np.sin(k * angle + rng.uniform(0, 6)) for k in range(3, 40, 4))
    mask = np.hypot(y - centre[0], x - centre[1]) < radius
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def generate(root, megabytes, pickled):
    rng = np.random.default_rng(0)
    stock = [ragged_mask(rng) for _ in range(60)]
    per_object = FRAMES * (len(stock[0]) + 40)
    videos = int(megabytes * 1e6 / (per_object * OBJECTS)) + 1
    names = [f"{t:05d}" for t in range(FRAMES)]
    frame = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8).repeat(1, 0))
    split = root / "valid_u"
    split.mkdir(parents=True, exist_ok=True)
    one = split / "frame.jpg"
    frame.save(one, quality=30)
    meta = {}
    for v in range(videos):
        folder = split / "JPEGImages" / f"{v:012x}"
        folder.mkdir(parents=True)
        for name in names:
            os.link(one, folder / f"{name}.jpg")
        ids = [v * OBJECTS + o for o in range(OBJECTS)]
        meta[f"{v:012x}"] = {
            "vid_id": v,
            "frames": names,
            "expressions": {
                str(e): {"exp": "it", "obj_id": ids[: 1 + e % 3], "anno_id": ids[: 1 + e % 3]}
                for e in range(16)
            },
        }
    (split / "meta_expressions.json").write_text(json.dumps({"videos": meta}))

    def entries(anno):
        for t in range(FRAMES):
            counts = stock[(anno * 7 + t) % len(stock)]
            # A copy, because a pickle writes an object that it has seen as a reference of a few bytes.
            yield {"size": list(SIZE), "counts": bytes(bytearray(counts)) if pickled else counts.decode()}

    total = videos * OBJECTS
    if pickled:
        with (split / "mask_dict.pkl").open("wb") as out:
            pickle.dump({str(a): list(entries(a)) for a in range(total)}, out, protocol=2)
        return
    with (split / "mask_dict.json").open("w") as out:
        for anno in range(total):
            out.write(("{" if anno == 0 else ", ") + f'"{anno}": ' + json.dumps(list(entries(anno))))
        out.write("}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--pickle", action="store_true", help="mask_dict.pkl as VISA writes it")
    parser.add_argument("--generate-only", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "refseg_mask_dict")
    args = parser.parse_args()
    root = args.folder / f"{'pkl' if args.pickle else 'json'}-{args.megabytes:g}"
    if args.generate_only:
        return generate(root, args.megabytes, args.pickle)
    if not root.exists():
        # In a process of its own: a child's peak memory starts at what its parent holds.
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--generate-only"], check=True)
    file = next((root / "valid_u").glob("mask_dict.*"))
    print(f"{file}: {file.stat().st_size / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as cache:
        for label in ("without index", "with index"):
            out = subprocess.run(
                [sys.executable, "-c", READ, str(root), cache], check=True, capture_output=True, text=True
            )
            print(f"{label + ':':15}{out.stdout.strip()}")


if __name__ == "__main__":
    main()

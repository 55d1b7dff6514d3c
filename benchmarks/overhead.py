"""What the harness itself costs per sample: plan, shard, claim, append, flush; and submitting to SLURM.

    python benchmarks/overhead.py                 # 10,000 simulated samples, here
    python benchmarks/overhead.py --slurm 200     # also submits an array of 200 (held) tasks, then cancels it

The method hands out ready-made tracks, so all of the time is overhead. Two shapes of work: a video set
(few clips, many expressions) and an image set (a clip per sample, the worst case for claims).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refseg_bench.files.store_io import count

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from refseg_bench.config import schema
from refseg_bench.config.compose import Composed, Config, digest
from refseg_bench.datasets.base import Dataset
from refseg_bench.run.launch import freeze, launch
from refseg_bench.run.submissions import register, submissions
from refseg_bench.run.worker import Shard
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack

LIMIT_MS = 5.0


@dataclass
class SimulatedDataset(Dataset):
    """Clips without files.

    Attributes:
        n_clips, n_expressions, n_frames: its shape.
    """

    n_clips: int = 1000
    n_expressions: int = 10
    n_frames: int = 20
    name: str = "simulated"
    split: str = "all"

    def clips(self) -> list[Clip]:
        """Clips whose frames are never read."""
        frames = tuple(Path(f"{t:05d}.jpg") for t in range(self.n_frames))
        names = tuple(p.stem for p in frames)
        return [Clip(f"clip{c:05d}", frames, names, (480, 854)) for c in range(self.n_clips)]

    def expressions(self, clip: Clip) -> list[Expression]:
        """As many as asked for."""
        return [Expression(str(e), "the dog on the left") for e in range(self.n_expressions)]

    def target(self, clip: Clip, expression: Expression) -> None:
        """None: nothing is scored here."""


@dataclass
class ReadyMade:
    """Hands out one track per clip, already coded."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """The same track for every expression."""
        track = _track(len(clip), clip.size)
        for expression in expressions:
            yield Grounding(expression, track)


_TRACKS: dict[int, MaskTrack] = {}


def _track(length: int, size: tuple[int, int]) -> MaskTrack:
    if length not in _TRACKS:
        rows, columns = np.mgrid[: size[0], : size[1]]
        masks = []
        for t in range(length):
            # A blob with a rough outline, about the code length of a real prediction.
            edge = 120 + 12 * np.sin(rows / 7.0 + t) + 9 * np.cos(columns / 5.0)
            masks.append((rows - 240) ** 2 + (columns - 400 - t) ** 2 < edge**2)
        _TRACKS[length] = MaskTrack.from_masks(masks, size)
    return _TRACKS[length]


def point(folder: Path, clips: int, expressions: int, frames: int, **cluster: object) -> Composed:
    """A composed run of the simulation."""
    module = "benchmarks.overhead"
    schema.allow(module)
    values = {
        "dataset": {"_target_": f"{module}.SimulatedDataset", "n_clips": clips, "n_expressions": expressions,
                    "n_frames": frames},
        "method": {"_target_": f"{module}.ReadyMade"},
        "paths": {"runs": str(folder / "runs"), "cache": str(folder / "cache")},
        "cluster": cluster,
    }  # fmt: skip
    whole = schema.conform(Config, values, "config")
    for part in ("dataset", "method"):
        whole[part] = schema.complete(whole[part], part)
    return Composed(whole, "overhead", digest(whole), (), {"method": "ready-made", "dataset": "simulated"})


def here(clips: int, expressions: int, frames: int, shards: int) -> tuple[float, float]:
    """Milliseconds per sample of the work, and seconds of the command that finds nothing left."""
    with tempfile.TemporaryDirectory(prefix="refseg-overhead-") as folder:
        composed = point(Path(folder), clips, expressions, frames, shards=shards)
        began = time.perf_counter()
        store = freeze(composed)
        submission = register(store, composed.values, "debug", shards)
        done = sum(Shard(str(store.root), submission.id, i, shards)().done for i in range(shards))
        spent = time.perf_counter() - began
        assert done == clips * expressions
        began = time.perf_counter()
        launch([composed], lambda line: None)
        return 1000 * spent / done, time.perf_counter() - began


def submitting(tasks: int) -> float:
    """Seconds to submit an array, which is then cancelled."""
    with tempfile.TemporaryDirectory(prefix="refseg-overhead-") as folder:
        held = {"kind": "slurm", "shards": tasks, "allow_dirty": True, "cpus": 1, "extra": {"hold": ""}}
        composed = point(Path(folder), 1000, 10, 20, **held)
        began = time.perf_counter()
        (answer,) = launch([composed], lambda line: None, score=False)
        spent = time.perf_counter() - began
        if answer.error is not None:
            raise answer.error
        subprocess.run(["scancel", submissions(answer.store.root)[-1].jobs["work"]], check=True)
        return spent


def main() -> int:
    """Print the figures; 1 if they are over the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=count(1), default=10_000)
    parser.add_argument("--slurm", type=count(1), metavar="TASKS", help="also submit an array of this size")
    args = parser.parse_args()
    worst = 0.0
    for name, expressions, frames in (("video set", 10, 20), ("image set", 1, 1)):
        for shards in (1, 8):
            per_sample, no_op = here(args.samples // expressions, expressions, frames, shards)
            worst = max(worst, per_sample)
            print(f"{name}, {shards} shards: {per_sample:.2f} ms per sample; nothing left: {no_op:.2f} s")
    if args.slurm:
        spent = submitting(args.slurm)
        worst += 1000 * spent / args.samples
        print(f"array of {args.slurm} tasks: submitted in {spent:.2f} s")
    print(f"worst {worst:.2f} ms per sample of {args.samples}, limit {LIMIT_MS} ms")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    # Under its own name, so that frozen configs can name its classes.
    from benchmarks.overhead import main as run

    sys.exit(run())

"""What the training scripts share: seed ranges, captions of looks, logs, checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tools.shapes_world import World

#: Disjoint ranges of scene seeds. Shipped sets start at 9,000,000 (tools/make_shapes.py).
TRAIN_SEEDS = 1_000_000
SEEDS_PER_RUN = 1_000_000  # a run's scenes depend on its seed, too
WATCH_SEEDS = 7_000_000  # looked at during training: curve, choice of settings
TEST_SEEDS = 8_000_000  # looked at once, by evaluate.py


def train_seeds(seed: int) -> int:
    """The first scene seed of a training run with this seed."""
    runs = (WATCH_SEEDS - TRAIN_SEEDS) // SEEDS_PER_RUN
    if not 0 <= seed < runs:
        raise SystemExit(f"--seed is {seed}; 0 to {runs - 1} have scenes that nothing else uses.")
    return TRAIN_SEEDS + seed * SEEDS_PER_RUN


def setup(seed: int) -> None:
    """One thread (the fastest on a shared machine, and the same sums every time) and one seed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads don't survive a fork
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def rate(share: float, peak: float, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` of a training, then a cosine down to 3 % of the peak."""
    if share < warmup:
        return peak * (0.01 + 0.99 * share / warmup)
    progress = min(1.0, (share - warmup) / (1 - warmup))
    return peak * (0.03 + 0.97 * 0.5 * (1 + float(np.cos(np.pi * progress))))


def shrink(frames_THWC: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """uint8 RGB frames to float ``(T, 3, h, w)`` in [0, 1], resized as the processors do."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2).float()
    if tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    return pixels.round().clamp(0, 255) / 255


def random_world(rng: np.random.Generator, n_frames: int) -> World:
    """A world of random difficulty, as varied as the shipped clips."""
    return World(n_frames=n_frames, difficulty=float(rng.integers(2, 9)) / 10, objects=(3, 5))


def training_arguments(parser: argparse.ArgumentParser, steps: int, batch: int, lr: float) -> None:
    """The options of every training script."""
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for log and checkpoints")
    add("--out", type=Path, help="folder of the finished model, written with every check")
    add("--device", default="cpu")
    add("--steps", type=int, default=steps)
    add("--seconds", type=float, help="train for so long instead, checks included")
    add("--batch", type=int, default=batch, help="examples of a step")
    add("--lr", type=float, default=lr)
    add("--workers", type=int, default=0, help="processes that make batches ahead")
    add("--uses", type=float, default=1, help="how often a drawn clip is shown on average, turned each time")
    add("--replays", type=int, default=0, help="how often a batch may be given again while none is ready")
    add("--decay", type=float, default=0.995, help="of the average of the weights")
    add("--log-every", type=int, default=20, help="steps")
    add("--checks", type=int, default=10, help="checks on watched scenes, checkpoints and exports")
    add("--check-scenes", type=int, default=16)
    add("--seed", type=int, default=0, help="of weights and scenes, 0 to 5")


class Clock:
    """How much of a training is over: of its steps, or of its seconds where those are given.

    Args:
        watch: knows the seconds of earlier sittings.
        steps: the training's length in steps.
        seconds: the training's length in seconds of wall time, from the start of the program's work.
    """

    def __init__(self, watch: Watch, steps: int, seconds: float | None) -> None:
        self.watch, self.steps, self.seconds = watch, steps, seconds

    def share(self, step: int) -> float:
        """0 at the beginning; from 1 on the training is over."""
        return step / self.steps if self.seconds is None else self.watch.elapsed() / self.seconds


def optimiser_of(module: nn.Module, decay: float) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases) don't decay."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def update(optimiser: torch.optim.AdamW, module: nn.Module, lr: float) -> None:
    """A step with clipped gradients; one with infinite gradients changes nothing, and nobody waits to see."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.found_inf = (~norm.isfinite()).float()  # what torch's own gradient scaler tells the fused step
    optimiser.step()


def copy_of(module: nn.Module) -> nn.Module:
    """A copy that is not trained: for the average of the weights."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, step: int, decay: float) -> None:
    """Move the average of the weights towards the present ones."""
    decay = min(decay, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


class Means:
    """Means of what is logged, kept on the device until they are asked for: no step waits for them."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Tensor]] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """One step's values; NaN counts as none."""
        for name, value in values.items():
            self.kept.setdefault(name, []).append(value.detach())

    def take(self) -> dict[str, float]:
        """The means since the last time."""
        out = {k: float(torch.stack(v).float().nanmean()) for k, v in self.kept.items()}
        self.kept = {}
        return {k: v for k, v in out.items() if np.isfinite(v)}


class Watch:
    """A CSV of what training did, and checkpoints that a stopped run goes on from.

    Args:
        folder: where ``log.csv`` and ``last.pt`` live.
        columns: of the CSV.
    """

    def __init__(self, folder: Path, columns: list[str]) -> None:
        self.folder = folder
        self.columns = ["step", "wall_s", "cpu_s", *columns]
        folder.mkdir(parents=True, exist_ok=True)
        self.wall = time.time()
        self.before = (0.0, 0.0)

    def elapsed(self) -> float:
        """Seconds of wall time since the start, those of earlier sittings included."""
        return self.before[0] + time.time() - self.wall

    def log(self, step: int, **values: float) -> None:
        """Append a row and print it."""
        path = self.folder / "log.csv"
        row: dict[str, Any] = {
            "step": step,
            "wall_s": round(self.elapsed(), 1),
            "cpu_s": round(self.before[1] + time.process_time(), 1),
            **{k: round(float(v), 5) for k, v in values.items()},
        }
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)

    def save(self, step: int, **state: Any) -> None:
        """Write a checkpoint in one go: a reader sees the old or the new one."""
        clock = (self.elapsed(), self.before[1] + time.process_time())
        torch.save({"step": step, "clock": clock, **state}, self.folder / "last.pt.new")
        os.replace(self.folder / "last.pt.new", self.folder / "last.pt")

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        self.before = state["clock"]
        return state


def commit() -> str:
    """The commit of the working tree, with a mark if the code differs from it.

    A copy of the tree without its history takes the word of the environment variable ``COMMIT``.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "HEAD") if shutil.which("git") else ""
    if not head:
        return os.environ.get("COMMIT", "unknown")
    return head + ("+changes" if git("status", "--porcelain", "tools", "refseg_bench") else "")


def note_command(work: Path, start: int) -> None:
    """Add this command to the list of those that made a run; a resumed run has several."""
    work.mkdir(parents=True, exist_ok=True)
    entry = {"from_step": start, "command": " ".join(["python", *sys.argv]), "commit": commit()}
    with (work / "commands.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def provenance(work: Path, **facts: Any) -> str:
    """A JSON text for ``provenance.json`` beside the weights: what made them."""
    versions = {}
    for name in ("torch", "transformers", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)  # of the one that is imported
    with (work / "commands.jsonl").open() as file:
        commands = [json.loads(line) for line in file]
    return json.dumps({"commands": commands, "versions": versions, **facts}, indent=1) + "\n"

"""What a number was made with: commit, packages, device, kernels, seeds, shipped files. And determinism."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import resource as rlimits
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

import refseg_bench
from refseg_bench.errors import ConfigError

#: Packages whose version can move a number.
_WATCHED = (
    "numpy", "opencv-python-headless", "opencv-python", "pillow", "pycocotools", "scipy",
    "hydra-core", "omegaconf", "torch", "torchvision", "transformers", "diffusers", "sam2", "tokenizers",
    "flash-attn", "spacy", "zlib-ng", "submitit",
)  # fmt: skip


def record(seed: int) -> dict[str, Any]:
    """The environment of this process, as JSON values. Imports no model library by itself."""
    return {
        "refseg_bench": refseg_bench.__version__,
        **commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "argv": sys.argv[:1] + [os.fsdecode(a) for a in sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packages": packages(),
        "device": _device(),
        "seed": seed,
        "slurm": {k: v for k, v in os.environ.items() if k.startswith("SLURM_") and "TOKEN" not in k},
    }


#: The checkout (or copy of one, or ``site-packages``) that the package runs from.
HOME = Path(refseg_bench.__file__).resolve().parent.parent
#: In a copy of the code: the commit it was copied from.
ORIGIN = ".refseg_origin.json"


def resource(name: Literal["conf", "datasets", "results"]) -> Path:
    """The folder of one kind of shipped file: at a checkout's top level, in a wheel inside the package.

    Raises:
        ConfigError: a broken installation.
    """
    # A site-packages folder may hold an unrelated `datasets`; ours has a marker beside it.
    tops = [HOME] if (HOME / "pyproject.toml").is_file() else []
    for top in (*tops, HOME / "refseg_bench" / "_shipped"):
        if (top / name).is_dir():
            return top / name
    raise ConfigError(
        f"The shipped folder '{name}' is missing.", where=HOME, hint="Install refseg-bench again."
    )


def git(*words: str) -> str | None:
    """What git says of :data:`HOME`; ``None`` where there is no git or no checkout."""
    import subprocess

    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(HOME), *words], capture_output=True, timeout=60, check=True)
        return os.fsdecode(done.stdout)
    return None


@functools.cache  # runs of one process are made by the code it has loaded
def commit() -> dict[str, Any]:
    """Commit of the checkout the package runs from (or was copied from), and whether it was changed."""
    with suppress(OSError, json.JSONDecodeError):
        return {**json.loads((HOME / ORIGIN).read_text()), "snapshot": str(HOME)}
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != HOME:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    diff = git("diff", "HEAD") or ""
    untracked = git("ls-files", "--others", "--exclude-standard", "refseg_bench", "conf") or ""
    dirty = bool(diff or untracked)
    return {
        "commit": (git("rev-parse", "HEAD") or "").strip() or None,
        "dirty": dirty,
        "diff_sha256": hashlib.sha256(os.fsencode(diff + untracked)).hexdigest() if dirty else None,
    }


@functools.cache
def packages() -> dict[str, str]:
    """Versions of the packages that can move a number."""
    from importlib import metadata

    found: dict[str, str] = {}
    for name in _WATCHED:
        with suppress(metadata.PackageNotFoundError):
            # Not by metadata.version, which parses every package's whole description.
            told = re.search("(?m)^Version: *(.+)", metadata.distribution(name).read_text("METADATA") or "")
            found[name] = told[1] if told else metadata.version(name)
    return found


def _device() -> dict[str, Any]:
    """Processor, and the accelerator where torch is already loaded."""
    info: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": cores()}
    torch = sys.modules.get("torch")
    if torch is not None:
        info["torch_threads"] = torch.get_num_threads()
        info["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
        if torch.cuda.is_available():
            info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            info["tf32_matmul"] = torch.backends.cuda.matmul.allow_tf32
            info["tf32_cudnn"] = torch.backends.cudnn.allow_tf32
            info["sdp_kernels"] = {
                "flash": torch.backends.cuda.flash_sdp_enabled(),
                "mem_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
                "math": torch.backends.cuda.math_sdp_enabled(),
            }
    return info


def cores() -> int:
    """Cores this process may use: SLURM's grant within the affinity mask."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(int(granted), mask)) if granted.isdigit() and int(granted) > 0 else mask


def gpus() -> int:
    """Accelerators this process holds, as far as torch (where loaded) or its environment says."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.device_count())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return len([d for d in visible.split(",") if d.strip() not in ("", "-1", "NoDevFiles")])


#: The seed of the run this process works on.
_run_seed = 0


def seed_everything(seed: int, scope: str) -> None:
    """Seed Python, numpy and (if loaded) torch from the run's seed and a name, and fix torch's threads.

    The scope (a clip's id) makes a draw independent of what ran before it, and so of the shards. Sums, and
    functions that are computed in vectors, differ in the last digits with the number of threads, which
    would else be that of the machine or of the other shards on it.
    """
    import random

    global _run_seed
    _run_seed = seed
    drawn = hashlib.sha256(f"{seed}:{scope}".encode("utf-8", "surrogatepass"))
    mixed = int.from_bytes(drawn.digest()[:4], "little")
    random.seed(mixed)
    np.random.seed(mixed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(mixed)
        if torch.get_num_threads() != (count := threads()):
            torch.set_num_threads(count)


def run_seed() -> int:
    """The seed of the run this process works on, for draws that no generator of this process makes."""
    return _run_seed


def threads() -> int:
    """Threads of torch on the CPU: 1, or what ``REFSEG_THREADS`` says.

    Raises:
        ConfigError: it says no number.
    """
    said = os.environ.get("REFSEG_THREADS") or "1"
    if not said.isdecimal() or int(said) < 1:
        raise ConfigError(f"'{said}' is no number of threads.", where="REFSEG_THREADS", allowed=["1, 2, 3 …"])
    return int(said)


def opencv_seed(seed: int | None = None) -> None:
    """Seed OpenCV's generator, whose state every earlier call of this process has moved.

    To be called right before each call that draws (k-means, GrabCut), so that its result depends on
    nothing that ran before. By default the seed is that of the run this process works on.
    """
    import cv2

    cv2.setRNGSeed((_run_seed if seed is None else seed) % (2**31 - 1))


#: Peak memory (MiB) of each stage of the run this process works on.
stage_peaks: dict[str, float] = {}
#: The peak of those stages that ended since :meth:`PeakMemory.start`, or since the running stage began.
_ended = 0.0


class PeakMemory:
    """Peak memory since :meth:`start`: of the GPU where torch uses one, else of the process (MiB)."""

    def start(self) -> None:
        """Begin a new measurement."""
        global _ended
        _ended = 0.0
        _forget_peak()

    def read(self) -> float:
        """The peak so far."""
        return max(_ended, _peak())


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Within the block, measure the peak memory of a stage; stages may lie in each other."""
    global _ended
    before, _ended = max(_ended, _peak()), 0.0
    _forget_peak()
    try:
        yield
    finally:
        peak = max(_ended, _peak())
        stage_peaks[name] = max(peak, stage_peaks.get(name, 0.0))
        _ended = max(before, peak)
        _forget_peak()


def _forget_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: "5" resets the high-water mark of this process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks = map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))
        return float(max(peaks)) / 2**20
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return rlimits.getrusage(rlimits.RUSAGE_SELF).ru_maxrss / 1024

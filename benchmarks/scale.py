"""What the harness costs at scale: 35,000 expressions a run, 100 runs, 64 workers; timed and counted.

    python benchmarks/scale.py                       # minutes, and 3 GB below TMPDIR
    python benchmarks/scale.py --samples 2000 --runs 10 --workers 8

The method hands out ready-made tracks, so all of the time is overhead. Two shapes: an image set (a clip per
sample, the worst case for claims) and a video set (10 expressions and 20 frames a clip). Workers are short
processes of a real run folder, as many at a time as there are cores; the other runs are copies of the first
one, sealed anew. Metadata operations are the system calls that ask a file system's server (NFS, Lustre) for
more than bytes of an open file, counted with strace where it is installed. Goals hold for CPU time, which
other work on the machine doesn't stretch; the clock stands beside it. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.overhead import ReadyMade, SimulatedDataset
from refseg_bench import env
from refseg_bench.config import schema
from refseg_bench.config.compose import Composed, Config, digest
from refseg_bench.files.store_io import checksum, count
from refseg_bench.run import loop
from refseg_bench.run.launch import freeze, freeze_for_workers, launch
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import submissions
from refseg_bench.run.worker import Shard
from refseg_bench.scoring.runs import score_store
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack, Target

MODULE = "benchmarks.scale"
SIZE = (24, 32)
#: System calls that a network file system can't answer from an open file.
METADATA = re.compile(
    r"\b(open|openat|stat|lstat|newfstatat|statx|access|faccessat2?|readlink|readlinkat|getdents64|link|linkat"
    r"|rename|renameat2?|unlink|unlinkat|mkdir|mkdirat|rmdir|utimensat|fsync|fdatasync|ftruncate|truncate)\("
)
#: What asks nobody: the attributes of an open file.
OPEN = ', "", '


@dataclass
class StoredDataset(SimulatedDataset):
    """The simulation with a frame on disk, the same file for all, and a target.

    Attributes:
        frame: the file.
    """

    frame: str = "frame.png"
    protocols: list[str] = field(default_factory=lambda: ["rvos-expr"])

    def clips(self) -> list[Clip]:
        """Clips whose frames are looked at, never decoded."""
        frames = (Path(self.frame),) * self.n_frames
        names = tuple(f"{t:05d}" for t in range(self.n_frames))
        return [Clip(f"clip{c:05d}", frames, names, SIZE) for c in range(self.n_clips)]

    def target(self, clip: Clip, expression: Expression) -> Target:
        """A box."""
        return Target(SIZE, len(clip), (_box(len(clip)),), ("1",))


@dataclass
class Boxes(ReadyMade):
    """Hands out one small track; a variant is another run."""

    variant: int = 0

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """The same track for every expression."""
        for expression in expressions:
            yield Grounding(expression, _box(len(clip)))


def _box(length: int) -> MaskTrack:
    mask = np.zeros(SIZE, bool)
    mask[4:12, 5:15] = True
    return MaskTrack.from_masks([mask] * length, SIZE)


def point(folder: Path, clips: int, expressions: int, frames: int, variant: int = 0) -> Composed:
    """A composed run of the simulation."""
    schema.allow(MODULE)
    frame = folder / "frame.png"
    if not frame.exists():
        frame.write_bytes(b"\x89PNG" + bytes(2000))
    values = {
        "dataset": {"_target_": f"{MODULE}.StoredDataset", "n_clips": clips, "n_expressions": expressions,
                    "n_frames": frames, "frame": str(frame)},
        "method": {"_target_": f"{MODULE}.Boxes", "variant": variant},
        "paths": {"runs": str(folder / "runs"), "cache": str(folder / "cache")},
        "score": {"bootstrap": 200},
    }  # fmt: skip
    whole = schema.conform(Config, values, "config")
    for part in ("dataset", "method"):
        whole[part] = schema.complete(whole[part], part)
    return Composed(whole, f"v{variant}", digest(whole), (), {"method": "boxes", "dataset": "stored"})


class Figures:
    """Prints figures beside their goals."""

    def __init__(self) -> None:
        self.missed = 0

    def __call__(self, name: str, value: float, unit: str, goal: float | None = None) -> None:
        """One figure, which may be ``goal`` at most."""
        verdict = "" if goal is None else f"(goal {goal:g}: {'met' if value <= goal else 'MISSED'})"
        self.missed += goal is not None and value > goal
        print(f"  {name:68} {value:10.2f} {unit:14} {verdict}", flush=True)


def both(tell: Figures, name: str, clock: float, spent: float, goal: float) -> None:
    """Seconds on the clock, and of CPU time, which has the goal."""
    tell(f"{name}: on the clock", clock, "s")
    tell(f"{name}: CPU time", spent, "s", goal)


def quiet(line: str) -> None:
    """What a launch says is no figure."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Bars and lines of workers go nowhere."""
    with Path(os.devnull).open("w") as out, contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        yield


def peak_mb() -> float:
    """Most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forked(work: Sequence[tuple[object, ...]], call: object) -> tuple[float, float, float]:
    """Run ``call(*words)`` for each words in a process of its own, as many at once as there are cores.

    Returns:
        Seconds on the clock, CPU seconds of all, and the peak memory of the largest in MB.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    codes: list[int] = []
    for number, words in enumerate(work):
        if number >= env.cores():
            codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with silent():
                    call(*words)  # type: ignore[operator]
                code = 0
            finally:
                os._exit(code)
    codes += [os.waitstatus_to_exitcode(os.wait()[1]) for _ in work[len(codes) :]]
    assert not any(codes), codes
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu, after.ru_maxrss / 1024


def files_in(store: RunStore) -> dict[str, int]:
    """Files of a run by their folder."""
    found: dict[str, int] = {}
    for path in store.root.rglob("*"):
        if path.is_file():
            part = path.relative_to(store.root).parts[0] if path.parent != store.root else "."
            found[part] = found.get(part, 0) + 1
    return found


def one_run(folder: Path, shape: tuple[int, int, int], workers: int, tell: Figures) -> RunStore:
    """Submit, work by one and by many, resume and score one run."""
    clips, expressions, frames = shape
    samples = clips * expressions
    print(f"{samples} samples: {clips} clips of {frames} frames, {expressions} expressions each")
    composed = point(folder, *shape)
    began = time.perf_counter()
    (run,) = freeze_for_workers([composed], quiet)
    tell("submit: plan, freeze, record", time.perf_counter() - began, "s")
    store, root = run.store, str(run.store.root)

    def work(shard: int, shards: int) -> None:
        Shard(root, submissions(Path(root))[-1].id, shard, shards)()

    small = point(folder, max(1, clips // 10), expressions, frames, variant=-1)
    (tenth,) = freeze_for_workers([small], quiet)
    _, _, before = forked([()], lambda: Shard(str(tenth.store.root), tenth.record.id, 0, 1)())
    seconds, cpu, peak = forked([(0, 1)], work)
    assert len(store.done()) == samples
    tell("one worker: overhead on the clock", 1000 * seconds / samples, "ms a sample")
    tell("one worker: overhead in CPU time", 1000 * cpu / samples, "ms a sample", 2.0)
    tell("one worker: memory for 10 times as many samples", peak - before, "MB more", 100.0)
    tell("files in the end", sum(files_in(store).values()), "files", 50)
    clock, spent, _ = forked([()], lambda: launch([composed], quiet))
    both(tell, "`refseg run` again, nothing left", clock, spent, 5.0)
    # One clip of the last worker was torn away: who resumes finds it.
    path = next((store.root / "predictions").glob("*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-expressions]))
    freeze_for_workers([composed], quiet)
    clock, spent, _ = forked([(0, 1)], work)
    both(tell, "a worker starts with all but one clip done, and ends", clock, spent, 5.0)
    began = time.perf_counter()
    with silent():
        score_store(RunStore(store.root))
    tell("score", time.perf_counter() - began, "s")

    # Each does its own part and ends, or the first ones would do it all before the others begin.
    apart = point(folder, *shape, variant=-2)
    apart.values["cluster"]["steal"] = False
    (many,) = freeze_for_workers([apart], quiet)
    name, many_root = many.record.id, str(many.store.root)
    crowd = [(many_root, name, shard, workers) for shard in range(workers)]
    dropped, loop.forget = loop.forget, lambda *words: None  # or the last one would drop the claims
    seconds, cpu, _ = forked(crowd, lambda *words: Shard(*words)())
    loop.forget = dropped
    tell("files at work, a claim for each clip among them", sum(files_in(many.store).values()), "files")
    loop.forget(many.store.root)
    assert len(many.store.done()) == samples
    tell(f"{workers} workers, {env.cores()} at a time: on the clock of this machine", seconds, "s")
    tell(f"{workers} workers: CPU time, starts included", cpu / workers, "s a worker")
    tell(
        f"{workers} workers: overhead of each in CPU time, starts included",
        1000 * cpu / samples,
        "ms a sample",
    )
    tell("files in the end", sum(files_in(many.store).values()), "files", 50 + 5 * workers)
    for each in (tenth.store, many.store):
        shutil.rmtree(each.root)
    return store


def counted(folder: Path, shape: tuple[int, int, int], workers: int, tell: Figures) -> None:
    """Metadata operations of a worker that works beside the files of others, with strace."""
    if shutil.which("strace") is None:
        print("  metadata operations: not counted, strace is not installed")
        return
    clips, expressions, _ = shape
    per: dict[int, dict[str, int]] = {}
    for part in (1, 3):
        (run,) = freeze_for_workers([point(folder, part * clips, *shape[1:], variant=-3)], quiet)
        for other in range(workers - 1):
            # What the others have stored so far; they are through.
            (run.store.root / "predictions" / f"other{other}.jsonl").touch()
        log = folder / "strace.txt"
        command = [
            "strace",
            "-f",
            "-qq",
            "-o",
            str(log),
            sys.executable,
            "-m",
            "refseg_bench",
            "work",
            str(run.store.root),
        ]
        subprocess.run(command, check=True, env=environment(), capture_output=True)
        assert len(RunStore(run.store.root).done()) == part * clips * expressions
        lines = [line for line in log.read_text(errors="replace").splitlines() if METADATA.search(line)]
        lines = [line for line in lines if OPEN not in line]
        kinds = {"run folder": str(run.store.root), "frames": str(folder / "frame.png")}
        per[part] = {kind: sum(place in line for line in lines) for kind, place in kinds.items()}
        shutil.rmtree(run.store.root)
    for kind in per[1]:
        # The difference of two lengths: what starting takes is not in it.
        calls = (per[3][kind] - per[1][kind]) / (2 * clips * expressions)
        tell(f"metadata operations on the {kind}, beside {workers - 1} others", calls, "a sample")


def environment() -> dict[str, str]:
    """For processes that must find this module."""
    home = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": home, "REFSEG_SEARCHPATH": "pkg://benchmarks", "COLUMNS": "200"}


def copies(store: RunStore, folder: Path, shape: tuple[int, int, int], runs: int) -> Path:
    """A folder of so many finished runs of one size: the first one's lines, under each one's digest."""
    place = folder / "runs"
    (path,) = [p for p in (store.root / "predictions").glob("*.jsonl") if p.stat().st_size > 100_000][:1]
    lines = [
        line
        for file in sorted((store.root / "predictions").glob("*.jsonl"))
        for line in file.read_bytes().splitlines()
    ]
    mark = f', "run": "{store.info().digest}"'.encode()
    for number in range(1, runs):
        other = freeze(point(folder, *shape, variant=number))
        own = f', "run": "{other.info().digest}"'.encode()
        bodies = (line[: line.rindex(b', "check": ')].replace(mark, own, 1) for line in lines)
        with (other.root / "predictions" / path.name).open("wb") as out:
            out.writelines(b'%s, "check": "%s"}\n' % (body, checksum(body).encode()) for body in bodies)
        for part in ("scores", "env"):
            shutil.copytree(store.root / part, other.root / part, dirs_exist_ok=True)
        shutil.copy(store.root / "data.json", other.root / "data.json")
    return place


def command(*words: str) -> tuple[float, float]:
    """Seconds of a command on the clock, and of CPU time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "refseg_bench", *words], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu


def main() -> int:
    """Print the figures; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=count(1), default=35_000)
    parser.add_argument("--runs", type=count(1), default=100)
    parser.add_argument("--workers", type=count(1), default=64)
    args = parser.parse_args()
    tell = Figures()
    os.environ["REFSEG_SEARCHPATH"] = "pkg://benchmarks"
    for expressions, frames in ((10, 20), (1, 1)):
        shape = (args.samples // expressions, expressions, frames)
        with tempfile.TemporaryDirectory(prefix="refseg-scale-") as name:
            folder = Path(name)
            store = one_run(folder, shape, args.workers, tell)
            counted(folder, (200 // expressions, expressions, frames), args.workers, tell)
            if expressions == 1:
                continue
            place = copies(store, folder, shape, args.runs)
            # Workers leave a summary; the copies had none, and runs that were scored elsewhere have none.
            first = command("status", str(place))[1]
            tell(f"`refseg status` over {args.runs - 1} runs without a summary: CPU time", first, "s")
            both(tell, f"`refseg status` over {args.runs} runs", *command("status", str(place)), 10.0)
            words = ("report", str(place), "--format", "csv")
            both(tell, f"`refseg report` over {args.runs} runs", *command(*words), 10.0)
    return int(tell.missed > 0)


if __name__ == "__main__":
    # Under its own name, so that frozen configs can name its classes.
    from benchmarks.scale import main as run

    sys.exit(run())

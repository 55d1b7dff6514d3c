"""What the default run takes, in wall and CPU seconds, and whether other code predicts the same.

    python benchmarks/default_run.py                      # of this checkout
    python benchmarks/default_run.py OTHER                # and beside it of another checkout, before it
    python benchmarks/default_run.py OTHER -- cluster.shards=1    # with options

Runs `refseg run --no-html OPTIONS` in an empty folder, for each checkout with the same interpreter. Two
checkouts are compared: ratios of their seconds, and every prediction bit by bit. Ends with status 1 if
predictions differ, or above the limits of two idle cores: 60 s for all rows, 20 s for the first.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.run.store import runs_in

HERE = Path(__file__).resolve().parent.parent
LIMIT, FIRST = 60.0, 20.0


@dataclass
class Took:
    """One command: seconds, and sample → what was predicted, by row."""

    wall: float
    cpu: float
    first: float
    rows: float
    predicted: dict[str, dict[str, Any]]


def measured(checkout: Path, options: list[str]) -> Took:
    """Run the command and print what it took."""
    before, began, told = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), []
    print(f"\n{checkout}: refseg run {' '.join(options)}")
    with tempfile.TemporaryDirectory(prefix="refseg-default-") as place:
        command = [sys.executable, "-m", "refseg_bench", "run", "--no-html", *options]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        with subprocess.Popen(
            command, cwd=place, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            for line in process.stderr:
                print(f"{time.perf_counter() - began:7.1f} s  {line}", end="")
                if ": J&F " in line:
                    told.append(time.perf_counter() - began)
        if process.returncode != 0:
            sys.exit(f"refseg run ended with code {process.returncode}.")
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        predicted = {}
        for store in runs_in(Path(place) / "runs"):
            stages: Counter[str] = Counter()
            row = predicted.setdefault(store.root.name, {})
            for sample, line in store.index().items():
                found = store.read(line)
                stages.update(found.seconds)
                row[sample] = (found.track, found.point, found.no_target, found.details, found.failure)
            print(
                f"{store.root.name:32}", ", ".join(f"{name} {spent:.1f} s" for name, spent in stages.items())
            )
    took = Took(wall, cpu, told[0] if told else wall, told[-1] if told else wall, predicted)
    print(f"first row {took.first:.1f} s, all rows {took.rows:.1f} s, wall {wall:.1f} s, CPU {cpu:.1f} s")
    return took


def main() -> int:
    """Print the figures."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    others, options = [Path(word).resolve() for word in words[:cut]], words[cut + 1 :]
    if wrong := [word for word in words[:cut] if not Path(word, "refseg_bench").is_dir()]:
        sys.exit(f"No checkout: {', '.join(wrong)}.\n\n{__doc__}")
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    before = [measured(other, options) for other in others]
    now = measured(HERE, options)
    for other, then in zip(others, before, strict=True):
        differ = [
            f"{run} {sample}"
            for run in sorted(then.predicted.keys() | now.predicted.keys())
            for sample in sorted(then.predicted.get(run, {}).keys() | now.predicted.get(run, {}).keys())
            if then.predicted.get(run, {}).get(sample) != now.predicted.get(run, {}).get(sample)
        ]
        print(f"\nagainst {other}: wall {now.wall / then.wall:.2f}, CPU {now.cpu / then.cpu:.2f}")
        print(
            f"{sum(map(len, now.predicted.values()))} predictions, {len(differ)} differ",
            *differ[:10],
            sep="\n  ",
        )
        if differ:
            return 1
    return int(now.rows > LIMIT or now.first > FIRST)


if __name__ == "__main__":
    sys.exit(main())

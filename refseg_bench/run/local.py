"""Shards as processes of this machine; with ``cluster=local``, each with a GPU of its own."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refseg_bench import env
from refseg_bench.config.compose import Cluster
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.files.store_io import writing
from refseg_bench.run.progress import Progress
from refseg_bench.run.shards import Planned, at_once_here, tally_of
from refseg_bench.run.worker import DRAIN

#: Seconds between two looks at the processes, and at most between two at the store.
_LOOK, _LONGEST = 0.25, 5.0
#: A worker's exit codes that are no accident: its part is done, some of it failed, others have the rest.
_WELL = (0, 1, os.EX_TEMPFAIL)


@dataclass
class _Process:
    shard: int
    popen: subprocess.Popen[bytes]
    device: str | None
    log: Path


def devices(cluster: Cluster, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs to hand out, by the names CUDA knows them by here.

    Raises:
        ConfigError: fewer are visible than asked for.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(cluster.gpus)]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if len(names) < cluster.gpus:
        raise ConfigError(
            f"cluster.gpus={cluster.gpus}, but CUDA_VISIBLE_DEVICES names {len(names)}.",
            where="CUDA_VISIBLE_DEVICES",
            allowed=[f"0 to {len(names)}"],
        )
    return names[: cluster.gpus]


def work(run: Planned, progress: Progress | None = None, *, capture: bool = False) -> None:
    """Run all shards, as many at once as there are GPUs (or cores); ``capture``: to fill the cache only.

    Raises:
        RefsegError: a shard died and samples are left, or could not work at all.
    """
    before = dict(run.store.index())

    def look() -> bool:
        tally_of(run, before, progress)
        return True

    bad = together([run], look, capture=capture)
    left = tally_of(run, before).elsewhere
    if bad and (left or capture):
        process, code = bad[0]
        raise RefsegError(
            f"{len(bad)} of {run.shards} shards died, {left} samples are left. "
            f"Shard {process.shard} {_end(code)}:\n{tail(process.log)}",
            where=process.log,
            hint="The same command goes on with what is left.",
        )


def together(
    runs: Sequence[Planned], look: Callable[[], bool], *, capture: bool = False
) -> list[tuple[_Process, int]]:
    """Start a process per shard, each of which works on its part of every run, one run after the other.

    One that dies does not end the others; living ones take over its clips. Runs are registered, of one
    cluster and with equally many shards; ``look`` is called a few times a second: where it says no, the
    processes are ended. ``capture``: fill the attention cache only. Those that did not end well come back
    with their exit codes.
    """
    cluster, shards = runs[0].cluster, runs[0].shards
    at_once = at_once_here(cluster)
    names: list[str | None] = [*devices(cluster)] if cluster.gpus else [None] * at_once
    free = deque(names[:at_once])
    folder = runs[0].store.place("log", runs[0].record.id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    waiting, running, bad = deque(range(shards)), list[_Process](), list[tuple[_Process, int]]()
    due = -math.inf
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(runs, waiting.popleft(), free.popleft(), at_once, capture))
            time.sleep(_LOOK)
            over = [p for p in running if p.popen.poll() is not None]
            for process in over:
                running.remove(process)
                free.append(process.device)
                code = process.popen.returncode
                # What one of several runs was refused for, the caller meets itself.
                if code not in _WELL and not (code == 2 and len(runs) > 1):
                    bad.append((process, code))
                    runs[0].say(f"  shard {process.shard} {_end(code)}; log: {process.log}")
            began = time.monotonic()
            if not over and began < due:
                continue
            if not look():
                break
            # Looking at many samples takes its time from the work: a twentieth, until it is worth a wait.
            due = time.monotonic() + min(20 * (time.monotonic() - began), _LONGEST)
    finally:
        _stop(running)
    return bad


def _start(runs: Sequence[Planned], shard: int, device: str | None, at_once: int, capture: bool) -> _Process:
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    else:
        # Several processes with a thread per core each would fight for the cores.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, env.cores() // at_once)))
    command = [sys.executable, "-m", "refseg_bench", "work", *(str(run.store.root) for run in runs)]
    command += [word for run in runs for word in ("--launch", run.record.id)]
    command += ["--shard", str(shard), "--of", str(runs[0].shards), "--parent", str(os.getpid())]
    command += ["--capture"] if capture else []
    log = runs[0].log / f"{'capture' if capture else 'shard'}-{shard}.log"
    with writing(log), log.open("ab") as out:
        popen = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    return _Process(shard, popen, device, log)


def _stop(running: list[_Process]) -> None:
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.popen.terminate()
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(timeout=DRAIN + 5)


def _end(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def tail(log: Path, lines: int = 12) -> str:
    """A log's last lines; empty where it can't be read."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""

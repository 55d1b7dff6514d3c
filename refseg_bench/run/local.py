"""``cluster=local``: shards as processes of this machine, each with a GPU of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refseg_bench import env
from refseg_bench.config.compose import Cluster
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.files.store_io import writing
from refseg_bench.run.progress import Progress
from refseg_bench.run.shards import Planned, Tally, at_once_here, outcomes, tally_of
from refseg_bench.run.store import StoredLine
from refseg_bench.run.worker import DRAIN

#: Seconds between two looks at the processes and the store.
_LOOK = 0.25
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


def work(run: Planned, *, capture: bool = False) -> Tally:
    """Run all shards, as many at once as there are GPUs (or cores).

    A shard that dies does not end the others; living ones take over its clips.

    Raises:
        RefsegError: a shard died and samples are left, or could not work at all.
    """
    at_once = at_once_here(run.cluster)
    names: list[str | None] = [*devices(run.cluster)] if run.cluster.gpus else [None] * at_once
    free = deque(names[:at_once])
    folder = run.store.place("log", run.record.id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    waiting, running, bad = deque(range(run.shards)), list[_Process](), list[tuple[_Process, int]]()
    total = 0 if capture else run.samples
    before = dict(run.store.index())
    with Progress(total, label=run.store.root.name) as bar:
        try:
            while waiting or running:
                while waiting and free:
                    shard = waiting.popleft()
                    running.append(_start(run, shard, free.popleft(), folder, at_once, capture))
                time.sleep(_LOOK)
                for process in [p for p in running if p.popen.poll() is not None]:
                    running.remove(process)
                    free.append(process.device)
                    code = process.popen.returncode
                    if code not in _WELL:
                        bad.append((process, code))
                        run.say(f"  shard {process.shard} {_end(code)}; log: {process.log}")
                if not capture:
                    _advance(bar, run, before)
        finally:
            _stop(running)
    tally = tally_of(run, before)
    if bad and (tally.elsewhere or capture):
        process, code = bad[0]
        raise RefsegError(
            f"{len(bad)} of {run.shards} shards died, {tally.elsewhere} samples are left. "
            f"Shard {process.shard} {_end(code)}:\n{tail(process.log)}",
            where=process.log,
            hint="The same command goes on with what is left.",
        )
    return tally


def _start(
    run: Planned, shard: int, device: str | None, folder: Path, at_once: int, capture: bool
) -> _Process:
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    else:
        # Several processes with a thread per core each would fight for the cores.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, env.cores() // at_once)))
    command = [sys.executable, "-m", "refseg_bench", "work", str(run.store.root), "--launch", run.record.id]
    command += ["--shard", str(shard), "--of", str(run.shards), "--parent", str(os.getpid())]
    command += ["--capture"] if capture else []
    log = folder / f"{'capture' if capture else 'shard'}-{shard}.log"
    with writing(log), log.open("ab") as out:
        popen = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    return _Process(shard, popen, device, log)


def _advance(bar: Progress, run: Planned, before: Mapping[str, StoredLine]) -> None:
    stored = list(outcomes(run, before).values())
    good, bad = stored.count(True), stored.count(False)
    for ok in [True] * (good - bar.done + bar.failed) + [False] * (bad - bar.failed):
        bar.advance(ok)


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

"""``cluster=ray``: an actor per part, which does what `refseg work` does. Ray places and restarts them.

An actor keeps its model from clip to clip. Nothing but the claims divides the work, so that actors may come
and go, and any other workers may join.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from refseg_bench.errors import RefsegError, StoreError, require
from refseg_bench.files.store_io import writing
from refseg_bench.run.local import tail
from refseg_bench.run.progress import Progress
from refseg_bench.run.shards import Planned, tally_of
from refseg_bench.run.worker import DRAIN, Shard, draining
from refseg_bench.run.workers import TASK, close, records
from refseg_bench.segmenters.base import shared_by_rows

#: Seconds between two looks at what the actors have stored.
_LOOK = 5.0


def check() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    require("ray", "cluster=ray")
    import ray

    return ray


class _Worker:
    """The actor, which works where the command was given: paths of a config are taken from there."""

    def __init__(self, folder: str, told: Mapping[str, str]) -> None:
        os.chdir(folder)
        os.environ.update(told)

    def work(self, shard: Shard, log: Path) -> str:
        """Work on a part; what an end is due to, else an empty text."""
        with log.open("a") as out, redirect_stdout(out), redirect_stderr(out), draining(), shared_by_rows():
            try:
                shard()
            except RefsegError as error:
                print(error, file=out)
                return str(error)
            except KeyboardInterrupt:
                out.close()
                os._exit(os.EX_TEMPFAIL)  # its node is drained: Ray starts it again on another one
        return ""


def work(run: Planned, progress: Progress | None = None, *, capture: bool = False) -> None:
    """Have all parts worked on, as many at once as ``cluster.parallel`` allows and Ray has room for.

    ``capture``: to fill the cache only.

    Raises:
        RefsegError: an actor could not work, and samples are left; or there is no Ray.
    """
    ray, cluster, root = check(), run.cluster, run.store.root.resolve()
    parts = min(run.shards, cluster.parallel or run.shards)
    memory = None if cluster.mem_gb is None else int(cluster.mem_gb * (1 << 30))
    told = {name: value for name, value in os.environ.items() if name.startswith("REFSEG_")}
    folder = run.store.place("log", run.record.id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    bad: list[str] = []
    since = 0.0
    before = dict(run.store.index())

    def left() -> int:
        return tally_of(run, before, progress).elsewhere

    def ending() -> bool:
        # One that has stored its last sample still writes what it worked with. A lost one never ends.
        nonlocal since
        since = since or time.monotonic()
        mine = (r for r in records(root) if r.owner.launch == run.record.id)
        return time.monotonic() < since + DRAIN and not all(r.end for r in mine)

    def dismiss(worker: Any, task: str) -> None:
        ray.kill(worker)  # gives its room to one that waits, and its clip to anybody
        with suppress(StoreError):
            close(root, lambda owner: owner.task == task, "its actor is gone")

    with _connected(ray):
        actor = ray.remote(
            num_gpus=cluster.gpus,
            num_cpus=cluster.cpus,
            memory=memory,
            max_restarts=cluster.requeues,
            max_task_retries=-1,
        )(_Worker)
        _tell_of_room(ray, run)
        at_work: dict[Any, tuple[Any, str, Path]] = {}
        try:
            for part in range(parts):
                task = f"{run.record.id}-{'capture' if capture else 'ray'}-{part}"
                log = folder.resolve() / f"{'capture' if capture else 'shard'}-{part}.log"
                worker = actor.remote(os.getcwd(), {**told, TASK: task})
                shard = Shard(str(root), run.record.id, part, parts, capture)
                at_work[worker.work.remote(shard, log)] = (worker, task, log)
            while at_work and (left() or capture or ending()):
                for over in ray.wait(list(at_work), timeout=_LOOK)[0]:
                    worker, task, log = at_work.pop(over)
                    try:
                        why = ray.get(over)
                    except ray.exceptions.RayError as error:
                        why = f"{error}\n{tail(log)}"
                    if why:
                        bad.append(f"{log.stem} ended: {why}")
                        run.say(f"  {bad[-1]}")
                    dismiss(worker, task)
        finally:
            for worker, task, _ in at_work.values():
                dismiss(worker, task)
    if bad and (capture or left()):
        raise RefsegError(
            f"{len(bad)} of {parts} actors could not go on, {left()} samples are left. {bad[0]}",
            where=folder,
            hint="The same command goes on with what is left.",
        )


def _tell_of_room(ray: Any, run: Planned) -> None:
    """Say where no node can take an actor: one may come, and nothing else would tell."""
    wanted = {"CPU": run.cluster.cpus, "GPU": run.cluster.gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes):
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        run.say(
            f"  waiting for a node of Ray with {wanted['CPU']} CPUs and {wanted['GPU']} GPUs for an actor "
            f"(cluster.cpus, cluster.gpus); now a node has at most {most['CPU']:g} and {most['GPU']:g}"
        )


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """To the cluster of RAY_ADDRESS, or the one of this machine, or one for this command alone."""
    if ray.is_initialized():
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    ends, address = signal.getsignal(signal.SIGTERM), os.environ.get("RAY_ADDRESS", "")
    try:
        if plain := re.fullmatch(r"([^/:]+):([0-9]{1,5})", address):
            # Ray itself would try for minutes.
            socket.create_connection((plain[1], int(plain[2])), 10).close()
        ray.init(logging_level="warning")
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise RefsegError(
            f"Ray can't be reached: {error}",
            where=f"RAY_ADDRESS={address}",
            hint="`ray status` tells of a cluster; without RAY_ADDRESS one is taken or started here.",
        ) from error
    if main:
        signal.signal(signal.SIGTERM, ends)  # Ray's own would end this process on the spot
    try:
        yield
    finally:
        ray.shutdown()

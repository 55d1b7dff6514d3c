"""Making, starting and comparing the small runs that the launcher's tests are about."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from refseg_bench.config.compose import Composed, digest
from refseg_bench.run.launch import launch
from refseg_bench.run.store import MADE_FROM, RunStore
from refseg_bench.scoring.runs import score_store
from tests.fakes import FakeDataset, fake_values

REPO = Path(__file__).resolve().parents[2]
CONF = Path(__file__).with_name("conf")
SLOW = "tests.launch.slow.SlowMethod"
#: Seconds after which something hangs, on the slowest of machines.
HANGS = 600.0
T = TypeVar("T")


def point(folder: Path, *, clips: int = 6, method: dict[str, Any] | None = None, **changes: Any) -> Composed:
    """A composed run of the slow method; its dataset is on disk already."""
    FakeDataset(root=folder / "data", n_clips=clips).clips()
    dataset = {"_target_": "tests.fakes.FakeDataset", "root": str(folder / "data"), "n_clips": clips}
    values = fake_values(folder, dataset=dataset, method={"_target_": SLOW, **(method or {})}, **changes)
    return Composed(values, "slow", digest(values), (), {"method": "slow", "dataset": "fake"})


def quiet(line: str) -> None:
    """For tests that don't look at what is said."""


def undisturbed(folder: Path, **options: Any) -> RunStore:
    """The same run in this process, without any accident."""
    (done,) = launch([point(folder, **options)], quiet)
    assert done.tally is not None
    assert done.tally.failed == done.tally.elsewhere == 0
    return done.store


def lines(store: RunStore) -> dict[str, dict[str, Any]]:
    """The stored predictions without what differs between two runs; fails where one is stored twice."""
    out: dict[str, dict[str, Any]] = {}
    for path in sorted((store.root / "predictions").glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            if not record["ok"]:
                continue
            assert record["sample"] not in out, f"{record['sample']} was stored twice"
            del record["seconds"], record["peak_mb"], record["check"], record["inputs"][2]  # file times
            out[record["sample"]] = record
    return out


def scores(store: RunStore) -> dict[str, bytes]:
    """All files of the run's scores but one, which tells the processes that predicted."""
    fresh = RunStore(store.root)
    score_store(fresh, jobs=1)
    folder = store.root / "scores"
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MADE_FROM
    }


def wait_for(condition: Callable[[], T], every: float = 0.05) -> T:
    """What the condition says as soon as it says something."""
    deadline = time.monotonic() + HANGS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(every)
    return value


def let_go(hold: Path) -> None:
    """Let all that are held there go on."""
    hold.mkdir(exist_ok=True)
    (hold / "go").touch()


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers(root: Path) -> list[int]:
    """Processes of `refseg work` that still work on that very run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if "work" in words and root in [(process / "cwd").readlink() / word for word in words]:
                found.append(int(process.name))
    return found


@contextmanager
def reserved() -> Iterator[int]:
    """A port that refuses connections, and is given to nobody who doesn't ask for that very one."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def environment(**extra: str) -> dict[str, str]:
    """For processes that must find this package and its tests."""
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **extra}


def refseg(*arguments: str, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """Start the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "refseg_bench", *arguments],
        cwd=cwd, env=environment(**extra), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def overrides(folder: Path, *, conf: Path = CONF, clips: int = 6) -> list[str]:
    """The composed form of :func:`point`, for the command line."""
    return [f"hydra.searchpath=[file://{conf}]", "dataset=fake", "method=slow",
            f"dataset.root={folder / 'data'}", f"dataset.n_clips={clips}"]  # fmt: skip

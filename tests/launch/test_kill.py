"""Killed at any moment, the same command goes on: nothing lost, nothing doubled, equal scores."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from refseg_bench.errors import RefsegError
from refseg_bench.run.launch import freeze_for_workers, launch
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.run.worker import Shard
from refseg_bench.run.workers import records
from tests.launch.runs import (
    HANGS,
    alive,
    environment,
    let_go,
    lines,
    overrides,
    point,
    quiet,
    refseg,
    scores,
    undisturbed,
    wait_for,
    workers,
)

pytestmark = pytest.mark.slow
CLIPS = 12


def killed_after(seconds: float, folder: Path, shards: int) -> bool:
    """Run in a process of its own and kill it with -9; False if it was through by then."""
    cluster = {"kind": "debug", "shards": shards}
    composed = point(folder, clips=CLIPS, method={"seconds": 0.01}, cluster=cluster)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            launch([composed], quiet)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def test_kill_9_at_twenty_random_moments(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "whole", clips=CLIPS)
    expected = scores(whole)
    chance = random.Random(7)
    kills, rounds = 0, 0
    while kills < 20:
        rounds += 1
        place = tmp_path / f"killed{rounds}"
        # A new folder every few kills: the moments before anything is frozen count too.
        for _ in range(4):
            if kills < 20 and killed_after(chance.uniform(0.0, 0.2), place, chance.randint(1, 4)):
                kills += 1
        (done,) = launch([point(place, clips=CLIPS, cluster={"kind": "debug", "shards": 3})], quiet)
        assert lines(done.store) == lines(whole)
        assert scores(done.store) == expected


def test_two_hundred_kills_of_the_workers_of_one_run(tmp_path: Path) -> None:
    """Three at a time, each killed before or while it works; whoever is left finishes the run."""
    whole = undisturbed(tmp_path / "whole", clips=80)
    # None gets beyond its second sample: two hundred can't finish it, however late they are seen at work.
    hold = tmp_path / "hold"
    (frozen,) = freeze_for_workers([point(tmp_path, clips=80, method={"hold": str(hold)})], quiet)
    store, chance = frozen.store, random.Random(11)

    def start() -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with Path(os.devnull).open("w") as out, redirect_stderr(out):
                    Shard(str(store.root), frozen.record.id, None, 1)()
                code = 0
            finally:
                os._exit(code)
        return child

    def working(pid: int) -> bool:
        return any((store.root / "jobs").glob(f"*-{pid}-*.json"))

    began, one = time.monotonic(), start()
    wait_for(lambda: working(one))
    starting = time.monotonic() - began
    at_work, started, kills, seen = {one: began}, 1, 0, {one}
    while at_work or started < 200:
        while len(at_work) < 3 and started < 200:
            started += 1
            # Half of them on their way, the others while they are at their first sample, or at the second.
            at_work[start()] = chance.choice([math.inf, time.monotonic() + chance.uniform(0.0, starting)])
        for pid in [pid for pid in at_work if pid not in seen and working(pid)]:
            seen.add(pid)
            soon = time.monotonic() + chance.uniform(0.0, 0.1)
            at_work[pid] = min(at_work[pid], chance.choice([math.inf, soon]))
        for pid in [
            pid for pid, moment in at_work.items() if math.isinf(moment) and (hold / str(pid)).exists()
        ]:
            at_work[pid] = time.monotonic() + chance.uniform(0.0, 0.02)
        ended = [pid for pid in at_work if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)]
        assert not ended, f"one ended by itself, with {len(store.done())} of 240 samples done"
        for pid in [pid for pid, moment in at_work.items() if moment < time.monotonic()]:
            del at_work[pid]
            os.kill(pid, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        time.sleep(0.002)
    assert (kills, len(store.done()) < 240) == (200, True), "the run was over too soon"
    assert len(store.done()) > 10, "they were killed before they had done anything"
    assert sum(r.end is None for r in records(store.root)) > 80
    launch([point(tmp_path, clips=80)], quiet)
    assert lines(store) == lines(whole)
    assert scores(store) == scores(whole)


def test_kill_9_of_the_command_takes_its_shards_along(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "whole", clips=8)
    root = tmp_path / "killed"
    point(root, clips=8)
    command = ["run", "--no-score", *overrides(root, clips=8), "cluster=local", "cluster.parallel=2"]
    first = refseg(*command, "cluster.shards=2", f"method.hold={root / 'hold'}", cwd=root)
    (store,) = wait_for(lambda: [RunStore(p.parent) for p in root.glob("runs/*/run.json")])
    wait_for(lambda: len(store.done()) >= 2)
    assert len(workers(store.root)) == 2
    first.kill()
    first.communicate()
    wait_for(lambda: not workers(store.root))
    before = store.done()
    assert 2 <= len(before) < 24
    again = refseg(*command, "cluster.shards=3", cwd=root)
    told = again.communicate(timeout=HANGS)[1]
    assert again.returncode == 0, told
    assert lines(store) == lines(whole)
    assert scores(store) == scores(whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_scoring_processes_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "from pathlib import Path\n"
        "from refseg_bench.config.components import open_protocol\n"
        "from refseg_bench.scoring.score import Options, score\n"
        "from tests.fakes import FakeDataset\n"
        "from tests.launch.slow import SlowAnswers\n"
        "from tests.scoring.worlds import LookupSource\n"
        "if __name__ == '__main__':\n"
        f"    data = FakeDataset(root=Path({str(tmp_path / 'data')!r}), n_clips=4)\n"
        "    data.clips()\n"
        f"    slow = SlowAnswers({str(tmp_path)!r})\n"
        "    source = LookupSource(slow, statuses=slow.statuses)\n"
        "    score(data, [source], [open_protocol('rvos-expr')], Options(jobs=2, partial=True))\n"
    )
    (tmp_path / "score.py").write_text(code)
    command = [sys.executable, str(tmp_path / "score.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, env=environment(), text=True, start_new_session=True, **pipes)

    def at_work() -> list[int]:
        found = [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]
        return [pid for pid in found if pid != run.pid and alive(pid)]

    wait_for(lambda: len(at_work()) == 2)
    # A terminal sends Ctrl-C to all of them.
    (os.kill if number == signal.SIGKILL else os.killpg)(run.pid, number)
    told = run.communicate(timeout=HANGS)[1]
    wait_for(lambda: not at_work())
    assert told.count("Traceback") == (number == signal.SIGINT)


@pytest.fixture
def small_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"NO DISK-FULL TEST: mounting a small tmpfs needs root ({made.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_disk_full_while_appending_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    whole = undisturbed(tmp_path / "whole", clips=CLIPS)
    expected = lines(whole)
    kept_at: dict[int, int] = {}
    # From a disk that takes nothing to one that takes it all: it fills up at every possible place.
    for pages in itertools.count():
        folder = small_disk / f"runs{pages}"
        here = point(tmp_path / "whole", clips=CLIPS, paths={"runs": str(folder), "cache": str(tmp_path)})
        free = os.statvfs(small_disk).f_bavail
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(4096 * (free - pages)))
        error: RefsegError | None = None
        try:
            (answer,) = launch([here], quiet)
            error = answer.error
        except RefsegError as early:
            error = early
        store = RunStore(folder / here.folder)
        kept_at[pages] = len(lines(store))
        assert lines(store).items() <= expected.items()
        ballast.unlink()
        if error is None:
            break
        assert "disk is full" in str(error)
        (answer,) = launch([here], quiet)
        assert answer.error is None
        assert lines(store) == expected
        assert scores(store) == scores(whole)
        shutil.rmtree(folder)
    assert kept_at[0] == 0
    assert len(set(kept_at.values())) > 2, "the disk was never full in the midst of the predictions"


def test_a_shard_that_dies_does_not_take_the_others(tmp_path: Path) -> None:
    held = {"hold": str(tmp_path / "hold")}
    composed = point(tmp_path, clips=6, method=held, cluster={"kind": "local", "shards": 2})
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from tests.launch.runs import point\n"
        "from refseg_bench.run.launch import launch\n"
        f"p = point(Path({str(tmp_path)!r}), clips=6, method={held},\n"
        "    cluster={'kind': 'local', 'shards': 2, 'parallel': 2})\n"
        "done, = launch([p])\n"
        "print(json.dumps([str(done.error or ''), done.tally and done.tally.done]))\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment(), text=True, **pipes)
    store = RunStore(composed.path)
    wait_for(lambda: len(list((store.root / "predictions").glob("*.jsonl"))) == 2)
    os.kill(workers(store.root)[0], signal.SIGKILL)
    let_go(tmp_path / "hold")
    out, told = run.communicate(timeout=HANGS)
    assert run.returncode == 0, told
    assert "SIGKILL" in told
    # The living shard takes over the clips of the dead one.
    assert out.strip() == '["", 18]'
    assert len(lines(store)) == 18
    assert work_on(store).done == 0

"""``cluster=ray`` on a real Ray of two nodes on this machine: actors killed, a node lost, equal results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from refseg_bench.cli import main
from refseg_bench.errors import MissingExtra
from refseg_bench.files.store_io import sealed
from refseg_bench.run.launch import launch
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import submissions
from refseg_bench.run.worker import Shard
from refseg_bench.run.workers import TASK, Desk, Owner, records
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
)


class Nodes:
    """Two Ray nodes of one CPU each, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.environment = environment(
            RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1", REFSEG_SEARCHPATH="pkg://tests"
        )
        # In its own process: it leaves threads and handlers behind.
        code = (
            "import sys\n"
            "from ray.cluster_utils import Cluster\n"
            "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
            "nodes = [cluster.add_node(num_cpus=1)]\n"
            "print(cluster.address, flush=True)\n"
            "for word in sys.stdin:\n"
            "    if word == 'lose\\n':\n"
            "        cluster.remove_node(nodes.pop(), allow_graceful=False)\n"
            "    while word == 'add\\n':\n"
            "        try: nodes.append(cluster.add_node(num_cpus=1)); break\n"
            "        except Exception as late: print(late, file=sys.stderr)\n"
            "    print('done', flush=True)\n"
            "cluster.shutdown()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=self.environment, cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "ray.txt").open("w"),
        )  # fmt: skip
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, word: str) -> None:
        """``lose`` the second node, or ``add`` one."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self._line() == "done"

    def run(self, folder: Path, *more: str, clips: int) -> subprocess.Popen[str]:
        """`refseg run cluster=ray` of the slow method."""
        words = ["run", "--no-score", *overrides(folder, clips=clips), "cluster=ray", "cluster.cpus=1", *more]
        return refseg(*words, cwd=folder, **{**self.environment, "RAY_ADDRESS": self.address})


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="NO RAY: pip install -e '.[dev]'")
    # Ray itself waits for half a minute only, which a busy machine may need.
    tries = (Nodes(tmp_path_factory.mktemp("ray")) for _ in range(10))
    found = next(nodes for nodes in tries if nodes.address)
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(HANGS)


def at_work(store: RunStore) -> list[Owner]:
    """Actors that have not ended, and live."""
    found = [r.owner for r in records(store.root) if not r.end and r.owner.task]
    return [owner for owner in found if alive(owner.pid)]


@pytest.mark.slow
def test_actors_of_two_nodes_do_what_one_process_does(nodes: Nodes, tmp_path: Path) -> None:
    """An actor is killed, a node is lost, another one comes, and a bare worker helps."""
    clips, hold = 8, tmp_path / "hold"
    whole = undisturbed(tmp_path / "whole", clips=clips)
    point(tmp_path, clips=clips)
    driver = nodes.run(tmp_path, "cluster.shards=2", f"method.hold={hold}", clips=clips)
    (store,) = wait_for(lambda: [RunStore(p.parent) for p in tmp_path.glob("runs/*/run.json")])
    first = wait_for(lambda: len(at_work(store)) == 2 and at_work(store))
    wait_for(lambda: len(store.done()) == 2)
    os.kill(first[0].pid, signal.SIGKILL)
    again = wait_for(lambda: [o for o in at_work(store) if o.task == first[0].task and o.pid != first[0].pid])
    (lost,) = [r for r in records(store.root) if r.owner.job == first[0].job]
    assert lost.end is not None
    assert "started again" in lost.end.error
    assert again[0].job != first[0].job
    two = [first[1], again[0]]
    nodes.tell("lose")
    wait_for(lambda: [alive(owner.pid) for owner in two].count(True) == 1)
    bare = refseg("work", str(store.root), cwd=tmp_path)
    nodes.tell("add")
    let_go(hold)
    told = driver.communicate(timeout=HANGS)[1]
    bare.communicate(timeout=HANGS)
    assert driver.returncode == 0, told
    assert lines(store) == lines(whole)
    assert scores(store) == scores(whole)
    assert {s.kind for s in submissions(store.root)} == {"ray"}
    assert not at_work(store)


@pytest.mark.slow
def test_one_actor_finishes_what_there_is_no_room_for(nodes: Nodes, tmp_path: Path) -> None:
    """More parts than the cluster has CPUs, then an error that every actor meets."""
    point(tmp_path, clips=4)
    driver = nodes.run(tmp_path, "cluster.shards=5", clips=4)
    told = driver.communicate(timeout=HANGS)[1]
    assert driver.returncode == 0, told
    (store,) = [RunStore(p.parent) for p in tmp_path.glob("runs/*/run.json")]
    assert len(store.done()) == 12
    fails = "method.fail_on=[clip0/0,clip0/1,clip1/0,clip2/1]"
    driver = nodes.run(tmp_path, "cluster.shards=2", fails, "max_failures=1", clips=4)
    told = driver.communicate(timeout=HANGS)[1]
    assert driver.returncode == 2
    assert "More samples failed than max_failures=1 allows" in told


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    from refseg_bench.run import ray

    with pytest.raises(MissingExtra, match="refseg-bench\\[ray\\]"):
        ray.check()
    assert main(["run", "cluster=ray", "dataset=shapes", "method=empty", f"paths.runs={tmp_path}"]) == 2


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("ray", reason="NO RAY: pip install -e '.[dev]'")
    words = ["run", "cluster=ray", "dataset=shapes", "method=empty", f"paths.runs={tmp_path}"]
    for address in ("127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1:99999"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main(words) == 2
        assert f"RAY_ADDRESS={address}" in capsys.readouterr().err


def test_who_is_started_again_ends_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = undisturbed(tmp_path)
    monkeypatch.setenv(TASK, "one")
    far = Owner.here("far", "launch")
    other = Owner.here("other", "launch")
    for owner in (far, other):
        gone = Desk(store.root, owner)
        with gone:
            assert gone.take(f"clip of {owner.job}")
            kept = gone.record.read_text()
        gone.record.write_text(kept.splitlines(keepends=True)[0])
    monkeypatch.setenv(TASK, "two")
    with Desk(store.root, Owner.here("bystander", "launch")):
        monkeypatch.setenv(TASK, "one")
        with Desk(store.root, Owner.here("next", "launch")):
            ends = {r.owner.job: r.end for r in records(store.root)}
    assert ends["bystander"] is None
    assert ends["next"] is None
    assert ends["far"] is not None
    assert ends["far"].error == "it was lost, and started again"


def test_what_a_lost_one_held_counts_for_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TASK, "one")
    hours = Owner.here("lost", "launch")
    hours = replace(hours, host="far", gpus=4, started=time.time() - 3600)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/lost.json").write_text(sealed(asdict(hours)))
    with Desk(tmp_path, Owner.here("next", "launch")):
        (lost,) = [r for r in records(tmp_path) if r.owner.job == "lost"]
    assert lost.end is not None
    assert lost.gpu_hours == pytest.approx(4, abs=0.1)


@pytest.mark.slow
def test_a_name_that_several_have_takes_no_clip_of_a_living_one(tmp_path: Path) -> None:
    """As the processes of `cluster=local` have it from a command that was started with one."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from refseg_bench.run.workers import Desk, Owner\n"
        "with Desk(Path(sys.argv[1]), Owner.here(sys.argv[2], 'launch')) as desk:\n"
        "    print(desk.take('clip'), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    told = environment(**{TASK: "one"})
    with subprocess.Popen(
        [*words, "first"], env=told, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"
        second = subprocess.run([*words, "second"], env=told, text=True, input="", capture_output=True)
        assert second.stdout == "False\n"
        first.communicate()
    assert all(r.end and r.end.well for r in records(tmp_path))


def played(monkeypatch: pytest.MonkeyPatch, **parts: object) -> None:
    """What is used of Ray, with other parts."""
    whole: dict[str, object] = {
        "is_initialized": lambda: True,
        "nodes": lambda: [{"Alive": True, "Resources": {"CPU": 8}}],
        "get": lambda over: "",
        "exceptions": SimpleNamespace(RayError=RuntimeError),
    }
    monkeypatch.setattr("refseg_bench.run.ray.check", lambda: SimpleNamespace(**whole | parts))


def actors(start: Callable[[dict[str, str], Shard], object]) -> Callable[..., object]:
    """``ray.remote`` whose actors begin their part so."""

    def created(folder: str, told: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(work=SimpleNamespace(remote=lambda shard, log: start(told, shard)))

    return lambda **options: lambda cls: SimpleNamespace(remote=created)


def test_who_still_writes_what_it_worked_with_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    """Else its weights, counters and peaks are lost; Ray is played by a thread that takes its time."""
    told: list[bool] = []

    def slowly(method: object) -> dict[str, object]:
        time.sleep(0.5)
        return {"told": True}

    def start(variables: dict[str, str], shard: Shard) -> Thread:
        thread = Thread(target=shard)
        thread.start()
        return thread

    def wait(threads: list[Thread], timeout: float) -> tuple[list[Thread], None]:
        threads[0].join(0.05)
        return [one for one in threads if not one.is_alive()], None

    def kill(worker: object) -> None:
        (path,) = tmp_path.glob("runs/*/env/*.json")
        told.append("told" in path.read_text())

    played(monkeypatch, remote=actors(start), wait=wait, kill=kill)
    monkeypatch.setattr("refseg_bench.run.loop.method_record", slowly)
    (done,) = launch([point(tmp_path, clips=1, cluster={"kind": "ray"})], quiet)
    assert done.error is None
    assert told == [True]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RuntimeError("The actor died.")])
def test_an_actor_of_another_machine_that_is_gone_holds_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    """The command was interrupted, or Ray doesn't start the actor again: the next one need not wait."""

    def start(variables: dict[str, str], shard: Shard) -> str:
        far = replace(Owner.here("far", str(shard.launch)), host="far", space="", task=variables[TASK])
        with Desk(Path(shard.root), far) as desk:
            assert desk.take("clip0")
            kept = desk.record.read_bytes()
        desk.record.write_bytes(kept)
        return "far"

    def wait(all_of: list[str], timeout: float) -> tuple[list[str], None]:
        if isinstance(end, KeyboardInterrupt):
            raise end
        return all_of, None

    def get(over: object) -> str:
        raise end

    played(monkeypatch, remote=actors(start), wait=wait, get=get, kill=lambda worker: None)
    ours = point(tmp_path, clips=1, cluster={"kind": "ray"})
    with pytest.raises(KeyboardInterrupt) if isinstance(end, KeyboardInterrupt) else nullcontext():
        launch([ours], quiet)
    (again,) = launch([point(tmp_path, clips=1)], quiet)
    assert again.tally is not None
    assert (again.tally.done, again.tally.elsewhere) == (3, 0)

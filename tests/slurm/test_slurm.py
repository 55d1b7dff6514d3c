"""Sweeps, accidents and manners on a real SLURM of three nodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from refseg_bench import env
from refseg_bench.cli import main
from refseg_bench.run.launch import freeze_for_workers, launch
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import submissions
from refseg_bench.run.workers import Owner, records
from refseg_bench.types import MaskTrack
from tests.launch.runs import (
    CONF,
    HANGS,
    REPO,
    environment,
    let_go,
    lines,
    overrides,
    point,
    quiet,
    refseg,
    scores,
    undisturbed,
)
from tests.launch.test_server import command, gone, started, words
from tests.slurm.conftest import Slurm
from tools.writers import VideoRecord, write_davis_source

pytestmark = pytest.mark.slow
CLUSTER = ["cluster=slurm", "cluster.allow_dirty=true", "cluster.cpus=1", "cluster.signal_seconds=30"]
CLIPS = 9


def run(root: Path, *extra: str, clips: int = CLIPS, conf: Path = CONF) -> str:
    """`refseg run` on the cluster; what it told."""
    started = refseg("run", "-m", *overrides(root, conf=conf, clips=clips), *CLUSTER, *extra, cwd=root)
    told = started.communicate(timeout=HANGS)
    assert started.returncode == 0, told
    return told[1]


def submit(folder: Path, *, clips: int = CLIPS, hold: str = "", **cluster: object) -> tuple[RunStore, str]:
    """The same from this process, which is quicker."""
    told: list[str] = []
    wanted = {"kind": "slurm", "allow_dirty": True, "cpus": 1, "finish": False, **cluster}
    (answer,) = launch([point(folder, clips=clips, method={"hold": hold}, cluster=wanted)], told.append)
    assert answer.error is None
    assert answer.submitted
    return answer.store, "\n".join(told)


def stores(root: Path) -> list[RunStore]:
    return [RunStore(p.parent) for p in sorted((root / "runs").glob("*/run.json"))]


def job(store: RunStore, role: str = "work") -> str:
    return submissions(store.root)[-1].jobs[role]


def over(slurm: Slurm, store: RunStore) -> bool:
    return not slurm.tell("squeue", "-h", "-j", job(store))


def test_a_sweep_of_four_runs_by_three_shards(slurm: Slurm, tmp_path: Path) -> None:
    point(tmp_path, clips=CLIPS)
    conf = shutil.copytree(CONF, tmp_path / "conf")
    told = run(
        tmp_path, "method.variant=0,1,2,3", "method.seconds=0.1", "cluster.shards=3", "cluster.gpus=1",
        f"method.cache={tmp_path}", conf=conf,
    )  # fmt: skip
    # Whatever is edited from here on must not reach the runs.
    yaml = conf / "method/slow.yaml"
    yaml.write_text(yaml.read_text().replace("fail_on: []", "fail_on: [clip0/0]"))
    found = stores(tmp_path)
    assert len(found) == 4
    for store in found:
        assert str(store.root.relative_to(tmp_path)) in told
        for role in ("work", "score", "report"):
            assert job(store, role) in told
    assert "refseg report runs/" in told
    slurm.wait(lambda: list(tmp_path.glob("runs/*/log/*/report.md")))
    for store in found:
        variant = re.search(r"variant: (\d)", store.config_path.read_text())
        assert variant
        whole = undisturbed(tmp_path / "whole", clips=CLIPS, method={"variant": int(variant[1])})
        # The dependent job scored it before we do.
        made = sorted(p.name for p in store.root.glob("scores/*/*"))
        assert made == ["made_from.json", "result.json", "samples.parquet"]
        before = {p.name: p.read_bytes() for p in store.root.glob("scores/*/*")}
        assert lines(store) == lines(whole)
        assert scores(store) == scores(whole)
        assert {p.name: p.read_bytes() for p in store.root.glob("scores/*/*")} == before
        made_by = [r for r in records(store.root) if r.owner.launch == submissions(store.root)[-1].id]
        assert all(r.owner.shards == 3 and r.owner.gpus == 1 and r.gpu_hours > 0 for r in made_by)
    # The four share one capture: each clip was captured once, before anything was predicted.
    captured = [line.split()[0] for line in (tmp_path / "captured").read_text().splitlines()]
    assert sorted(captured) == sorted(f"clip{c}" for c in range(CLIPS))
    assert sum("capture" in s.jobs for store in found for s in submissions(store.root)) == 1
    (report,) = tmp_path.glob("runs/*/log/*/report.md")
    assert report.read_text().count("| slow") == 4
    nodes = {r.owner.host for store in found for r in records(store.root)}
    assert len(nodes) > 1
    assert nodes <= {"n1", "n2", "n3"}


REQUEUED = ("requeue", "signal", "node", "preempt", "limit")


def restarts(store: RunStore) -> int:
    """How often a worker of it was re-queued, as those tell that have started again."""
    return max(r.owner.restarts for r in records(store.root))


@dataclass
class Shaken:
    """Runs that met an accident each, by its name, and the same run undisturbed."""

    runs: dict[str, RunStore]
    whole: RunStore


def at_work(store: RunStore) -> list[Owner]:
    """The workers that have not ended, the one that claimed last at the end."""
    return [r.owner for r in records(store.root) if not r.end]


def requeue(slurm: Slurm, store: RunStore) -> None:
    slurm.tell("scontrol", "requeue", f"{job(store)}_{at_work(store)[0].shard}")


def tell(slurm: Slurm, store: RunStore) -> None:
    slurm.tell("scancel", "--signal=USR2", f"{job(store)}_{at_work(store)[0].shard}")


def kill(slurm: Slurm, store: RunStore) -> None:
    os.kill(at_work(store)[0].pid, signal.SIGKILL)


def cancel(slurm: Slurm, store: RunStore) -> None:
    slurm.tell("scancel", job(store))


def lose_node(slurm: Slurm, store: RunStore) -> None:
    """A node dies with everything on it, and comes back empty."""
    pidfile = slurm.folder / "slurmd-n3.pid"
    victims = at_work(store)
    os.kill(int(pidfile.read_text()), signal.SIGKILL)
    jobs = "|".join(str(owner.slurm) for owner in victims)
    steps = subprocess.run(["pgrep", "-f", rf"slurmstepd: \[({jobs})\."], capture_output=True, text=True)
    for pid in [int(step) for step in steps.stdout.split()] + [owner.pid for owner in victims]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pidfile.unlink()
    slurm.script("node", "n3")


def preempt(slurm: Slurm, store: RunStore) -> None:
    """A job of a partition that goes first wants the whole node for a moment."""
    slurm.tell("sbatch", "-p", "high", "-w", "n2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def wait_for_the_limit(slurm: Slurm, store: RunStore) -> None:
    """SLURM itself does this one."""


ACCIDENTS = {
    "requeue": requeue,
    "signal": tell,
    "kill": kill,
    "cancel": cancel,
    "node": lose_node,
    "preempt": preempt,
    "limit": wait_for_the_limit,
}


@pytest.fixture(scope="module")
def shaken(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Shaken:
    """All accidents at once: their runs don't touch each other, and waiting is what takes the time."""
    folder = tmp_path_factory.mktemp("shaken")
    whole = undisturbed(folder / "whole", clips=CLIPS)
    runs: dict[str, RunStore] = {}
    for name in ACCIDENTS:
        extra: dict[str, object] = {"nodelist": {"node": "n3", "preempt": "n2"}.get(name, "n1")}
        if name == "limit":
            # A minute is SLURM's shortest limit; the job is told after ten to forty seconds.
            extra |= {"minutes": 1, "signal_seconds": 20}
        # Each shard stops at its second sample until all has happened.
        runs[name], _ = submit(folder / name, hold=str(folder / name / "hold"), shards=2, **extra)
    waiting = dict(runs)

    def shake() -> bool:
        for name, store in list(waiting.items()):
            if len(store.done()) >= 2:
                ACCIDENTS[name](slurm, store)
                del waiting[name]
        return not waiting

    slurm.wait(shake, every=0.1)
    slurm.wait(lambda: all(restarts(runs[name]) or over(slurm, runs[name]) for name in REQUEUED))
    for name in runs:
        let_go(folder / name / "hold")
    slurm.wait(lambda: all(over(slurm, store) for store in runs.values()))
    return Shaken(runs, whole)


@pytest.mark.parametrize("accident", REQUEUED)
def test_a_requeued_shard_goes_on_where_it_was(slurm: Slurm, shaken: Shaken, accident: str) -> None:
    store = shaken.runs[accident]
    if accident == "limit":
        # SLURM's second signal may come while the restarted worker still loads, before anything listens
        # to it, and ends the job for good; then the same command goes on.
        assert re.search(r"Restarts=[1-9]", slurm.tell("scontrol", "show", "job", job(store)))
    else:
        assert restarts(store) >= 1, "nothing was re-queued"
    if lines(store) != lines(shaken.whole):
        assert accident == "limit"
        submit(store.root.parent.parent, shards=4)
        slurm.wait(lambda: over(slurm, store))
    assert lines(store) == lines(shaken.whole)
    assert scores(store) == scores(shaken.whole)


@pytest.mark.parametrize("accident", ["kill", "cancel"])
def test_after_a_death_the_same_command_goes_on(slurm: Slurm, shaken: Shaken, accident: str) -> None:
    store = shaken.runs[accident]
    assert any(not (r.end and r.end.well) for r in records(store.root))
    # Of a killed worker the other shard may have taken over what was left.
    if lines(store) != lines(shaken.whole):
        submit(store.root.parent.parent, shards=4)
        slurm.wait(lambda: over(slurm, store))
    assert lines(store) == lines(shaken.whole)
    assert scores(store) == scores(shaken.whole)


def test_a_plain_array_and_bare_workers_drain_one_run(slurm: Slurm, tmp_path: Path) -> None:
    """docs/cluster/slurm.sh on two nodes, submitit's array, a Ray actor, two bare ones; one is killed."""
    pytest.importorskip("ray", reason="NO RAY: pip install -e '.[dev]'")
    whole = undisturbed(tmp_path / "whole", clips=CLIPS)
    held = {"hold": str(tmp_path / "hold")}
    composed = point(tmp_path, clips=CLIPS, method=held)
    (frozen,) = freeze_for_workers([composed], quiet)
    store = frozen.store
    code = (
        "from pathlib import Path\n"
        "from refseg_bench.run.launch import launch\n"
        "from tests.launch.runs import point\n"
        f"made = point(Path({str(tmp_path)!r}), clips={CLIPS}, method={held},\n"
        "    cluster={'kind': 'ray', 'cpus': 1})\n"
        "(done,) = launch([made])\n"
        "assert done.error is None, done.error\n"
    )
    ray: subprocess.Popen[bytes] | None = None

    def begun() -> list[Owner]:
        nonlocal ray
        # Ray itself waits for half a minute only, which a busy machine may need.
        if ray is None or ray.poll() is not None:
            there = environment(RAY_ADDRESS="local")
            ray = subprocess.Popen([sys.executable, "-c", code], env=there, cwd=tmp_path)
        return at_work(store)

    slurm.wait(begun, every=0.1)
    assert ray is not None
    bare = [refseg("work", str(store.root), cwd=tmp_path) for _ in range(2)]
    slurm.wait(lambda: len(at_work(store)) == 3, every=0.1)
    submit(tmp_path, **held, shards=2, join=True)
    script = (REPO / "docs/cluster/slurm.sh").read_text()
    for old, new in (
        ("refseg work", f"{sys.executable} -m refseg_bench work"),
        ("--array=0-7", "--array=4-5"),
        ("--gres=gpu:1", f"--output={tmp_path}/plain-%a.out"),
        ("--cpus-per-task=4", "--cpus-per-task=1"),
    ):
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "slurm.sh").write_text(script)
    told = subprocess.run(
        ["sbatch", "--parsable", f"--export=ALL,RUN={store.root}", str(tmp_path / "slurm.sh")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    plain = told.stdout.strip()
    slurm.wait(lambda: len(at_work(store)) == 7, every=0.1)
    os.kill(bare[0].pid, signal.SIGKILL)
    # One of the plain array's workers is told to end: it hands back, and its task is put back.
    slurm.tell("scancel", "--signal=TERM", f"{plain}_4")
    slurm.wait(lambda: any(r.end for r in records(store.root)), every=0.1)
    let_go(tmp_path / "hold")
    assert sorted(process.wait(HANGS) for process in bare)[0] == -signal.SIGKILL
    # The nodes can't ask about a process of another machine: one that is started there again takes its clip.
    assert refseg("work", str(store.root), cwd=tmp_path).wait(HANGS) in (0, os.EX_TEMPFAIL)
    slurm.wait(lambda: over(slurm, store) and not slurm.tasks(plain))
    assert ray.wait(HANGS) == 0
    logs = "".join(path.read_text() for path in tmp_path.glob("plain-*.out"))
    assert "Traceback" not in logs, logs
    # The part of a task of the plain array: the second of two.
    owners = [r.owner for r in records(store.root)]
    assert {(o.shard, o.shards) for o in owners} <= {(0, 1), (0, 2), (1, 2)}
    assert [bool(o.task) for o in owners].count(True) == 1
    assert lines(store) == lines(whole), logs
    assert scores(store) == scores(whole)


def test_two_submissions_at_once_are_told_of_each_other(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point(tmp_path, clips=CLIPS)
    extra = ["method.seconds=5", "cluster.shards=2", "+cluster.extra.hold=''"]
    both = [
        refseg("run", *overrides(tmp_path, clips=CLIPS), *CLUSTER, *extra, cwd=tmp_path) for _ in range(2)
    ]
    told = [p.communicate(timeout=HANGS)[1] for p in both]
    (store,) = stores(tmp_path)
    made = submissions(store.root)
    assert len(made) == 2
    # One of them made way; it names the other one.
    assert sorted(p.returncode for p in both) == [0, 2], told
    assert sorted(s.state for s in made) == ["open", "refused"]
    refused = told[[p.returncode for p in both].index(2)]
    assert "already being worked on" in refused
    assert "refseg cancel" in refused
    array = next(s for s in made if s.state == "open").jobs["work"]
    assert slurm.tasks(array).keys() == {"0", "1"}
    # A later one is told too, with the jobs.
    monkeypatch.chdir(tmp_path)
    assert main(["run", *overrides(tmp_path, clips=CLIPS), *CLUSTER, *extra]) == 2
    assert f"work job {array}" in capsys.readouterr().err
    # Asked to, it adds its workers.
    assert (
        main(["run", "--no-score", *overrides(tmp_path, clips=CLIPS), *CLUSTER, *extra, "cluster.join=true"])
        == 0
    )
    more = job(store)
    assert more != array
    assert f"work job {array}" in capsys.readouterr().err
    assert main(["status", "runs"]) == 0
    status = capsys.readouterr().out
    assert f"work job {array}" in status
    assert "made way for it" in status
    assert main(["cancel", "runs"]) == 0
    assert array in capsys.readouterr().out
    slurm.wait(lambda: not slurm.tasks(array) and not slurm.tasks(more))
    assert main(["cancel", "runs"]) == 0
    assert "nothing works on it" in capsys.readouterr().out


def test_an_array_of_two_hundred_tasks(slurm: Slurm, tmp_path: Path) -> None:
    began = time.monotonic()
    store, told = submit(
        tmp_path,
        clips=200,
        shards=200,
        parallel=2,
        partition="main",
        extra={"hold": ""},
        setup=["export A=1"],
    )
    print(f"200 tasks submitted in {time.monotonic() - began:.1f} s")
    assert "600 samples in 200 shards" in told
    array = job(store)
    assert len(slurm.tasks(array)) == 200
    assert "%2" in slurm.tell("squeue", "-h", "-j", array, "-o", "%i")
    script = next((store.root / "log").glob("*/*_submission.sh")).read_text()
    assert "export A=1" in script
    assert "--requeue" in script
    assert main(["cancel", str(tmp_path / "runs")]) == 0
    slurm.wait(lambda: not slurm.tasks(array))


def test_what_is_asked_of_slurm_reaches_it(slurm: Slurm, tmp_path: Path) -> None:
    store, _ = submit(
        tmp_path, shards=3, parallel=1, partition="high", account="lab", constraint="fast", nodelist="n1",
        exclude="n3", minutes=77, gpus=2, cpus=3, mem_gb=1.5, setup=["module load cuda"], conda="my env",
        container="apptainer exec --nv image.sif", extra={"hold": "", "comment": "hello"}, snapshot=True,
        finish=True,
    )  # fmt: skip
    array = job(store)
    shown = slurm.tell("scontrol", "show", "job", f"{array}_1")
    wanted = {
        "Partition": "high",
        "Account": "lab",
        "Features": "fast",
        "ReqNodeList": "n1",
        "ExcNodeList": "n3",
        "TimeLimit": "01:17:00",
        "Requeue": "1",
        "Comment": "hello",
        "NumCPUs": "3",
        "MinMemoryNode": "1.50G",
    }
    assert {key: re.search(rf"\b{key}=(\S+)", shown)[1] for key in wanted} == wanted  # type: ignore[index]
    assert "gres:gpu:2" in shown
    scripts = {p.name.split("_")[0]: p.read_text() for p in (store.root / "log").glob("*/*_submission.sh")}
    assert "module load cuda\n" in scripts[array]
    assert "conda activate 'my env'" in scripts[array]
    assert "apptainer exec --nv image.sif python -u -m submitit" in scripts[array]
    assert "#SBATCH --array=0-2%1" in scripts[array]
    # Scoring needs no accelerator, and waits for the array, however that ends.
    score = scripts[job(store, "score")]
    assert "gpus" not in score
    assert f"--dependency=afterany:{array}" in score
    (code,) = (store.root / "launches").glob("*/code")
    assert (code / "refseg_bench/run/loop.py").is_file()
    assert f"PYTHONPATH={code}" in scripts[array]
    assert main(["cancel", str(tmp_path / "runs")]) == 0
    slurm.wait(lambda: not slurm.tell("squeue", "-h"))


def test_a_snapshot_is_what_runs(slurm: Slurm, tmp_path: Path) -> None:
    store, _ = submit(tmp_path, clips=2, snapshot=True)
    slurm.wait(lambda: over(slurm, store))
    (log,) = store.root.glob("log/*/*_log.out")
    assert len(store.done()) == 6, log.read_text()
    (environment,) = store.environments().values()
    assert "/launches/" in environment["snapshot"]
    assert environment["commit"] == env.commit()["commit"]


def test_sbatch_refusing_is_told_in_one_message(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *overrides(tmp_path), *CLUSTER, "cluster.partition=nowhere"]) == 2
    told = capsys.readouterr().err
    assert told.count("invalid partition") == 1
    assert "Traceback" not in told
    assert not list(tmp_path.glob("runs/*"))


def test_the_overhead_can_be_measured(slurm: Slurm) -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "benchmarks/overhead.py"), "--samples", "400", "--slurm", "20"],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert "array of 20 tasks: submitted in" in done.stdout, done.stderr
    assert "ms per sample of 400" in done.stdout


@pytest.mark.parametrize("per", ["job", "node"])
def test_a_chat_models_server_stands_beside_the_workers(slurm: Slurm, tmp_path: Path, per: str) -> None:
    more = [*CLUSTER, "cluster.shards=3", "cluster.finish=false", f"cluster.server_per={per}"]
    submitted = refseg("run", *words(tmp_path, command(tmp_path), *more, clips=12), cwd=tmp_path)
    told = submitted.communicate(timeout=HANGS)
    assert submitted.returncode == 0, told
    (store,) = stores(tmp_path)
    slurm.wait(lambda: over(slurm, store))
    assert len(store.done()) == 24
    # The three nodes are one machine, and its workers share a server where they may.
    assert len(started(tmp_path)) == 3 or per == "node"
    assert not (tmp_path / "together").exists() or per == "job"
    assert gone(tmp_path)


def test_scancel_ends_the_server_too(slurm: Slurm, tmp_path: Path) -> None:
    more = [*CLUSTER, "cluster.shards=2", "cluster.finish=false", "cluster.server_per=node"]
    submitted = refseg("run", *words(tmp_path, command(tmp_path), *more, clips=100), cwd=tmp_path)
    assert submitted.wait(HANGS) == 0
    slurm.wait(lambda: list(tmp_path.glob("asked-*")))
    slurm.tell("scancel", job(stores(tmp_path)[0]))
    assert gone(tmp_path)
    slurm.wait(lambda: not slurm.tell("squeue", "-h"))


def test_a_papers_table_from_the_dry_run_to_the_report(slurm: Slurm, tmp_path: Path) -> None:
    """What somebody does who repeats a table on two nodes, word by word."""
    square = np.zeros((3, 48, 64), bool)
    square[:, 10:30, 12:40] = True
    frames = np.where(square[..., None], np.uint8([200, 40, 30]), np.uint8(90))
    track = MaskTrack.from_masks(list(square), (48, 64))
    videos = [VideoRecord(f"clip{n}", frames, [track], [("the red square", [0], {})] * 4) for n in range(2)]
    write_davis_source(tmp_path / "davis", {"train": [], "val": videos})
    table = ["experiment=decaf/table5a", "dataset=ref_davis17", "backbone=tiny_mllm", "segmenter=tiny_sam2",
             "backbone.label=Qwen2.5-VL-7B", "cluster.shards=2", "cluster.exclude=n3",
             *CLUSTER, "cluster.cpus=7"]  # fmt: skip

    def told(*arguments: str) -> str:
        done = refseg(*arguments, cwd=tmp_path)
        out = "".join(done.communicate(timeout=HANGS))
        assert done.returncode == 0, out
        return out

    assert "valid: 2 clips" in told("data", "prepare", "ref_davis17", "--from", "davis")
    dry = told("run", *table, "--dry")
    assert re.search(r"all +24 +6 ", dry)
    assert "jobs on SLURM" in dry
    assert not stores(tmp_path)
    told("run", *table)
    found = stores(tmp_path)
    assert len(found) == 3
    slurm.wait(lambda: list(tmp_path.glob("runs/*/log/*/report.md")))
    assert len(re.findall(r" 8 +0 +0 ", told("status"))) == 3
    ours = json.loads(told("report", "runs", "--format", "json"))
    assert [row["n"] for row in ours] == [8] * 3
    # Each point stands beside the paper's number of its own setting.
    text = told("report", "experiment=decaf/table5a", "runs", "--format", "md")
    for published in ("68.4", "72.9", "75.2"):
        assert published in text, text
    assert {r.owner.host for store in found for r in records(store.root)} <= {"n1", "n2"}
    assert re.search(r"all +0 +0 ", told("run", *table, "--dry"))

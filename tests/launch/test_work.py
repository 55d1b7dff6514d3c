"""`refseg work`: one worker for every engine, its part, its end, and any mix of workers on one run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import read_sealed_yaml, sealed_text, to_yaml
from refseg_bench.run.launch import freeze_for_workers, launch
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import submissions
from refseg_bench.run.worker import PARTS, draining, part_of
from refseg_bench.run.workers import LEAVING, Desk, Owner, leave, records
from refseg_bench.types import Prediction, SampleFailure
from tests.launch.runs import (
    HANGS,
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

K8S, SKY = {"JOB_COMPLETION_INDEX": "3"}, {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "8", "SLURM_ARRAY_TASK_STEP": "2",
         "SLURM_ARRAY_TASK_COUNT": "4"}  # fmt: skip
OWN = {"REFSEG_SHARD": "5", "REFSEG_SHARDS": "6"}
TORCH = {"RANK": "1", "WORLD_SIZE": "4"}


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever started the tests tells them no part."""
    for name in {*PARTS, *PARTS.values()}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, (None, 1)),
        ({"REFSEG_SHARD": "", "REFSEG_SHARDS": ""}, (None, 1)),
        (TORCH, (1, 4)),
        (TORCH | SKY, (1, 2)),
        (TORCH | SKY | K8S, (3, 8)),  # as many as it was frozen for
        (TORCH | SKY | K8S | {"REFSEG_SHARDS": "4"}, (3, 4)),
        (TORCH | SKY | K8S | ARRAY, (2, 4)),
        (TORCH | SKY | K8S | ARRAY | OWN, (5, 6)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}, (0, 1)),
    ],
)
def test_the_first_that_tells_a_part_counts(told: dict[str, str], expected: tuple[int | None, int]) -> None:
    assert part_of(None, None, 8, told) == expected
    assert part_of(1, 2, 8, told) == (1, 2)
    assert part_of(7, None, 8, told) == (7, 8)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"REFSEG_SHARD": "3", "REFSEG_SHARDS": "3"}, "REFSEG_SHARD"),
        ({"REFSEG_SHARD": "0", "REFSEG_SHARDS": "0"}, "REFSEG_SHARDS"),
        ({"REFSEG_SHARD": "-1", "REFSEG_SHARDS": "3"}, "REFSEG_SHARD"),
        ({"REFSEG_SHARD": "one", "REFSEG_SHARDS": "3"}, "REFSEG_SHARD"),
        ({"REFSEG_SHARD": "1.0", "REFSEG_SHARDS": "3"}, "REFSEG_SHARD"),
        ({"REFSEG_SHARD": "٣", "REFSEG_SHARDS": "9"}, "REFSEG_SHARD"),
        ({"REFSEG_SHARD": "1" * 5000, "REFSEG_SHARDS": "3"}, "REFSEG_SHARD"),
        ({"REFSEG_SHARD": "1"}, "REFSEG_SHARDS"),
        ({"REFSEG_SHARDS": "3"}, "REFSEG_SHARD"),
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"JOB_COMPLETION_INDEX": "8"}, "JOB_COMPLETION_INDEX"),
        ({"RANK": "0", "WORLD_SIZE": "999999999"}, "WORLD_SIZE"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "7"}, "SLURM_ARRAY_TASK_ID"),
        (ARRAY | {"SLURM_ARRAY_TASK_STEP": "x"}, "SLURM_ARRAY_TASK_STEP"),
    ],
)
def test_a_part_that_can_not_be_is_refused(told: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        part_of(None, None, 8, told)
    assert name in str(refused.value)


@pytest.mark.parametrize(("number", "of"), [(3, 3), (-1, 3), (0, 0), (8, None), (None, 3), (0, 10**9)])
def test_flags_that_can_not_be_are_refused(number: int | None, of: int | None) -> None:
    with pytest.raises(ConfigError, match="There is no part"):
        part_of(number, of, 8, {})


def frozen(folder: Path, *more: str, clips: int = 6) -> RunStore:
    """`refseg run --freeze` in that folder."""
    point(folder, clips=clips)
    done = refseg("run", "--freeze", *overrides(folder, clips=clips), *more, cwd=folder)
    out, told = done.communicate(timeout=HANGS)
    assert done.returncode == 0, told
    (command,) = out.splitlines()
    assert command.startswith("refseg work /")
    return RunStore.open(Path(command.split()[-1]))


def worker(store: RunStore, **told: str) -> subprocess.Popen[str]:
    """`refseg work` and nothing else but what a scheduler tells, in the folder that the run was frozen in."""
    return refseg("work", str(store.root), cwd=store.root.parent.parent, **told)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was told."""
    told = process.communicate(timeout=HANGS)[1]
    return process.returncode, told


@pytest.mark.slow
def test_a_frozen_folder_is_all_that_workers_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = undisturbed(tmp_path / "whole")
    store = frozen(tmp_path, "cluster.shards=2")
    assert store.done() == set()
    # The two halves of an Indexed Job; the frozen run knows how many.
    for index, count in ((0, 9), (1, 18)):
        assert ended(worker(store, JOB_COMPLETION_INDEX=str(index), REFSEG_SEARCHPATH="pkg://tests"))[0] == 0
        steal = len(store.done()) == 18
        assert steal or len(store.done()) == count
    assert {(r.owner.shard, r.owner.shards) for r in records(store.root)} <= {(0, 2), (1, 2)}
    code, told = ended(worker(store, JOB_COMPLETION_INDEX="2"))
    assert (code, "no part 2 of 2" in told) == (2, True)
    code, told = ended(worker(store))
    assert (code, "nothing is left to predict" in told) == (0, True)
    assert lines(store) == lines(whole)
    assert scores(store) == scores(whole)
    assert main(["status", str(store.root)]) == 0
    assert main(["cancel", str(store.root)]) == 0
    assert "nothing works on it" in capsys.readouterr().out


@pytest.mark.slow
def test_freezing_a_sweep_prints_a_command_for_each(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--freeze", "-m", *overrides(in_tmp), "method.variant=0,1", "name='a b'"]
    point(in_tmp)
    assert main(words) == 0
    out, told = capsys.readouterr()
    commands = out.splitlines()
    assert len(commands) == 2
    assert all(line.startswith("refseg work '/") for line in commands)
    assert str(Path.cwd()) in told
    for store in [RunStore(p.parent) for p in in_tmp.glob("runs/*/run.json")]:
        (one,) = submissions(store.root)
        assert (one.kind, one.state) == ("frozen", "frozen")
        assert store.done() == set()
        assert main(["work", str(store.root)]) == 0
        assert len(store.done()) == 18
    before = sorted(in_tmp.rglob("launch.json"))
    assert main([*words, "--dry"]) == 0
    assert sorted(in_tmp.rglob("launch.json")) == before
    # A finished run is frozen again without a word of work.
    assert main(words) == 0
    assert "0 samples left" in capsys.readouterr().err


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = launch([point(tmp_path, method={"fail_on": ["clip1/2"]})], quiet)
    root = answer.store.root
    assert main(["work", str(root)]) == 1
    assert len(list((root / "predictions").iterdir())) == 1, "a sample is tried once by a submission"
    assert main(["work", str(root / "predictions")]) == 2
    assert main(["work", str(root), "--launch", "../x"]) == 2
    assert "No such submission" in capsys.readouterr().err
    # Another worker, which lives, holds a clip.
    open_run = undisturbed(tmp_path / "open")
    (path,) = (open_run.root / "predictions").iterdir()
    path.unlink()
    with Desk(open_run.root, Owner.here("other", submissions(open_run.root)[-1].id)) as desk:
        desk.take("clip0")
        assert main(["work", str(open_run.root)]) == os.EX_TEMPFAIL
    assert "3 samples are with other workers" in capsys.readouterr().err
    assert len(open_run.done()) == 15


def test_samples_that_were_lost_are_predicted_again_and_failed_ones_are_not(tmp_path: Path) -> None:
    (answer,) = launch([point(tmp_path, method={"fail_on": ["clip1/2"]})], quiet)
    store = RunStore(answer.store.root)
    (path,) = (store.root / "predictions").iterdir()
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in whole if b'"clip1/0"' not in line and b'"clip3/' not in line))
    assert main(["work", str(store.root)]) == os.EX_TEMPFAIL, "a file server may be late to tell"
    for record in (store.root / "jobs").iterdir():
        os.utime(record, (0, 0))
    assert main(["work", str(store.root)]) == 1
    (_, more) = sorted((store.root / "predictions").iterdir(), key=lambda p: p.stat().st_size, reverse=True)
    predicted = [json.loads(line)["sample"] for line in more.read_bytes().splitlines()]
    assert sorted(predicted) == ["clip1/0", "clip3/0", "clip3/1", "clip3/2"]
    assert len(store.done()) == 17
    assert main(["work", str(store.root)]) == 1
    assert len(list((store.root / "predictions").iterdir())) == 2


def test_what_failed_is_left_to_who_is_at_its_clip(tmp_path: Path) -> None:
    again = point(tmp_path, cluster={"kind": "debug", "retry_failed": True})
    (run,) = freeze_for_workers([point(tmp_path)], quiet)

    def failed(expression: str) -> Prediction:
        failure = SampleFailure("ValueError", "no", "")
        return Prediction(f"clip0/{expression}", "clip0", expression, failure=failure)

    owner = Owner.here("other", run.record.id)
    with Desk(run.store.root, owner) as desk, run.store.writer("other") as out:
        assert desk.take("clip0")
        out.append(failed("0"))
        (answer,) = launch([again], quiet)
        assert answer.tally is not None
        assert (answer.tally.done, answer.tally.elsewhere, desk.lost) == (0, 1, False)
        for expression in ("1", "2"):
            out.append(failed(expression))
        (answer,) = launch([again], quiet)
        assert answer.tally is not None
        assert (answer.tally.done, desk.lost) == (3, True), "it is through with it"


def test_who_leaves_is_cut_short_by_signals_alone() -> None:
    with draining():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        with pytest.raises(KeyboardInterrupt):
            leave()
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    LEAVING.clear()
    leave()


def test_nonsense_of_a_scheduler_names_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "../../7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "many")
    store = undisturbed(tmp_path)
    (record,) = records(store.root)
    assert (record.owner.slurm, record.owner.restarts) == (None, 0)
    assert len(list((store.root / "predictions").iterdir())) == 1


def test_a_submission_that_was_stopped_is_not_gone_on_with(tmp_path: Path) -> None:
    every = [f"clip{c}/{e}" for c in range(6) for e in range(3)]
    (answer,) = launch([point(tmp_path, method={"fail_on": every}, max_failures=1)], quiet)
    assert answer.error is not None
    assert main(["work", str(answer.store.root)]) == 2


def test_a_worker_imports_nothing_that_nobody_trusts(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = undisturbed(in_tmp)
    shutil.rmtree(store.root / "predictions")
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.syspath_prepend(str(in_tmp))
    (config,) = store.root.glob("launches/*/config.yaml")
    values = read_sealed_yaml(config)
    for part in ("dataset", "method"):
        config.write_text(sealed_text(to_yaml({**values, part: {"_target_": "evil.Thing"}})))
        assert main(["work", str(store.root)]) == 2
        assert not Path("ran").exists()
    assert "digest" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_hands_back_the_clip(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "whole", clips=3)
    store = frozen(tmp_path, f"method.hold={tmp_path / 'hold'}", clips=3)
    first = worker(store)
    wait_for(store.done)
    first.terminate()
    code, told = ended(first)
    assert (code, "handed back" in told) == (os.EX_TEMPFAIL, True), told
    (record,) = records(store.root)
    assert record.end is not None
    assert not record.end.well
    assert 0 < len(store.done()) < 9
    let_go(tmp_path / "hold")
    assert ended(worker(store))[0] == 0
    assert lines(store) == lines(whole)
    assert scores(store) == scores(whole)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_sample_that_takes_too_long_is_dropped(tmp_path: Path, signals: int) -> None:
    store = frozen(tmp_path, "method.seconds=36000", clips=2)
    code = (
        "import sys\nfrom refseg_bench.run import worker\n"
        f"worker.DRAIN = {1.0 if signals == 1 else 36000.0}\n"
        f"from refseg_bench.cli import main\nsys.exit(main(['work', {str(store.root)!r}]))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), cwd=tmp_path, text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: list((store.root / "claims").glob("*")))
    run.terminate()
    if signals == 2:  # two that come too close are one
        wait_for(lambda: run.terminate() or run.poll() is not None, every=0.5)
    assert ended(run)[0] == os.EX_TEMPFAIL
    assert store.done() == set()
    # What it had is anybody's at once.
    with Desk(store.root, Owner.here("next", submissions(store.root)[-1].id)) as desk:
        assert desk.take("clip0")


@pytest.mark.slow
def test_any_mix_of_workers_drains_one_run(tmp_path: Path) -> None:
    """Two local shards, bare workers, one with a part of its own; killed, told to end, and started again."""
    clips, chance = 12, random.Random(3)
    whole = undisturbed(tmp_path / "whole", clips=clips)
    held = f"method.hold={tmp_path / 'hold'}"
    store = frozen(tmp_path, held, clips=clips)
    command = ["run", "--no-score", *overrides(tmp_path, clips=clips), held]
    told = [{}, {"RANK": "1", "WORLD_SIZE": "3"}, {"REFSEG_SHARD": "3", "REFSEG_SHARDS": "4"}]
    local = refseg(*command, "cluster=local", "cluster.shards=2", "cluster.parallel=2", cwd=tmp_path)
    bare = [worker(store, **more) for more in told]
    mine = {process.pid for process in bare}

    def at_work() -> list[int]:
        return [r.owner.pid for r in records(store.root) if not r.end and r.owner.pid in mine]

    wait_for(at_work)
    victim = chance.choice(at_work())
    os.kill(victim, signal.SIGKILL)
    time.sleep(chance.uniform(0, 0.3))
    next(process for process in bare if process.pid != victim).terminate()
    let_go(tmp_path / "hold")
    codes = [ended(process)[0] for process in [*bare, local]]
    assert -signal.SIGKILL in codes
    assert set(codes) <= {0, 1, -signal.SIGKILL, -signal.SIGTERM, os.EX_TEMPFAIL}, codes
    assert ended(worker(store))[0] == 0
    assert lines(store) == lines(whole)
    assert scores(store) == scores(whole)


@pytest.mark.slow
def test_what_failed_is_tried_again_while_the_run_goes_on(tmp_path: Path) -> None:
    clips = 6
    whole = undisturbed(tmp_path / "whole", clips=clips)
    point(tmp_path, clips=clips)
    frame, away = tmp_path / "data/clip0/00000.png", tmp_path / "away.png"
    state = frame.stat()
    frame.rename(away)
    command = ["run", "--no-score", *overrides(tmp_path, clips=clips)]
    first = refseg(*command, f"method.hold={tmp_path / 'hold'}", cwd=tmp_path)
    (store,) = wait_for(lambda: [RunStore(p.parent) for p in tmp_path.glob("runs/*/run.json")])
    wait_for(lambda: len(store.index()) >= 4)
    away.rename(frame)
    assert frame.stat().st_mtime_ns == state.st_mtime_ns
    again = refseg(*command, "--retry-failed", cwd=tmp_path)
    code, told = ended(again)
    assert first.poll() is None, "the first was to be at work still"
    assert code == 0, told
    assert "samples were not tried yet" in told
    assert {f"clip0/{e}" for e in range(3)} <= store.done()
    nothing = refseg(*command, "--retry-failed", cwd=tmp_path)
    assert "no sample has failed" in ended(nothing)[1]
    assert first.poll() is None
    (owner,) = {r.owner.launch for r in records(store.root)} - {submissions(store.root)[0].id}
    assert owner == submissions(store.root)[1].id
    first.terminate()
    assert ended(first)[0] == 130
    assert ended(refseg(*command, cwd=tmp_path))[0] == 0
    assert lines(store) == lines(whole)

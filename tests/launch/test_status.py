"""`refseg status` and `refseg cancel` on runs of this machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.files.store_io import sealed
from refseg_bench.run import workers as asked
from refseg_bench.run.launch import freeze, launch
from refseg_bench.run.shards import planned
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import living, register, submissions
from refseg_bench.run.workers import Desk, Owner, records
from tests.launch.runs import (
    HANGS,
    lines,
    overrides,
    point,
    quiet,
    refseg,
    undisturbed,
    wait_for,
    workers,
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_failed_samples_are_named_with_their_first_line_and_log(tmp_path: Path, capsys) -> None:
    (answer,) = launch([point(tmp_path, method={"fail_on": ["clip1/2"]})], quiet)
    assert main(["status", str(answer.store.root)]) == 0
    told = capsys.readouterr().out
    assert "clip1/2: ValueError: told to fail on clip1/2" in told
    (log,) = (Path(line.split("log: ")[1]) for line in told.splitlines() if "log: " in line)
    assert "Traceback" in log.read_text()
    assert "told to fail on clip1/2" in log.read_text()
    row = next(line for line in told.splitlines() if answer.store.root.name in line)
    assert row.split()[1:4] == ["17", "1", "0"]


def test_a_worker_that_could_not_work_is_told(tmp_path: Path, capsys) -> None:
    every = [f"clip{c}/{e}" for c in range(6) for e in range(3)]
    (answer,) = launch([point(tmp_path, method={"fail_on": every}, max_failures=1)], quiet)
    main(["status", str(answer.store.root)])
    assert "RefsegError: More samples failed than max_failures=1 allows." in capsys.readouterr().out


def test_gpu_hours_are_summed_over_all_tries(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (answer,) = launch([point(tmp_path)], quiet)
    (record,) = records(answer.store.root)
    owner = record.path.read_text().splitlines(keepends=True)[0]
    record.path.write_text(owner + sealed({**asdict(record.end), "seconds": 5400}))
    main(["status", str(answer.store.root)])
    row = next(line for line in capsys.readouterr().out.splitlines() if answer.store.root.name in line)
    assert row.split()[6] == "3.00"


def test_a_run_without_its_dataset_still_has_a_status(tmp_path: Path, capsys) -> None:
    store = undisturbed(tmp_path)
    config = store.config_path.read_text()
    store.config_path.write_text(config.replace("tests.fakes.FakeDataset", "tests.fakes.GoneDataset"))
    assert main(["status", str(tmp_path / "runs")]) == 0
    assert "what is left is unknown" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_command_joins_a_local_run_and_both_are_told(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "whole", clips=8)
    point(tmp_path, clips=8)
    held = [f"method.hold={tmp_path / 'hold'}", "method.meet=2"]
    command = ["run", "--no-score", *overrides(tmp_path, clips=8), *held]
    first = refseg(*command, cwd=tmp_path)
    (store,) = wait_for(lambda: [RunStore(p.parent) for p in tmp_path.glob("runs/*/run.json")])
    wait_for(store.done)
    second = refseg(*command, cwd=tmp_path)
    told = [p.communicate(timeout=HANGS)[1] for p in (first, second)]
    assert "also submitted: cluster=debug" in told[1]
    assert "also submitted meanwhile: cluster=debug" in told[0]
    assert lines(store) == lines(whole)
    assert len({r.owner.launch for r in records(store.root)}) == 2


@pytest.mark.slow
def test_cancel_ends_a_local_run_and_its_shards(tmp_path: Path, capsys) -> None:
    point(tmp_path)
    started = refseg(
        "run", "--no-score", *overrides(tmp_path), f"method.hold={tmp_path / 'hold'}",
        "cluster=local", "cluster.parallel=2", cwd=tmp_path,
    )  # fmt: skip
    (store,) = wait_for(lambda: [RunStore(p.parent) for p in tmp_path.glob("runs/*/run.json")])
    wait_for(store.done)
    assert len(living([store])[store.root]) == 1
    assert main(["cancel", str(tmp_path / "runs")]) == 0
    assert f"interrupted process {started.pid}" in capsys.readouterr().out
    assert started.wait(HANGS) == 130
    wait_for(lambda: not workers(store.root))
    assert submissions(store.root)[-1].state == "over"
    kept = store.done()
    assert 0 < len(kept) < 18
    assert main(["cancel", str(tmp_path / "runs")]) == 0
    assert "nothing works on it" in capsys.readouterr().out


def test_clips_that_another_node_holds_are_named(tmp_path: Path, monkeypatch) -> None:
    store = freeze(point(tmp_path))
    far = replace(Owner.here("far", "far"), host="node9", slurm="77")
    desk = Desk(store.root, far)
    with desk:
        desk.take("clip3")
        kept = desk.record.read_text()
    desk.record.write_text(kept)
    monkeypatch.setattr(asked, "queued", lambda ids: None)
    told: list[str] = []
    (answer,) = launch([point(tmp_path)], told.append)
    assert answer.tally is not None
    assert (answer.tally.done, answer.tally.elsewhere) == (15, 3)
    assert any("3 samples are with SLURM job 77 on node9" in line for line in told)
    assert any("claims" in line for line in told)


def test_what_was_cancelled_has_no_eta_and_nobody_at_work(tmp_path: Path, capsys) -> None:
    store = undisturbed(tmp_path)
    (path,) = store.root.glob("predictions/*.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
    asked_for = point(tmp_path)
    planned(RunStore(store.root), asked_for, quiet)

    def told(*words: str) -> tuple[str, str]:
        assert main(["status", str(store.root), *words]) == 0
        out = capsys.readouterr().out
        row = next(line for line in out.splitlines() if store.root.name in line)
        return row.split()[5], out

    submission = register(store, asked_for.values, "debug", 1)
    with Desk(store.root, Owner.here("job", submission.id)):
        eta, out = told()
        assert eta.count(":") == 2
        assert "nobody works" not in out
        submission.state = "over"
        submission.write(store)
        assert told()[0] == "–"
    with Desk(store.root, Owner.here("joined", submission.id)):
        eta, out = told()
        assert eta.count(":") == 2, "`refseg work` takes up the newest submission, over or not"
        assert "nobody works" not in out
    eta, out = told("--watch", "0.01")  # ends, for nobody works
    assert eta == "–"
    assert f"nobody works on it; this goes on: {store.info().command}" in out
    with Desk(store.root, Owner.here("killed", submission.id)) as desk:
        kept = desk.record.read_text()
    desk.record.write_text(kept)
    eta, out = told()
    assert eta == "–", "a process of this machine is known to be dead at once"
    assert "nobody works on it" in out
    assert "no sign of life" in out
    assert main(["status", "--watch", "0"]) == 2

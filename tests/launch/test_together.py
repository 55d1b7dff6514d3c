"""Rows of one command that processes work on together, as the default run does on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from refseg_bench.cli import main
from refseg_bench.config.compose import Composed, compose
from refseg_bench.errors import ConfigError, TakenOver
from refseg_bench.run import launch as launching
from refseg_bench.run import local
from refseg_bench.run.launch import launch, preview
from refseg_bench.run.shards import Planned, planned
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.run.submissions import submissions
from refseg_bench.run.workers import records
from tests.launch.runs import (
    HANGS,
    environment,
    let_go,
    lines,
    overrides,
    point,
    quiet,
    scores,
    undisturbed,
    wait_for,
    workers,
)

VARIANTS = (1, 2)


def rows(folder: Path, **method: object) -> list[Composed]:
    return [point(folder, method={"variant": variant, **method}) for variant in VARIANTS]


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_processes", lambda runs: 2 if runs else 0)


def test_a_preview_tells_of_the_processes_that_share(tmp_path: Path, two_processes: None) -> None:
    found = preview(rows(tmp_path))
    assert [row["shards"] for row in found["runs"]] == [2, 2]
    assert "2 processes of this machine work on all of it together" in found["notes"]
    assert found["total"]["jobs"] == 0


@pytest.mark.slow
def test_processes_share_all_rows(tmp_path: Path, two_processes: None) -> None:
    there: list[str] = []
    answers = launch(
        rows(tmp_path / "two", hold=str(tmp_path / "hold"), meet=2),
        quiet,
        done=lambda run: there.append(run.store.root.name),
    )
    assert there == [run.store.root.name for run in answers]
    for run, variant in zip(answers, VARIANTS, strict=True):
        assert run.error is None
        assert run.tally is not None
        assert (run.tally.done, run.tally.failed, run.tally.elsewhere) == (18, 0, 0)
        assert lines(run.store) == lines(undisturbed(tmp_path / str(variant), method={"variant": variant}))
        assert run.record.state == "over"
        assert all(record.end and record.end.well for record in records(run.store.root))
    at_work = {record.owner.pid for run in answers for record in records(run.store.root)}
    assert len(at_work) == 2
    assert os.getpid() not in at_work


@pytest.mark.slow
def test_rows_beside_a_run_that_is_complete_are_made(tmp_path: Path, two_processes: None) -> None:
    first, second = rows(tmp_path)
    launch([first], quiet)
    (_, run) = launch([first, second], quiet, lead=True)
    assert run.tally is not None
    assert (run.error, run.tally.done) == (None, 18)


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing(
    tmp_path: Path, two_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, hold = local._start, tmp_path / "hold"
    killed_ones: list[int] = []

    def killed(runs: list[Planned], *words: object) -> object:
        process = start(runs, *words)
        wait_for(lambda: any(r.owner.pid == process.popen.pid for r in records(runs[0].store.root)))
        process.popen.kill()  # it holds the claim of a clip by now, mostly
        killed_ones.append(process.popen.pid)
        if len(killed_ones) == 2:
            let_go(hold)
        return process

    monkeypatch.setattr(local, "_start", killed)
    told: list[str] = []
    answers = launch(rows(tmp_path, hold=str(hold)), told.append)
    assert sum("was killed by SIGKILL" in line for line in told) == 2
    assert [run.tally and run.tally.elsewhere for run in answers] == [0, 0]
    assert all(len(lines(run.store)) == 18 for run in answers)


@pytest.mark.slow
@pytest.mark.parametrize("lead", [False, True])
def test_a_row_that_is_refused_is_refused_in_its_own_words(
    tmp_path: Path, two_processes: None, lead: bool
) -> None:
    every = [f"clip{c}/{e}" for c in range(6) for e in range(3)]
    broken = point(tmp_path, method={"fail_on": every}, max_failures=1)
    other = point(tmp_path, method={"hold": str(tmp_path / "hold")} if lead else {})
    first, second = launch([broken, other], quiet, lead=lead)
    assert str(first.error).startswith("More samples failed than max_failures=1 allows.")
    assert second.error is None
    assert second.record.state == "over"
    if lead:
        assert second.tally is None, "nobody waits for the others to be told of the first"
    else:
        assert second.tally is not None
        assert second.tally.done == 18


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGINT to all", "SIGTERM", "SIGKILL"])
def test_a_command_that_is_ended_leaves_no_process_and_goes_on(tmp_path: Path, end: str) -> None:
    root = tmp_path / end.replace(" ", "")
    words = ["run", "-m", "--no-score", *overrides(root), "method.variant=1,2", f"paths.runs={root}"]
    point(root)
    code = (
        "import sys\n"
        "from refseg_bench.cli import main\n"
        "from refseg_bench.run import launch\n"
        "launch._processes = lambda runs: 2 if runs else 0\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *words, *more],
            cwd=root, env=environment(), text=True, start_new_session=True, stderr=subprocess.PIPE,
        )  # fmt: skip

    first = start(f"method.hold={root / 'hold'}")
    stores = wait_for(
        lambda: [RunStore(p.parent) for p in root.glob("*/run.json")][1:] and list(runs_in(root))
    )
    wait_for(lambda: sum(len(store.done()) for store in stores) >= 2)
    if end == "SIGINT to all":  # as a terminal sends it
        os.killpg(first.pid, signal.SIGINT)
    else:
        os.kill(first.pid, signal.Signals[end])
    told = first.communicate(timeout=HANGS)[1]
    assert first.returncode == (-9 if end == "SIGKILL" else 130), told
    assert "Traceback" not in told
    wait_for(lambda: not any(workers(store.root) for store in stores))
    kept = [store.done() for store in stores]
    assert 2 <= sum(map(len, kept)) < 36
    again = start()
    told = again.communicate(timeout=HANGS)[1]
    assert again.returncode == 0, told
    for store in stores:
        variant = int(store.info().lasting["method"]["variant"])
        whole = undisturbed(tmp_path / f"whole{variant}", method={"variant": variant})
        assert lines(store) == lines(whole)
        assert scores(store) == scores(whole)
        if end != "SIGKILL":
            assert {submission.state for submission in submissions(store.root)} == {"over"}


@pytest.mark.slow
def test_rows_of_one_command_are_what_each_is_alone(tmp_path: Path) -> None:
    """Real models: alone with nothing shared, in one process that shares SAM 2, and in two processes."""
    pytest.importorskip("transformers")
    words = ["limit.clips=2", "limit.expressions=1"]
    decaf = ["method=decaf_tiny", "method.n_frames=3"]
    methods = {
        "decaf": decaf,
        "raw": [*decaf, "method.fusion.contrast=obj_only", "method.fusion.branch=video"],
        "click": ["method=oracle_point", "segmenter=tiny_sam2"],
    }

    def point_of(place: Path, name: str) -> Composed:
        (made,) = compose([*methods[name], *words, f"paths.runs={place}/runs", f"paths.cache={place}/cache"])
        return made

    def predicted(how: str, processes: Callable[[list[Planned]], int]) -> dict[str, object]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launching, "_processes", processes)
            answers = launch([point_of(tmp_path / how, name) for name in methods], quiet)
        assert [run.tally and run.tally.done for run in answers] == [2, 2, 2]
        return {name: lines(run.store) for name, run in zip(methods, answers, strict=True)}

    alone = {}
    for name in methods:
        (run,) = launch([point_of(tmp_path / name, name)], quiet)
        alone[name] = lines(run.store)
        if name == "decaf":
            encoded = counted(run.store)
    assert predicted("shared", lambda runs: 0) == alone
    assert predicted("together", lambda runs: 2) == alone
    shared = {store.root.name: counted(store) for store in runs_in(tmp_path / "shared" / "runs")}
    assert sum(shared.values()) == encoded, "later rows encode no frame again"


def counted(store: RunStore) -> int:
    """Passes of the image encoder that a run's processes tell of."""
    records = [json.loads(path.read_text()) for path in (store.root / "env").glob("*.json")]
    return sum(record["segmenter"]["counters"]["frame_encodings"] for record in records)


@pytest.mark.slow
def test_only_light_rows_get_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFSEG_THREADS", raising=False)
    monkeypatch.setattr(launching.env, "cores", lambda: 4)

    def run(*words: str) -> Planned:
        (found,) = compose([*words, f"paths.runs={tmp_path}"])
        return planned(RunStore(found.path), found, quiet)

    shipped = run("method=lexical", "segmenter=tiny_sam2")
    assert launching._processes([shipped]) == shipped.samples // launching._WORTH == 2
    assert launching._processes([shipped, run(), run("method=refam_tiny")]) == 4
    few = run("method=lexical", "segmenter=tiny_sam2", "limit.clips=2", "limit.expressions=3")
    assert launching._processes([few]) == 0
    assert launching._processes([run("method=empty")]) == 0
    for words in (
        ["method=lexical", "segmenter=sam2_hf"],
        ["method=lexical", "segmenter=tiny_sam2", "segmenter.device=auto"],
        ["method=lexical", "segmenter=tiny_sam2", "cluster.shards=1"],
        ["method=mllm_box", "backbone=chat", "backbone.model=m", "segmenter=tiny_sam2"],
    ):
        assert launching._processes([shipped, run(*words)]) == 0, words
    foreign = replace(shipped, values={**shipped.values, "method": point(tmp_path).values["method"]})
    assert launching._processes([foreign]) == 0, "nobody knows what it loads"
    monkeypatch.setenv("REFSEG_THREADS", "2")
    assert launching._processes([shipped]) == 2
    monkeypatch.setenv("REFSEG_THREADS", "4")
    assert launching._processes([shipped]) == 0


def test_rows_are_looked_at_while_the_last_one_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look in which a row was scored is long; the next one, and the end, don't wait twenty times that."""
    (run,) = launching.freeze_for_workers([point(tmp_path)], quiet)

    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def look() -> bool:
        sleep(1.0)
        return True

    process = SimpleNamespace(returncode=0, poll=lambda: 0 if now > 2.0 else None)
    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now))
    monkeypatch.setattr(local, "_start", lambda *_: SimpleNamespace(shard=0, popen=process, device=None))
    assert local.together([run], look) == []
    assert now < 15


def test_the_worst_end_of_several_runs_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {"a": TakenOver("Taken over."), "b": 0, "c": ConfigError("Refused.")}

    def work(args: object, run: Path, launch: str | None) -> int:
        end = ends[run.name]
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr("refseg_bench.commands.work._work", work)
    for runs, code in (("ab", os.EX_TEMPFAIL), ("bc", 2), ("bca", os.EX_TEMPFAIL)):
        assert main(["work", *(str(tmp_path / name) for name in runs)]) == code

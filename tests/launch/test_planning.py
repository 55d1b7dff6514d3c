from __future__ import annotations

from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.config.compose import Cluster, compose
from refseg_bench.errors import ConfigError, DataError, RefsegError
from refseg_bench.run import local, slurm
from refseg_bench.run.launch import freeze, freeze_for_workers, launch, preview, share_captures
from refseg_bench.run.loop import work_on
from refseg_bench.run.shards import Planned, auto_shards, planned, queue, share
from refseg_bench.run.store import RunStore
from refseg_bench.run.submissions import living, submissions
from refseg_bench.types import Clip, Expression
from tests.launch.runs import point, quiet


def work(*sizes: tuple[int, int]):
    return [
        (Clip(f"c{i}", (Path("x"),) * t, ("x",) * t, (1, 1)), tuple(Expression(str(e), "") for e in range(n)))
        for i, (t, n) in enumerate(sizes)
    ]


def plan_of(folder: Path, **options) -> Planned:
    composed = point(folder, **options)
    return planned(RunStore(composed.path), composed, quiet)


def test_auto_shards_aim_at_the_wall_time() -> None:
    # 4 clips × 10 frames × 5 expressions × 3 s = 600 s
    jobs = work(*[(10, 5)] * 4)
    assert auto_shards(jobs, 3.0, target_minutes=10) == 1
    assert auto_shards(jobs, 3.0, target_minutes=5) == 2
    assert auto_shards(jobs, 3.0, target_minutes=4) == 3
    assert auto_shards(jobs, 3.0, target_minutes=0.1) == 4, "a clip is not split"


def test_auto_shards_measure_the_run_or_one_like_it(tmp_path: Path) -> None:
    told: list[str] = []
    composed = point(tmp_path, cluster={"kind": "local", "shards": "auto"})
    assert planned(RunStore(composed.path), composed, told.append).shards == 6
    assert "nothing measured yet" in told[0]
    launch([point(tmp_path, method={"variant": 1, "seconds": 0.02})], quiet)
    # 18 samples of two frames at 0.02 s: 0.4 s of work
    for minutes, shards in ((1.0, 1), (0.2 / 60, 3)):
        like = plan_of(tmp_path, cluster={"kind": "local", "shards": "auto", "target_minutes": minutes})
        assert abs(like.shards - shards) <= (0 if shards == 1 else 2)


def test_an_idle_shard_takes_the_last_clips_of_the_others() -> None:
    parts = share(work(*[(1, 1)] * 9), 3)
    for shard in range(3):
        order = queue(parts, shard)
        assert order[: len(parts[shard])] == parts[shard]
        assert sorted(c.id for c, _ in order) == sorted(c.id for part in parts for c, _ in part)
        others = {parts[s][-1][0].id for s in range(3) if s != shard}
        assert {c.id for c, _ in order[len(parts[shard]) :][:2]} == others


def test_shards_have_sensible_defaults(tmp_path: Path) -> None:
    assert plan_of(tmp_path).shards == 1
    assert plan_of(tmp_path, cluster={"kind": "local", "gpus": 4}).shards == 4
    assert plan_of(tmp_path, cluster={"kind": "local", "shards": 99}).shards == 6


def test_each_local_process_gets_a_gpu_of_its_own() -> None:
    assert local.devices(Cluster(gpus=3), {}) == ["0", "1", "2"]
    assert local.devices(Cluster(gpus=2), {"CUDA_VISIBLE_DEVICES": "4,GPU-abc,7"}) == ["4", "GPU-abc"]
    with pytest.raises(ConfigError, match="names 1"):
        local.devices(Cluster(gpus=2), {"CUDA_VISIBLE_DEVICES": "4"})


def test_runs_with_one_capture_share_it(tmp_path: Path) -> None:
    runs = [plan_of(tmp_path, method={"variant": v}) for v in range(3)]
    other = plan_of(tmp_path, clips=4, method={"variant": 9})
    shared = share_captures([*runs, other])
    assert len(shared) == 1
    assert {run.capture for run in runs} == set(shared)
    assert other.capture is None, "other clips, another capture"


def test_what_cannot_change_a_prediction_is_taken_from_the_last_command(tmp_path: Path) -> None:
    (first,) = launch([point(tmp_path, clips=2, method={"batch_size": 4, "fits": 0})], quiet)
    assert first.tally is not None
    assert first.tally.failed == 6
    (again,) = launch([point(tmp_path, clips=2, method={"batch_size": 2, "fits": 2})], quiet)
    assert again.store.root == first.store.root
    assert again.tally is not None
    assert again.tally.done == 6
    (no_op,) = launch([point(tmp_path, clips=2)], quiet)
    assert no_op.submission is None
    made = submissions(first.store.root)
    assert [s.state for s in made] == ["over", "over"]
    assert living([first.store]) == {first.store.root: []}


def test_one_run_that_cannot_work_does_not_stop_the_others(tmp_path: Path) -> None:
    every = [f"clip{c}/{e}" for c in range(6) for e in range(3)]
    broken = point(tmp_path, method={"fail_on": every}, max_failures=3)
    first, second = launch([broken, point(tmp_path)], quiet)
    assert "max_failures=3" in str(first.error)
    assert second.error is None
    assert second.tally is not None
    assert second.tally.done == 18


@pytest.mark.slow
def test_max_failures_counts_all_shards_of_a_submission(tmp_path: Path) -> None:
    every = [f"clip{c}/{e}" for c in range(6) for e in range(3)]
    cluster = {"kind": "local", "shards": 3, "parallel": 1}
    composed = point(tmp_path, method={"fail_on": every}, max_failures=4, cluster=cluster)
    (answer,) = launch([composed], quiet)
    assert answer.error is not None
    assert len(list(answer.store.failures())) == 5, "the other shards stop at once"


def test_a_preview_writes_nothing(tmp_path: Path) -> None:
    (run,) = preview([point(tmp_path)])["runs"]
    assert (run["samples"], run["clips"], run["shards"]) == (18, 6, 1)
    assert not (tmp_path / "runs").exists()


def test_the_score_job_goes_by_the_present_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols and settings may be others than those first frozen."""
    monkeypatch.setattr(slurm, "check", lambda cluster: None)
    monkeypatch.setattr(slurm, "submit_array", lambda *args, **options: "1")
    commands: list[list[str]] = []
    monkeypatch.setattr(slurm, "submit_command", lambda *args: commands.append(args[2]) or "2")
    freeze(point(tmp_path))
    now = {"protocols": ["sa2va-mevis"], "score": {"bootstrap": 7}, "cluster": {"kind": "slurm"}}
    (answer,) = launch([point(tmp_path, **now)], quiet)
    work_on(answer.store)
    assert main(commands[0]) == 0
    (result,) = answer.store.results().values()
    assert result.protocol.startswith("sa2va-mevis@")
    assert result.details["interval"]["resamples"] == 7


def test_what_sbatch_refuses_leaves_no_folder_and_hides_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> str:
        raise RefsegError("sbatch refused it.")

    monkeypatch.setattr(slurm, "check", lambda cluster: None)
    monkeypatch.setattr(slurm, "submit_array", refuse)
    asked = point(tmp_path, cluster={"kind": "slurm"})
    (answer,) = launch([asked], quiet)
    assert answer.error is not None
    assert not asked.path.exists()
    freeze(asked)
    (asked.path / "notes.txt").write_text("mine")
    launch([asked], quiet)
    assert (asked.path / "notes.txt").exists(), "it was there before"
    freeze_for_workers([asked], quiet)
    launch([asked], quiet)
    assert asked.path.exists(), "others made it"
    monkeypatch.setattr(slurm, "submit_array", lambda *args, **options: "7")
    monkeypatch.setattr(slurm, "submit_command", refuse)
    told: list[str] = []
    (answer,) = launch([asked], told.append)
    assert answer.error is None
    assert "no score job, the work is submitted all the same: sbatch refused it." in told[0]
    (last,) = submissions(asked.path)[-1:]
    assert (last.jobs, last.state) == ({"work": "7"}, "open"), "`refseg cancel` must find it"


def test_a_data_set_that_is_not_there_leaves_a_run_as_it_was(tmp_path: Path) -> None:
    words = ["method=empty", "limit.clips=1", f"paths.runs={tmp_path}"]
    (answer,) = launch(compose(words), quiet)
    before = answer.store.config_path.read_bytes()
    (elsewhere,) = compose([*words, f"dataset.root={tmp_path}/nowhere"])
    assert elsewhere.path == answer.store.root
    (other,) = compose(["method=full_frame", *words[1:]])
    with pytest.raises(DataError):
        launch([other, elsewhere], quiet)
    assert answer.store.config_path.read_bytes() == before
    assert not other.path.exists()

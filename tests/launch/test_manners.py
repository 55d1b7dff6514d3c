"""What the launcher refuses, before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refseg_bench import env
from refseg_bench.config.compose import Cluster
from refseg_bench.errors import MissingExtra, RefsegError
from refseg_bench.run import slurm
from refseg_bench.run.launch import launch
from tests.launch.runs import point, quiet


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if SLURM's clients were installed."""
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.usefixtures("at_hand")
def test_a_dirty_working_tree_is_refused_unless_allowed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(slurm, "changes", lambda: ["refseg_bench/run/loop.py"])
    with pytest.raises(RefsegError, match=r"refseg_bench/run/loop\.py") as refused:
        launch([point(tmp_path, cluster={"kind": "slurm"})], quiet)
    assert "cluster.allow_dirty=true" in str(refused.value)
    assert not (tmp_path / "runs").exists()
    slurm.check(Cluster(kind="slurm", allow_dirty=True))


def test_changes_are_those_of_the_code(tmp_path: Path, monkeypatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
            check=True, capture_output=True,
        )  # fmt: skip

    (tmp_path / "refseg_bench").mkdir()
    (tmp_path / "refseg_bench/a.py").write_text("1\n")
    git("init")
    git("add", "-A")
    git("commit", "-m", "x")
    monkeypatch.setattr(env, "HOME", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert slurm.changes() == []
    (tmp_path / "refseg_bench/a.py").write_text("2\n")
    (tmp_path / "refseg_bench/b.py").write_text("3\n")
    assert slurm.changes() == ["refseg_bench/a.py", "refseg_bench/b.py"]
    (tmp_path / "data").mkdir()
    for number in range(20):
        (tmp_path / f"data/{number}.jpg").write_text("large")
    told: list[str] = []
    copy = slurm.snapshot(tmp_path / "copy", told.append)
    copied = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert copied == {"refseg_bench/a.py", ".refseg_origin.json"}
    assert (copy / "refseg_bench/a.py").read_text() == "2\n"
    assert len(told) == 1
    assert all(name in told[0] for name in ("data/", "notes.txt", "refseg_bench/b.py"))


def test_no_slurm_and_no_submitit_are_told(monkeypatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(RefsegError, match="no SLURM here"):
        slurm.check(Cluster(kind="slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtra, match=r"refseg-bench\[slurm\]"):
        slurm.check(Cluster(kind="slurm"))

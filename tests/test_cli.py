from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.commands import COMMANDS
from refseg_bench.config.components import open_dataset
from refseg_bench.errors import ScoreError
from refseg_bench.report.compare import compare, verdicts
from refseg_bench.run.store import RunStore, runs_in


def refseg(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refseg_bench", *args], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_run_score_report_then_a_no_op(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "run",
        "-m",
        "method=oracle,empty,full_frame",
        "limit.clips=3",
        "score.bootstrap=50",
        "score.confidence=0.8",
        "score.jobs=1",
    ]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "oracle" in told.out
    assert "rvos-expr@1" in told.out
    by_type = told.out[told.out.index("J&F by type") : told.out.index("intervals clustered")].splitlines()
    kinds = next(line.split() for line in by_type if "method" in line)[1:]
    shown = {line.split()[0]: line.split()[1:] for line in by_type if line.split()}
    for method in ("oracle", "empty", "full_frame"):
        assert shown[method].pop(0) == "(limit.clips=3)"
    assert "oracle: the truth" in told.out
    data = open_dataset("shapes")
    assert sum(map(int, shown["n"])) == sum(len(data.expressions(clip)) for clip in data.clips()[:3])
    assert set(shown["oracle"]) == {"100.0"}
    assert max(map(float, shown["empty"])) < 50  # right where nothing of the target is in sight
    assert len(kinds) == len(shown["full_frame"]) > 2
    stores = {store.root.name.partition("-")[0]: store for store in runs_in(Path("runs"))}
    # What sees the truth is held against nothing; the interval of a decided line leaves out 0.
    (line,) = verdicts(stores["full_frame"], [stores["oracle"], stores["empty"]])
    assert re.fullmatch(
        r"full_frame \(limit.clips=3\) over empty \(limit.clips=3\): "
        r"[+-]\d+\.\d J&F \[.+, .+\], (ahead|behind|not decided)",
        line,
    )
    low, high = (float(end) for end in re.findall(r"\[(.+), (.+)\]", line)[0])
    assert line.endswith("ahead" if low > 0 else "behind" if high < 0 else "not decided")
    assert verdicts(stores["empty"], [stores["full_frame"]])[0].startswith(
        "empty (limit.clips=3) over full_frame "
    )
    # All intervals of a command are made alike, and say how.
    compared = compare(stores["empty"], stores["full_frame"])
    assert (compared.level, compared.overall.differences["J&F"].p * 51 % 1) == (0.8, pytest.approx(0))
    assert main(["compare", str(stores["empty"].root), str(stores["full_frame"].root)]) == 0
    assert "80 % intervals" in capsys.readouterr().out
    assert main(["score", str(stores["empty"].root)]) == 0
    assert "80 % intervals" in capsys.readouterr().out
    shutil.copytree(stores["full_frame"].root, in_tmp / "other")
    record = json.loads((in_tmp / "other/run.json").read_text())
    record["choices"]["dataset"] = "other"
    del record["check"]
    (in_tmp / "other/run.json").write_text(json.dumps(record))
    with pytest.raises(ScoreError, match="of different data: shapes, valid_u, and other, valid_u"):
        compare(stores["empty"], RunStore(in_tmp / "other"))
    before = {p: p.stat().st_mtime_ns for p in in_tmp.glob("runs/*/predictions/*")}
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.err.count("complete: nothing left to predict") == 3
    assert {p: p.stat().st_mtime_ns for p in in_tmp.glob("runs/*/predictions/*")} == before

    assert main(["report", "runs", "--format", "json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert {m["value"] for m in rows["oracle"]["metrics"].values()} == {1.0}
    assert rows["full_frame"]["metrics"]["F"] == rows["empty"]["metrics"]["F"]
    assert rows["oracle"]["failed"] == rows["oracle"]["missing"] == 0
    for form, sign in [("md", "| --- |"), ("latex", r"\toprule"), ("csv", "run,method,dataset")]:
        assert main(["report", "runs", "--format", form, "-o", "table.txt"]) == 0
        assert sign in (in_tmp / "table.txt").read_text()
    assert main(["status"]) == 0
    assert "oracle-shapes" in capsys.readouterr().out
    assert main([*command, "score.bootstrap=0"]) == 0
    (line,) = verdicts(stores["full_frame"], [stores["empty"]])
    assert line.endswith("J&F without an interval")


def test_an_edited_yaml_changes_nothing_in_a_frozen_run(in_tmp: Path) -> None:
    from refseg_bench.config import compose as configs
    from refseg_bench.run.launch import freeze
    from refseg_bench.run.loop import work_on

    (point,) = configs.compose(["method=random_point", "method=empty", "limit.clips=1"])
    store = freeze(point)
    text = store.config_path.read_text()
    # The same run composed from other files: the folder keeps what was frozen first.
    changed = configs.Composed(
        {**point.values, "keep_maps": False}, point.name, point.digest, point.overrides, point.choices
    )
    assert freeze(changed).config_path.read_text() == text
    assert work_on(store).failed == 0
    assert store.config_path.read_text() == text


def test_an_incomplete_run_is_not_scored_unless_asked(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "method=empty", "limit.clips=2", "--no-score"]) == 0
    (path,) = in_tmp.glob("runs/*/predictions/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    capsys.readouterr()
    assert main(["score", "runs", "-j", "1"]) == 2
    told = capsys.readouterr().err
    assert "1 missing" in told
    assert "--partial" in told
    assert not list(in_tmp.glob("runs/*/scores/*"))
    assert main(["score", "runs", "-j", "1", "--partial"]) == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["status", "nowhere"], "No run folder here"),
        (["report", "nowhere"], "No run folder here"),
        (["score", "nowhere"], "No run folder here"),
        (["run", "method=nothing"], "nothing"),
    ],
)
def test_wrong_input_is_one_clear_error(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], args: list[str], told: str
) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = refseg("--version", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("refseg ")
    assert "torch" not in refseg("run", "--cfg", "job", "method=empty", cwd=tmp_path).stderr


def test_options_may_stand_between_overrides(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--cfg", "job", "method=empty", "-m", "seed=1,2"]) == 0
    assert capsys.readouterr().out.count("# empty-shapes-") == 2
    with pytest.raises(SystemExit) as refused:
        main(["run", "method=empty", "--no-such-option"])
    assert refused.value.code == 2


def test_ctrl_c_while_a_command_is_imported_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["status"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_is_imported_before_ctrl_c_is_listened_to():
    code = "import sys; old = set(sys.modules); import refseg_bench.cli; print(*set(sys.modules) - old)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) <= {"refseg_bench", "refseg_bench.cli", "__future__"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_the_standard_output_is_told():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "refseg_bench", "data", "list"]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == 2
    assert "disk is full" in told.stderr
    assert "Traceback" not in told.stderr
    assert "ignored" not in told.stderr


def test_a_closed_pipe_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m refseg_bench data list | true; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert told.stderr == ""


@pytest.mark.parametrize("word", ["--help", "--version", "-v", "nonsense"])
def test_no_command_is_imported_before_one_is_named(word: str, tmp_path: Path) -> None:
    """NumPy and Hydra alone take five times the 0.2 s that `refseg --help` may."""
    code = (
        "import sys, atexit\n"
        "heavy = {'numpy', 'hydra', 'rich', 'torch'}\n"
        "atexit.register(lambda: print(*heavy & set(sys.modules)))\n"
        f"from refseg_bench.cli import main\nmain([{word!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == ""
    assert done.returncode == (0 if word in ("--help", "--version") else 2)


def test_help_tells_of_every_command_that_people_start(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"refseg {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {about}" in told for name, about in COMMANDS.items() if about)

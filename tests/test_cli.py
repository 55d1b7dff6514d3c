from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_bench.cli import main, parser
from refseg_bench.commands import COMMANDS
from refseg_bench.config.components import open_dataset
from refseg_bench.errors import ScoreError
from refseg_bench.files.store_io import sealed
from refseg_bench.report.compare import compare, verdicts
from refseg_bench.report.html import write_report
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.types import encode_rle
from tests.datasets.conftest import video
from tests.launch.runs import HANGS, environment
from tests.quick import quick_first
from tools.writers import write_meta_expressions_set


def refseg(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refseg_bench", *args], cwd=cwd, capture_output=True, text=True, timeout=HANGS
    )


def written(folder: Path) -> dict[Path, int]:
    """Predictions, scores and pages below a folder, and when they were written."""
    found = [*folder.glob("runs/*/predictions/*"), *folder.glob("runs/*/scores/*/*")]
    found += [path for path in folder.glob("runs/**/report*/**/*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in found}


def test_a_complete_run_is_scored_again_where_something_has_changed(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_meta_expressions_set(Path("data/mevis"), "valid_u", [video()])
    command = ["run", "dataset=mevis", "method=full_frame", "score.bootstrap=20", "score.jobs=1"]

    def scored(*words: str) -> float:
        assert main([*command, *words]) == 0
        (store,) = runs_in(Path("runs"))
        return store.results()["rvos-expr@1"].metrics["J"].value

    first = scored()
    before = written(in_tmp)
    assert any(path.name == "index.html" for path in before)
    assert scored() == first
    assert written(in_tmp) == before
    # The truth, then what a result says of itself, then a file of it, then the pages.
    masks = json.loads(Path("data/mevis/valid_u/mask_dict.json").read_text())
    masks["0"] = masks["1"] = [
        {**mask, "counts": encode_rle(np.ones((24, 32), bool)).decode()} for mask in masks["0"]
    ]
    Path("data/mevis/valid_u/mask_dict.json").write_text(json.dumps(masks))
    assert scored() == 1 > first
    (store,) = runs_in(Path("runs"))
    assert store.results()["rvos-expr@1"].details["interval"]["resamples"] == 20
    scored("score.bootstrap=30")
    assert store.results()["rvos-expr@1"].details["interval"]["resamples"] == 30
    (table,) = in_tmp.glob("runs/*/scores/*/samples.parquet")
    table.write_bytes(b"")
    assert scored() == 1
    assert table.stat().st_size > 100
    (page,) = in_tmp.glob("runs/*/report/index.html")
    shutil.rmtree(page.parent)
    scored()
    assert page.is_file()

    def killed(*words: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("refseg_bench.report.html.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write_report([store], page.parent)
    scored()
    assert "not finished" not in page.read_text("utf-8")


@pytest.mark.slow
def test_run_score_report_then_a_no_op(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "run",
        "-m",
        "method=oracle,empty,full_frame",
        "limit.clips=2",
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
        assert shown[method].pop(0) == "(limit.clips=2)"
    assert "oracle: the truth" in told.out
    data = open_dataset("shapes")
    assert sum(map(int, shown["n"])) == sum(len(data.expressions(clip)) for clip in data.clips()[:2])
    assert set(shown["oracle"]) == {"100.0"}
    assert max(map(float, shown["empty"])) < 50  # right where nothing of the target is in sight
    assert len(kinds) == len(shown["full_frame"]) > 2
    stores = {store.root.name.partition("-")[0]: store for store in runs_in(Path("runs"))}
    # What sees the truth is held against nothing; the interval of a decided line leaves out 0.
    (line,) = verdicts(stores["full_frame"], [stores["oracle"], stores["empty"]])
    assert re.fullmatch(
        r"full_frame \(limit.clips=2\) over empty \(limit.clips=2\): "
        r"[+-]\d+\.\d J&F \[.+, .+\], (ahead|behind|not decided)",
        line,
    )
    low, high = (float(end) for end in re.findall(r"\[(.+), (.+)\]", line)[0])
    assert line.endswith("ahead" if low > 0 else "behind" if high < 0 else "not decided")
    assert verdicts(stores["empty"], [stores["full_frame"]])[0].startswith(
        "empty (limit.clips=2) over full_frame "
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
    record["lasting"]["dataset"]["name"] = "other"
    del record["check"]
    (in_tmp / "other/run.json").write_text(sealed(record))
    with pytest.raises(ScoreError, match="of different data: shapes, valid_u, and other, valid_u"):
        compare(stores["empty"], RunStore(in_tmp / "other"))
    before = written(in_tmp)
    assert len(before) > 20
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.err.count("complete: nothing left to predict") == 3
    assert again.out == told.out
    assert written(in_tmp) == before

    assert main(["report", "runs", "--format", "json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert {m["value"] for m in rows["oracle"]["metrics"].values()} == {1.0}
    assert rows["full_frame"]["metrics"]["F"] == rows["empty"]["metrics"]["F"]
    assert rows["oracle"]["failed"] == rows["oracle"]["missing"] == 0
    for form, sign in [("md", "| --- |"), ("latex", r"\toprule"), ("csv", "run,method,dataset")]:
        assert main(["report", "runs", "--format", form, "-o", "table.txt"]) == 0
        assert sign in (in_tmp / "table.txt").read_text()
        end = {"latex": "tex"}.get(form, form)
        assert main(["report", "runs", "-o", f"table.{end}"]) == 0
        assert (in_tmp / f"table.{end}").read_text() == (in_tmp / "table.txt").read_text()
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["status"]) == 0
    title, row = (
        line for line in capsys.readouterr().out.splitlines() if "oracle-" in line or "done" in line
    )
    heads = ("run", "done", "failed", "left", "s/sample", "ETA", "GPU h", "peak MiB")
    assert title.split() == " ".join(heads).split()
    assert row.split()[0] == stores["oracle"].root.name
    assert "…" not in row
    monkeypatch.delenv("COLUMNS")
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
    assert "see `refseg run --help`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "report --html --frames 0",
        "report --side=-1",
        "score -j=-1",
        "status --failures=-1",
        "heads --best 0 x=1",
        "compare a b --most -1",
        "data verify shapes --first -1",
        "data show shapes a --frames 0",
        "demo v x --columns 0",
        "demo v x --frames 0",
        "doctor segmenter=grabcut --size 0 3",
        "doctor segmenter=grabcut --expressions 1e3",
    ],
)
def test_a_number_that_can_not_be_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    assert refused.value.code == 2
    assert "is no whole number from" in capsys.readouterr().err


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


def test_closed_streams_take_no_file_of_the_work(in_tmp: Path) -> None:
    """Else the first file that is opened is where all output goes, that of libraries too."""
    code = """
import os, sys
from refseg_bench.cli import main
sys.argv[1:] = ["--version"]
try:
    main()
except SystemExit:
    own = open("own", "xb", 0)
    print("said", flush=True)
    os.write(2, b"warned")
    own.write(b"1")
"""
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code])
        assert (done.returncode, Path("own").read_bytes()) == (0, b"1"), closed
        Path("own").unlink()


def test_what_an_encoding_lacks_is_escaped() -> None:
    words = [sys.executable, "-m", "refseg_bench", "run", "-h"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=ascii_only, capture_output=True, check=True)
    told = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "utf-8"}, capture_output=True)
    assert not told.stdout.isascii()
    assert done.stdout.isascii()


def test_a_folder_that_is_gone_is_told(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = in_tmp / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert main(["data", "list"]) == 2
    assert "The current folder is no longer there." in capsys.readouterr().err


@pytest.mark.parametrize("words", [["data", "list"], ["run", "--cfg", "job"], ["-h"]])
def test_who_is_not_read_ends_as_other_programs_do(words: list[str]) -> None:
    """A run that `| head` cut short is not done; the tables of rich have an ending of their own."""
    read, write = os.pipe()
    os.close(read)
    told = subprocess.run(
        [sys.executable, "-m", "refseg_bench", *words], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (told.returncode, told.stderr) == (141, "")


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


@pytest.mark.slow
def test_scoring_id_maps_loads_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported is most of a short command's CPU time."""
    from PIL import Image

    monkeypatch.delenv("REFSEG_SEARCHPATH")  # the tests' own
    for frame in range(3):
        path = tmp_path / "maps" / "clip" / f"{frame}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("P", (9, 9), frame).save(path)
    left_out = {"PIL", "cv2", "hydra", "omegaconf", "pandas", "rich", "scipy", "tomllib"}
    left_out |= {f"refseg_bench.{name}" for name in ("datasets.masks", "report", "run")}
    left_out |= {f"refseg_bench.scoring.protocols.{name}" for name in ("image", "rvos", "revos")}
    words = "score --dataset id_maps --root maps --predictions maps --protocol vosb"
    assert loaded(words, left_out, tmp_path) == ""


def loaded(words: str, among: set[str], folder: Path) -> str:
    """Which of some modules a command loads."""
    code = f"assert main({words.split()!r}) == 0\nprint(*{among!r} & set(sys.modules))"
    code = f"import sys\nfrom refseg_bench.cli import main\n{code}"
    told = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout.splitlines()[-1]


@pytest.mark.slow
def test_scoring_run_lengths_loads_no_more_than_it_needs(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFSEG_SEARCHPATH")
    write_meta_expressions_set(Path("data/mevis"), "valid_u", [video()])
    masks = json.loads(Path("data/mevis/valid_u/mask_dict.json").read_text())
    answers = [{"video_id": video().name, "expressions": dict.fromkeys("01", masks["0"])}]
    Path("answers.json").write_text(json.dumps(answers))
    words = "score --dataset mevis --predictions answers.json --protocol rvos-expr"
    assert main([*words.split(), "--save"]) == 0
    (store,) = runs_in(Path("runs"))
    left_out = {
        "antlr4",
        "attr",
        "concurrent.futures",
        "cv2",
        "hydra",
        "omegaconf",
        "pandas",
        "scipy",
        "torch",
    }
    left_out |= {f"refseg_bench.{name}" for name in ("backbones", "methods", "segmenters", "report")}
    left_out |= {"rich", "safetensors", "refseg_bench.scoring.protocols.image"}
    assert loaded(words, left_out | {"pyarrow", "refseg_bench.run"}, in_tmp) == ""
    assert loaded(f"score {store.root}", left_out, in_tmp) == ""


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


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--cfg", "job"], ["--dry"]])
def test_what_only_tells_loads_no_model_library(
    words: list[str], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFSEG_SEARCHPATH")
    code = (
        "import sys\nfrom refseg_bench.cli import main\n"
        f"assert main(['run', 'limit.clips=1', *{words!r}, '--json', 'out.json']) == 0\n"
        "print(*{'torch', 'transformers', 'diffusers', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stderr
    found = json.loads(Path("out.json").read_text())
    if words == ["--dry"]:
        assert found["total"]["runs"] == len(found["runs"]) > 1
        assert {told["here"] for told in found["weights"].values()} == {True}
    else:
        ((folder, values),) = found.items()
        assert folder.startswith(f"{values['name'] or 'decaf_tiny-shapes'}-")
    assert not list(in_tmp.glob("runs"))


def test_every_command_writes_json(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What scripts read says the same as the screen."""

    def told(*words: str, code: int = 0) -> Any:
        Path("out.json").unlink(missing_ok=True)
        assert main([*words, "--json", "out.json"]) == code
        return json.loads(Path("out.json").read_text("utf-8"))

    run = ["run", "-m", "method=oracle,empty", "limit.clips=1", "score.bootstrap=0", "score.jobs=1"]
    rows = told(*run, "--no-html")
    assert {(row["method"], row["n"] > 0) for row in rows} == {("oracle", True), ("empty", True)}
    assert told("report", "runs") == rows
    first, second = (str(store.root) for store in runs_in(Path("runs")))
    compared = told("compare", first, second)
    assert compared["overall"]["differences"]["J"]["units"] == rows[0]["n"]
    assert compared["protocol"] == "rvos-expr@1"
    assert told("score", first)["rvos-expr"]["n"] == rows[0]["n"]
    (row, _) = told("status")
    assert (row["done"], row["failed"], row["left"], row["working"]) == (rows[0]["n"], 0, 0, False)
    assert told("cancel", "runs") == {first: [], second: []}
    assert told("data", "list")["shapes"]["public"] == ["valid_u"]
    assert told("data", "verify", "photos")["val"]["ok"] is True
    (need,) = told("models", "list", "segmenter=tiny_sam2")
    assert len(need["here"]) == len(need["weights"]) == 1
    (missing,) = told("models", "list", "segmenter=sam2", code=1)
    assert missing["here"] == [None]
    with zipfile.ZipFile("empty.zip", "w"):
        pass
    checked = told("submission", "--check", "empty.zip", code=1)
    assert checked["ok"] is False
    assert checked["problems"]
    (frozen,) = told("run", "--freeze", "method=full_frame", "limit.clips=1")
    assert (Path(frozen["run"]).is_dir(), frozen["samples"], frozen["shards"]) == (True, rows[0]["n"], 1)
    for words in (["-o", "rows.md"], ["--html"], ["--video", "x"], ["--format", "csv"]):
        assert main(["report", first, "--json", "out.json", *words]) == 2
    with pytest.raises(SystemExit):
        main(["run", "--json"])
    assert main(["run", "--cfg", "job", "--json", "nowhere/out.json"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "offered"),
    quick_first(
        [
            ("refseg rep", ["report"]),
            ("refseg run method=decaf_", ["decaf_tiny"]),
            ("refseg run --no-s", ["--no-score"]),
            ("refseg run -m data", ["dataset="]),
            ("refseg score --dataset mevis_", ["mevis_v2"]),
            ("refseg data verify mevis_", ["mevis_v2"]),
            ("refseg run method=decaf_t", []),
            ("refseg status runs/le", ["runs/lexical-1/"]),
        ],
        2,
    ),
)
def test_a_shell_is_told_what_may_follow(in_tmp, monkeypatch, line, offered):
    (in_tmp / "runs" / "lexical-1").mkdir(parents=True)
    (in_tmp / "runs" / "lexical-1" / "run.json").touch()
    if not offered:
        monkeypatch.setenv("REFSEG_SEARCHPATH", "pkg://no_such_package.conf")
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_IFS": "|"}
    asked |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": "told"}
    asked |= {"_ARGCOMPLETE_COMP_WORDBREAKS": " ="}
    done = subprocess.run(
        [sys.executable, "-m", "refseg_bench"], env=environment(**asked), capture_output=True, text=True
    )
    assert done.stderr == ""
    assert [one.strip() for one in (in_tmp / "told").read_text().split("|")] == (offered or [""])


@pytest.mark.parametrize(
    "command", ["data list", "data prepare", "data verify", "data show", "models list", "models get",
                *(name for name in COMMANDS if name not in ("data", "models", "work"))]
)  # fmt: skip
def test_every_command_that_tells_something_has_json(capsys, command):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--json" in capsys.readouterr().out


@pytest.mark.slow
def test_what_small_commands_tell_is_there_as_json(in_tmp, capsys):
    def told(*words: str) -> Any:
        assert main([*words, "--json", "told.json"]) == 0
        return json.loads(Path("told.json").read_text())

    shown = told("data", "show", "photos", "1")
    assert Path(shown["file"]).is_file()
    assert shown["text"]
    assert len(shown["frames"]) == 1
    name = shown["file"]
    found = told("demo", name, "the red one", "--frames", "1")
    assert 0 <= found["share"] <= 1
    assert [Path(path).name for path in found["files"]] == ["picture.png"]
    ((repo, path),) = told("models", "get", "segmenter=tiny_sam2").items()
    assert repo == "shipped:tiny_sam2"
    assert Path(path).is_dir()
    assert main(["demo", name, "the red one", "--json", "no/such/told.json"]) == 2
    assert main(["data", "show", "photos", "1", "--json", "no/such/told.json"]) == 2


def test_several_values_without_m_are_told_how_a_sweep_is_asked_for(capsys):
    assert main(["run", "method=lexical,empty"]) == 2
    assert "refseg run -m" in capsys.readouterr().err


def test_a_protocol_that_is_not_there_is_told_once(in_tmp, capsys):
    run = ["run", "-m", "method=empty,full_frame", "dataset=photos", "limit.clips=1", "score.bootstrap=0"]
    assert main([*run, "--no-html"]) == 0
    capsys.readouterr()
    assert main(["score", "runs", "--protocol", "refcoco-ciou"]) == 2
    assert capsys.readouterr().err.count("No protocol 'refcoco-ciou'") == 1


def test_a_dry_run_tells_the_points_of_a_sweep_apart(
    capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    sweep = ["method=empty,full_frame", "dataset=shapes", "limit.clips=1,2"]
    assert main(["run", "-m", *sweep, "--dry", "--json", "dry.json"]) == 0
    capsys.readouterr()
    rows = json.loads(Path("dry.json").read_text())["runs"]
    assert [row["options"] for row in rows] == ["limit.clips=1", "limit.clips=2"] * 2


@pytest.mark.parametrize(
    "words",
    ["--html --coco c.json", "--html -o x.md", "--html --format md", "--sweep --video a/b", "--metric J"],
)
def test_a_report_leaves_out_nothing_that_was_asked_for(
    words: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *words.split()]) == 2
    told = capsys.readouterr().err
    assert "go in commands of their own" in told or "goes with --sweep" in told


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("report -o y.pdf", ".txt, .md, .tex, .csv, .json"),
        ("report --format md -o y.csv", ".txt, .md"),
        ("report --sweep -o y.png", ".svg"),
        ("report --sweep -o y.csv", ".svg"),
        ("report --video a/b -o y.svg", ".mp4"),
        ("report --coco y.csv", ".json"),
        ("submission RUN -o y.tar", ".zip"),
        ("data show shapes a/b --out y.jpg", ".png"),
        ("doctor -o y.csv", ".json"),
        ("score --json y.csv", ".json"),
        ("report --html y.html", "a folder's is wanted"),
        ("demo y.mp4 words -o y.png", "a folder's is wanted"),
    ],
)
def test_a_file_of_another_kind_than_its_name_says_is_not_written(
    words: str, allowed: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main(words.split()) == 2
    assert allowed in capsys.readouterr().err
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize("name", ["list.json.tmp", "list-0.5", "list"])
def test_an_ending_that_is_no_kind_is_part_of_a_name(
    name: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts write to a name of their own, and rename the file when it is whole."""
    assert main(["data", "list", "--json", name]) == 0
    assert json.loads((in_tmp / name).read_text())
    for option in ("-o", "--html"):
        assert main(["report", "none", option, name]) == 2
        assert "No run folder here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--json", "-o", "--output", "--out", "--to", "--save", "--html", "--coco"]
)
def test_no_file_is_called_minus(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of every command that takes a path to write."""

    def leaves(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        inner = [a for a in one._actions if isinstance(a, argparse._SubParsersAction)]
        yield from [leaf for action in inner for sub in action.choices.values() for leaf in leaves(sub)] or [
            one
        ]

    whole = [leaf for name in COMMANDS for leaf in leaves(parser([name]))]
    known = [(p, a) for p in whole for a in p._actions if option in a.option_strings]
    for command, action in known:
        with pytest.raises(SystemExit):
            command.parse_args([option, "-"])
        assert "'-' is no file" in capsys.readouterr().err, (command.prog, action.dest)
    assert known

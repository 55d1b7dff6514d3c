"""A run folder from elsewhere, or damaged: no number changes silently, nothing is run, killed or written."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.datasets import index
from refseg_bench.files.store_io import read_record, read_sealed_yaml, sealed, sealed_text, to_yaml
from tests.fakes import FakeDataset
from tests.launch.runs import overrides
from tests.quick import quick_first

RUN = ["run", *overrides(Path(), clips=2), "method=fake", "method.side=6", "keep_maps=true",
       "dataset.n_expressions=2", "dataset.name=mevis", "--no-html"]  # fmt: skip
COMMANDS = {
    "score": ["score", "RUN", "-j", "1", "--json", "scores.json"],
    "report": ["report", "RUN", "--format", "json"],
    "submission": ["submission", "RUN", "-o", "out.zip"],
    "status": ["status", "RUN"],
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scored run, made once."""
    folder = tmp_path_factory.mktemp("scored")
    FakeDataset(root=folder / "data", n_clips=2).clips()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(RUN) == 0
    return folder


@pytest.fixture
def run(scored: Path, in_tmp: Path) -> Path:
    """A scored run folder, below the current folder."""
    shutil.copytree(scored, in_tmp, dirs_exist_ok=True)
    (folder,) = Path("runs").iterdir()
    return folder


def told(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output with what was written, standard error."""
    for path in ("scores.json", "out.zip"):
        Path(path).unlink(missing_ok=True)
    code = main([str(run) if word == "RUN" else word for word in COMMANDS[name]])
    out, err = capsys.readouterr()
    if name == "score" and Path("scores.json").exists():
        out += Path("scores.json").read_text()
    if name == "submission" and Path("out.zip").exists():
        with zipfile.ZipFile("out.zip") as archive:
            out += str([(info.filename, info.CRC) for info in archive.infolist()])
    return code, out, err


#: What says that a file was damaged.
WORDS = (
    "checksum", "can't", "Can't", "left out", "belong", "holds no", "another protocol", "No run folder",
    "is missing", "unknown", "refuses incomplete", "Unknown option", "has no", "not the one",
    "have changed since",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_flipped_byte_changes_a_number(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    right = {name: told(name, run, capsys) for name in COMMANDS}
    assert all(code == 0 for code, _, _ in right.values())
    shutil.copytree(run, "pristine")
    files = [p.relative_to(run) for p in sorted(run.rglob("*")) if p.is_file() and p.suffix != ".log"]
    rng = random.Random(seed)
    for _ in range(200 if seed else 40):
        file = rng.choice(files)
        shutil.rmtree(run)
        shutil.copytree("pristine", run)
        data = bytearray((run / file).read_bytes())
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[at] ^= bit
        for name in COMMANDS:
            (run / file).write_bytes(data)
            code, out, err = told(name, run, capsys)
            same = (code, out) == right[name][:2]
            assert same or any(word in out + err for word in WORDS), (file, at, bit, name, code, out, err)
            assert same or code != 0 or name == "status", (file, at, bit, name, code, out, err)


READING = [["status", "RUN"], ["score", "RUN", "-j", "1"], ["report", "RUN", "--format", "json"],
           ["report", "RUN", "--html"], ["submission", "RUN", "-o", "out.zip"], ["compare", "RUN", "RUN"],
           ["models", "list", "RUN"], ["report", "RUN", "--coco", "c.json"], ["cancel", "RUN"]]  # fmt: skip


def tried(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Everything a command says; it must end by itself and without a traceback."""
    main([str(run) if word == "RUN" else word for word in words])
    return "".join(capsys.readouterr())


def test_nothing_a_run_folder_names_is_imported(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    config = run / "config.yaml"
    text = config.read_text().partition("# check")[0]
    (run / "run.json").write_text(sealed({**read_record(run / "run.json"), "lasting": {}}))
    for old in ("tests.fakes.FakeDataset", "tests.fakes.FakeMethod"):
        config.write_text(sealed_text(text.replace(old, "evil.Thing")))
        assert "evil.Thing" in str(read_sealed_yaml(config))
        for words in READING:
            said = tried(words, run, capsys)
            assert not Path("ran").exists()
            if old.endswith("Dataset") and words[0] in ("score", "submission"):
                assert "REFSEG_SEARCHPATH=pkg://evil" in said
    (path,) = run.glob("scores/*/result.json")
    row = read_record(path)
    row["details"]["rules"]["_target_"] = "evil.Thing"
    path.write_text(sealed(row))
    for words in READING:
        tried(words, run, capsys)
        assert not Path("ran").exists()


def test_a_component_of_another_kind_is_not_built(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.yaml"
    text = config.read_text().partition("# check")[0]
    (run / "run.json").write_text(sealed({**read_record(run / "run.json"), "lasting": {}}))
    config.write_text(
        sealed_text(text.replace("tests.fakes.FakeDataset", "refseg_bench.methods.bounds.Empty"))
    )
    assert "is no dataset" in tried(["score", "RUN"], run, capsys)


@pytest.mark.parametrize(
    "part", quick_first(["report/frames", "scores", "report", "report/thumbs", "report/maps", "report/assets",
                         "claims", "predictions", "launches", "jobs", "log", "scores/rvos-expr@1"], 2),
)  # fmt: skip
def test_no_command_writes_or_deletes_through_a_link(
    run: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    main(["report", str(run), "--html"])
    Path("elsewhere").mkdir()
    Path("elsewhere/mine.txt").write_text("mine")
    place = run / part
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(Path("elsewhere").resolve())
    for words in (
        ["report", str(run), "--html"],
        ["score", str(run), "-j", "1"],
        RUN,
        [*RUN, "cluster=debug"],
    ):
        main(words)
    capsys.readouterr()
    assert [p.name for p in Path("elsewhere").iterdir()] == ["mine.txt"]


def _content(kind: str) -> bytes:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return {
        "empty": b"",
        "list": b"[]\n",
        "nested": b"[" * 200_000,
        "bytes": bytes(range(256)),
        "aliases": bomb.encode(),
        "numbers": b'{"digest": 1e999, "n": ' + b"9" * 5000 + b"}\n",
    }[kind]


@pytest.mark.parametrize(
    "kind", quick_first(["list", "empty", "nested", "bytes", "aliases", "numbers", "fifo", "folder"])
)
def test_alien_files_are_told(run: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    shutil.copytree(run, "pristine")
    for file in sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file() and p.suffix != ".log"):
        shutil.rmtree(run)
        shutil.copytree("pristine", run)
        (run / file).unlink()
        if kind == "fifo":
            os.mkfifo(run / file)
        elif kind == "folder":
            (run / file).mkdir()
        else:
            (run / file).write_bytes(_content(kind))
        for words in READING[:3]:
            tried(words, run, capsys)


def test_escape_sequences_stay_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_record(run / "run.json")
    record["choices"]["method"] = "=cmd\x1b]0;x\x07\u202e"
    record["name"] = None
    (run / "run.json").write_text(sealed(record))
    for form in ("term", "md", "latex", "csv"):
        said = tried(["report", "RUN", "--format", form], run, capsys)
        assert "\\x1b" in said.replace("textbackslash{}", "")
        assert not set("\x1b\x07\u202e") & set(said)
    assert ",'=cmd" in said


def test_cancel_ends_nothing_but_the_recorded_command(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    (path,) = run.glob("launches/*/launch.json")
    record = {**read_record(path), "state": "open"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        owner = {**record["owner"], "pid": other.pid}
        for born in (0, int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])):
            path.write_text(sealed({**record, "owner": {**owner, "born": born}}))
            assert main(["cancel", str(run)]) == 1
            assert "left alone" in capsys.readouterr().out
        assert other.poll() is None
        other.communicate(b"\n")
    monkeypatch.setattr("refseg_bench.run.workers.subprocess.run", lambda words, **_: asked.append(words))
    path.write_text(sealed({**record, "jobs": {"work": "--state=PENDING"}}))
    main(["cancel", str(run)])
    assert "left out" in capsys.readouterr().err
    assert asked == []


def test_reading_commands_write_indices_where_the_present_command_does(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SMALL", 0)
    monkeypatch.setenv("REFSEG_CACHE", str(in_tmp / "mine"))
    assert main(["run", "dataset=shapes", "method=empty", "limit.clips=1", "--no-html"]) == 0
    (run,) = (in_tmp / "runs").iterdir()
    config = run / "config.yaml"
    values = read_sealed_yaml(config)
    values["dataset"]["cache"] = values["paths"]["cache"] = str(in_tmp / "theirs")
    config.write_text(sealed_text(to_yaml(values)))
    words = [["score", "RUN"], ["submission", "RUN", "-o", "o.zip"], ["status", "RUN"], ["report", "RUN"],
             ["report", "RUN", "--html", "pages"], ["report", "RUN", "--coco", "coco.json"]]  # fmt: skip
    for one in words:
        tried(one, run, capsys)
    assert not (in_tmp / "theirs").exists()
    assert list((in_tmp / "mine/index").iterdir())


def test_status_and_tables_build_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeDataset, "clips", lambda self: pytest.fail("opened"))
    assert "unknown" not in tried(["status", "RUN"], run, capsys)
    assert "rvos-expr@1" in tried(["report", "RUN"], run, capsys)
    for hostile in ({"clips": 7}, {"clips": [[]], "files": {}}, {"clips": [], "files": {"/": ["", None]}}):
        (run / "data.json").write_text(sealed(hostile))
        assert "The record of the data set is malformed" in tried(["status", "RUN"], run, capsys)
        tried(["report", "RUN"], run, capsys)

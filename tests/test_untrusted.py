"""A run folder from elsewhere, or damaged: it changes no number silently, and runs, kills and writes nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.files.store_io import read_record, read_sealed_yaml, sealed, sealed_text
from refseg_bench.store import RunStore
from tests.fakes import FakeDataset
from tests.launch.runs import overrides

RUN = ["run", *overrides(clips=2), "method=fake", "method.side=6", "keep_maps=true", "dataset.n_expressions=2",
       "dataset.name=mevis", "--no-html"]  # fmt: skip
COMMANDS = {
    "score": ["score", "RUN", "-j", "1", "--json", "scores.json"],
    "report": ["report", "RUN", "--format", "json"],
    "submission": ["submission", "RUN", "-o", "out.zip"],
    "status": ["status", "RUN"],
}


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A scored run folder, below the current folder."""
    FakeDataset(root=in_tmp / "data", n_clips=2).clips()
    assert main(RUN) == 0
    capsys.readouterr()
    (folder,) = (in_tmp / "runs").iterdir()
    return folder.relative_to(in_tmp)


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
WORDS = ("checksum", "can't", "Can't", "left out", "belong", "holds no", "another protocol", "No run folder",
         "is missing", "unknown", "refuses incomplete", "Unknown option", "has no", "not the one", "no such")  # fmt: skip


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
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

"""The names that ``refseg_bench`` itself offers, and the script of docs/extend.md that uses them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refseg_bench

ROOT = Path(__file__).resolve().parents[1]


def python(*words: str, cwd: Path) -> str:
    """What a new process prints."""
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_offered_is_what_a_type_checker_is_told() -> None:
    tree = ast.parse(Path(refseg_bench.__file__).read_text())
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {name: getattr(refseg_bench, name) for name in refseg_bench.__all__}
    assert {name: f"{value.__module__}.{value.__qualname__}" for name, value in found.items()} == told


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clips'"):
        refseg_bench.Clips  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "left_out"),
    [
        ("import refseg_bench", "numpy hydra omegaconf rich pandas torch typing refseg_bench.types"),
        ("from refseg_bench import *", "torch transformers diffusers matplotlib"),
    ],
)
def test_an_import_loads_little(statement: str, left_out: str, tmp_path: Path) -> None:
    told = python(
        "-c",
        "import sys\nbefore = set(sys.modules)\n"
        f"{statement}\nprint(*set({left_out!r}.split()) & (set(sys.modules) - before))",
        cwd=tmp_path,
    )
    assert told.split() == []


def test_no_component_imports_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing, planning and telling what is left take no seconds for it; nor do data and scores."""
    monkeypatch.delenv("REFSEG_SEARCHPATH")
    told = python(
        "-c",
        "import sys\n"
        "from refseg_bench.config import components as c, schema\n"
        "import refseg_bench.commands.run\n"
        "for group in ('dataset', 'backbone', 'segmenter', 'method', 'protocol'):\n"
        "    for name in c.names(group):\n"
        "        target = c.read(group, name)['_target_']\n"
        "        schema.allow(target)\n"
        "        schema._hints(schema.locate(target, group))\n"
        "print(*{'torch', 'transformers', 'diffusers', 'matplotlib'} & set(sys.modules))",
        cwd=tmp_path,
    )
    assert told.split() == []


@pytest.mark.slow
def test_the_script_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFSEG_SEARCHPATH")  # the tests' own, which no reader has
    page = (ROOT / "docs" / "extend.md").read_text().partition("## From Python")[2]
    script = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0]
    assert len([line for line in script.splitlines() if line]) <= 13
    (tmp_path / "script.py").write_text(script)
    told = python("script.py", cwd=tmp_path)
    assert "the smiling woman" in told
    assert re.search(r"^lexical-photos-\w{8} +refcoco-oiou@1 .* 0\.\d+", told, re.M)
    assert re.search(r"^ +empty .*\n(.*\n)*? oIoU +0\.0 ", told, re.M)  # wider than a terminal, so turned
    assert len(list(tmp_path.glob("runs/*/scores/*/result.json"))) == 2

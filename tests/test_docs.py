"""The documentation: links lead somewhere, examples run, the site builds."""

from __future__ import annotations

import glob
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from refseg_bench.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "results" / "README.md",
         *sorted((ROOT / "datasets").glob("*/README.md"))]  # fmt: skip


def anchors(page: Path) -> set[str]:
    """Names of a page's headings as GitHub and mkdocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    found = set()
    for title in re.findall(r"^#+ (.*)$", text, re.M):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        assert place.is_relative_to(ROOT)
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: {target}"


EXECUTED = re.compile(r"<!-- executed -->\s*```sh\n(.*?)```", re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if EXECUTED.search(p.read_text())], ids=lambda p: p.name)
def test_examples_run(page: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in EXECUTED.findall(page.read_text()):
        for line in block.splitlines():
            command, *words = shlex.split(line, comments=True)
            assert command == "refseg"
            arguments = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
            assert main(arguments) == 0, (line, capsys.readouterr().err)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="NO MKDOCS: the site is not built")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert "Quick start" in home
    for found in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r'(?:src|href)="//', found.read_text()), found

"""The documentation: links lead somewhere, examples run, the site builds."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.run.store import RunStore
from refseg_bench.types import MaskTrack
from tools.make_gallery import lines_of
from tools.writers import VideoRecord, write_davis_source, write_meta_expressions_set

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


GUIDES = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs", ROOT / "results")]
#: What needs weights, data or machines that are not here: composed to the last option, not run.
OUT_OF_REACH = re.compile(
    r"experiment=|backbone=(?!tiny)|segmenter=sam(?!2_hf segmenter.model=./tiny)|cluster=slurm|gpus="
)
#: The code that a command ends with where no weights are and a set is smaller than its card says.
CODES = {"refseg models list segmenter=sam2": 1, "refseg models get": 2, "refseg data verify": 1,
         "refseg demo folder_of_frames": 2, "refseg heads backbone=qwen": 2}  # fmt: skip
#: What stands in a command for something of the reader's → what that is in the reader's folder.
STAND_INS = {
    "ARCHIVE…": "set.zip", "ARCHIVES…": "set.zip", "CLIP/EXPRESSION": "0123456789ab/0", "NAME": "mevis",
    "SAMPLE": "0123456789ab/0", "RUN": "earlier/empty-mevis-*",
    "BASELINE": "earlier/empty-mevis-*", "COMMIT": "0" * 40,
}  # fmt: skip


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks, in their order, each on one line."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```|((?:^    .*\n)+)", text, re.M | re.S)
    lines = (line.strip() for fenced, indented in blocks for line in (fenced + indented).splitlines())
    return [line for line in lines if re.match(r"(refseg|python|make|pip|export|pytest|mkdocs) ", line + " ")]


def mentioned(page: Path) -> list[str]:
    """The commands of a page's blocks and sentences."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return commands(page) + re.findall(r"`((?:refseg|make|python|pip|pytest) [^`]+)`", text)


def write_files(page: Path, folder: Path) -> None:
    """The files that a page shows with their names in the first line."""
    for name, text in re.findall(
        r"^```(?:python|yaml|toml)\n# ([\w/]+\.\w+)\n(.*?)^```", page.read_text(), re.M | re.S
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a small MeViS, its archive, masks of other code, a video and its frames."""
    here = tmp_path_factory.mktemp("home")
    lines = MaskTrack.from_masks([np.eye(24, 32, dtype=bool)] * 3, (24, 32))
    black = np.zeros((3, 24, 32, 3), np.uint8)
    video = VideoRecord("0123456789ab", black, [lines], [("the line", [0], {"type": "line"})])
    for split in ("valid_u", "valid"):
        write_meta_expressions_set(here / "data" / "mevis", split, [video])
    shutil.make_archive(str(here / "set"), "zip", here / "data" / "mevis")
    spoken = dataclasses.replace(video, expressions=[("the line", [0], {})] * 4)
    write_davis_source(here / "davis", {"train": [], "val": [spoken]})
    shutil.make_archive(str(here / "davis"), "zip", here / "davis")
    for frame in range(3):
        (here / "answers" / video.name / "0").mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 24)).save(here / "answers" / video.name / "0" / f"{frame:05d}.png")
    shutil.copytree(here / "data/mevis/valid/JPEGImages" / video.name, here / "folder_of_frames")
    clip = cv2.VideoWriter(str(here / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 4, (64, 48))
    for _ in range(4):
        clip.write(np.zeros((48, 64, 3), np.uint8))
    clip.release()
    with contextlib.chdir(here):
        for name in ("mevis", "photos"):
            assert main(["run", "method=empty", f"dataset={name}", "paths.runs=earlier", "--no-html"]) == 0
    return here


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in GUIDES if any(c.startswith("refseg") for c in commands(p))], ids=str
)
def test_a_reader_can_give_every_command(
    page: Path,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "reader"
    shutil.copytree(home, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("COCO", "coco")
    monkeypatch.setenv("HF_HOME", "huggingface")
    monkeypatch.syspath_prepend(here)
    write_files(page, here)
    for line in commands(page):
        if line.startswith("python -c"):
            monkeypatch.setenv("PYTHONPATH", str(ROOT))
            subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
        if not line.startswith("refseg "):
            continue
        plain = re.sub(r"\[(-[^\]]*)\]", r"\1", line)
        words = [os.path.expandvars(STAND_INS.get(word, word)) for word in shlex.split(plain, comments=True)][
            1:
        ]
        if "refcoco" in line:
            words = [word.replace("empty-mevis", "empty-photos") for word in words]
        if "ref_davis17" in line:
            words = [word.replace("set.zip", "davis.zip") for word in words]
        if not Path("runs").exists():  # those before it were composed only
            words = ["earlier" if word == "runs" else word for word in words]
        words = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
        if words[0] == "run":
            if OUT_OF_REACH.search(line):
                words = [word for word in words if word != "--dry"] + ["--cfg", "job"]
            elif "limit.clips" not in line:
                words += ["limit.clips=1"]
            words += ["limit.expressions=2", "score.bootstrap=20"]
        wanted = next((code for start, code in CODES.items() if line.startswith(start)), 0)
        assert main(words) == wanted, (line, words, capsys.readouterr().err)


@pytest.mark.parametrize("page", GUIDES, ids=str)
def test_every_command_and_option_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in mentioned(page):
        tool, *words = line.split("  #")[0].replace("[", " ").replace("]", " ").split()
        if tool == "make":
            assert all(re.search(rf"^{word}:", makefile, re.M) for word in words), line
        elif tool in ("python", "pytest"):
            assert all((ROOT / word).exists() for word in words if word.endswith(".py")), line
        elif tool == "pip":
            assert all(
                name in extras for found in re.findall(r"bench\[(.*?)\]", line) for name in found.split(",")
            ), line
        elif tool == "refseg":
            depth = 2 if words[0] in ("data", "models") else 1
            with pytest.raises(SystemExit):
                main([*words[:depth], "--help"])
            known = capsys.readouterr().out
            for option in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", " ".join(words)):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), (line, option)


def test_troubleshooting_quotes_what_is_said() -> None:
    said = " ".join(
        text
        for path in (ROOT / "refseg_bench").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (text := literal(node))
    )
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (`.*?) \|", page, re.M)))
    assert len(quoted) > 8
    for message in quoted:
        assert all(part.strip(" '") in said for part in message.split("…")), message


def literal(node: ast.AST) -> str:
    """The text of a string or an f-string without its values."""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build_site(ROOT, folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def build_site(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs", reason="NO MKDOCS: the site is not built")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_warning_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "tools/site.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "index.md").write_text("# Here\n\n[nowhere](gone.md)\n")
    built = build_site(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    assert "'gone.md', but the target is not found" in built.stderr


@pytest.mark.slow
def test_the_site_is_searched_from_disk_and_asks_nobody(site: Path, browser: Any) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
    for name in ("index.html", "decisions/0003-methods-yield-groundings.html"):
        page.goto(f"file://{site}/{name}")
    page.fill("[role=search] input", "tracklets")
    page.keyboard.press("Enter")
    page.wait_for_selector("#mkdocs-search-results a")
    assert "DecAF" in page.inner_text("#mkdocs-search-results")
    page.fill("#mkdocs-search-query", "no_such_word <b>")
    page.get_by_text("Nothing found.", exact=True).wait_for()
    page.fill("#mkdocs-search-query", "claims hard link")
    with page.expect_navigation():
        page.click("#mkdocs-search-results a")
    assert "claim" in page.inner_text("h1").lower()
    page.close()
    assert complaints == []


def test_a_terminal_is_read_as_it_stands_at_the_end() -> None:
    record = (
        "$ go\r\n\x1b[?25lbar 1/2\r\x1b[2Kbar 2/2\r\nnote\r\x1b[2K\x1b[1A\x1b[2Kdone \x1b[1mbold\x1b[0m\r\n"
    )
    assert lines_of(record) == ["$ go", "done \x1b[1mbold\x1b[0m", ""]


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda path: path.name)
def test_pictures_fetch_nothing(picture: Path) -> None:
    text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", picture.read_text())
    assert not re.search(r"url\(['\"]?(?!#)|(?:href|src)=['\"](?!#)|@import", text)


@pytest.mark.slow
def test_a_method_written_from_contributing_alone_works_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFSEG_SEARCHPATH")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    write_files(ROOT / "CONTRIBUTING.md", tmp_path)

    def said(*words: str, code: int = 0) -> str:
        got = main([*words])
        text = "".join(capsys.readouterr())
        assert got == code, (words, text)
        # Set by the search path of the command before; another process would not have it.
        monkeypatch.delenv("REFSEG_SEARCHPATH", raising=False)
        return text

    run = ("run", "method=darkest", "dataset=shapes", "limit.clips=2", "score.bootstrap=20", "--no-html")
    assert "darkest-shapes-" in said(*run, "--dry")
    assert "quantile: 0.1" in said(*run, "--cfg", "job")
    said(*run)
    said(*run, "method.quantile=0.2")
    first, second = sorted(map(str, Path("runs").glob("darkest-*")))
    assert "no weights" in said("models", "list", first)
    assert said("status").count("darkest-shapes-") == 2
    assert "J&F" in said("score", first, "--protocol", "decaf")
    for form in ("term", "md", "latex", "csv", "json"):
        assert "darkest" in said("report", "--format", form)
    assert "quantile" in said("report", "--sweep")
    said("report", first, second, "--html", "pages")
    assert "darkest" in Path("pages/data/meta.js").read_text()
    sample = next(iter(RunStore.open(Path(first)).index()))
    said("report", first, "--video", sample, "-o", "sample.mp4")
    said("report", first, "--coco", "masks.json")
    assert "method.quantile" in said("compare", first, second)
    assert "J&F" in said("gate", first, "--against", first, "--max-drop", "0.5")
    assert "No evaluation server" in said("submission", first, code=2)
    said(*run, "method.quantile=0.3", "--freeze")
    (frozen,) = {*map(str, Path("runs").glob("darkest-*"))} - {first, second}
    said("work", frozen)
    assert "J&F" in said("score", frozen)
    said("cancel", frozen)
    assert "8 frames" in said("demo", "sample.mp4", "what is dark", "method=darkest")

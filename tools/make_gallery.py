"""The pictures of README and docs/gallery.md: a first run as its terminal shows it, and pages of a report.

python tools/make_gallery.py terminal    # docs/pictures/first-run.svg; runs refseg in an empty folder
python tools/make_gallery.py pages RUNS  # docs/pictures/*.png of the pages of these runs; needs Chromium
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COMMAND = "refseg run -m method=empty,lexical limit.clips=2 limit.expressions=3"
WIDTH = 96
#: Name of a picture → the view's address.
VIEWS = {
    "overview": "#/",
    "samples": "#/samples?order=moved&b=2",
    "sample": "#/sample?g=0&n=1",
    "compare": "#/compare?a=0&b=2",
}
#: The template without the fonts that it would fetch from elsewhere.
_SVG = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)


def lines_of(record: str) -> list[str]:
    """What stands on the terminal at the end: bars draw over themselves and go up again."""
    lines, row = [""], 0
    for part in re.split(r"(\r\n|\n|\r|\x1b\[\d*A|\x1b\[2K)", record):
        if part in ("\r\n", "\n"):
            row += 1
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row = max(0, row - int(up[1] or 1))
        elif part in ("\r", "\x1b[2K"):
            lines[row] = ""
        else:
            lines[row] += re.sub(r"\x1b\[\?\d+[hl]", "", part)
        lines += [""] * (row + 1 - len(lines))
    return lines


def terminal() -> None:
    """Record the first run."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        shell = f"stty cols {WIDTH} rows 60; {COMMAND}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TERM": "xterm-256color"}
        words = ["script", "-qec", shell, str(record)]
        subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        body = re.sub(r"\AScript started.*?\r?\n|[\r\n]*Script done.*\n?\Z", "", record.read_bytes().decode())
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join([f"$ {COMMAND}", *lines_of(body.rstrip())])))
    svg = console.export_svg(title="refseg run", code_format=_SVG, unique_id="first-run")
    (PICTURES / "first-run.svg").write_text(svg, "utf-8")


def pages(runs: str) -> None:
    """Take pictures of the pages of some runs."""
    from playwright.sync_api import sync_playwright

    from refseg_bench.cli import main

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        main(["report", runs, "--html", f"{folder}/report"])
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        for name, address in VIEWS.items():
            page.goto(f"file://{folder}/report/index.html{address}")
            page.wait_for_selector("main h1")
            page.wait_for_timeout(800)
            shot = Image.open(io.BytesIO(page.screenshot(full_page=name != "samples")))
            # Without k-means the colours that the runs are known by, a few pixels each, become others.
            few = shot.convert("RGB").quantize(256, kmeans=10, dither=Image.Dither.NONE)
            few.save(PICTURES / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["terminal"]:
        terminal()
    elif sys.argv[1:2] == ["pages"] and len(sys.argv) == 3:
        pages(sys.argv[2])
    else:
        sys.exit(__doc__)

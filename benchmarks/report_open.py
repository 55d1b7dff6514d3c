"""How long a report of 10,000 samples takes to write and to open.

    python -m benchmarks.report_open [--samples 10000]

Prints the seconds from opening ``index.html`` in a headless Chromium until the list of samples is
drawn, until a filter has been applied, and until one sample's frames are drawn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refseg_bench.config.compose import Composed, Config, digest
from refseg_bench.config.schema import complete, conform, option
from refseg_bench.files.store_io import count
from refseg_bench.report.html import write_report
from refseg_bench.run.launch import freeze
from refseg_bench.run.loop import work_on
from refseg_bench.scoring.runs import score_run
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack, Target

SIZE = (60, 80)


@dataclass
class Many:
    """Clips of two noisy frames with many expressions each."""

    root: Path = option(Path("many"), transient=True)
    n_clips: int = 500
    split: str = "val"
    name: str = "many"
    protocols: list[str] = option(factory=lambda: ["rvos-expr"], transient=True)

    def clips(self) -> list[Clip]:
        """All clips; their frames are written at the first call."""
        out = []
        rng = np.random.default_rng(0)
        for c in range(self.n_clips):
            folder = self.root / f"clip{c:05d}"
            paths = tuple(folder / f"{t:05d}.jpg" for t in range(2))
            if not folder.is_dir():
                folder.mkdir(parents=True)
                for path in paths:
                    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
            out.append(Clip(folder.name, paths, ("00000", "00001"), SIZE))
        return out

    def expressions(self, clip: Clip) -> list[Expression]:
        """Twenty of them."""
        return [
            Expression(
                str(e), f"the object number {e} of {clip.id} that moves to the left", {"type": f"t{e % 5}"}
            )
            for e in range(20)
        ]

    def target(self, clip: Clip, expression: Expression) -> Target:
        """A square."""
        mask = np.zeros(SIZE, bool)
        at = 2 * int(expression.id)
        mask[at : at + 15, at : at + 20] = True
        return Target(SIZE, 2, (MaskTrack.from_masks([mask, mask], SIZE),), ("1",))


@dataclass
class Square:
    """The same square everywhere."""

    side: int = 20

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """One answer per expression."""
        mask = np.zeros(SIZE, bool)
        mask[10 : 10 + self.side, 10 : 10 + self.side] = True
        for expression in expressions:
            yield Grounding(expression, MaskTrack.from_masks([mask, mask], SIZE))


def main() -> None:
    """Write, open, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=count(1), default=10_000)
    asked = parser.parse_args()
    os.environ["REFSEG_SEARCHPATH"] = "pkg://benchmarks"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stores = []
        for side in (20, 30):
            values = {
                "dataset": {
                    "_target_": "benchmarks.report_open.Many",
                    "root": str(folder / "data"),
                    "n_clips": max(1, asked.samples // 20),
                },
                "method": {"_target_": "benchmarks.report_open.Square", "side": side},
                "paths": {"runs": str(folder / "runs"), "cache": str(folder / "cache")},
                "score": {"bootstrap": 200},
            }
            whole = conform(Config, values, "")
            for part in ("dataset", "method"):
                whole[part] = complete(whole[part], part)
            store = freeze(Composed(whole, f"square{side}", digest(whole), (), {"method": f"square{side}"}))
            work_on(store)
            score_run(store)
            stores.append(store)
        began = time.perf_counter()
        page = write_report(stores, folder / "report")
        print(f"written in {time.perf_counter() - began:.1f} s")
        files = [p for p in (folder / "report").rglob("*") if p.is_file()]
        print(f"{len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB")
        _open(page, 4 * max(1, asked.samples // 20))


def _open(page: Path, of_a_type: int) -> None:
    from playwright.sync_api import sync_playwright

    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        for turn in ("cold", "warm"):
            tab = browser.new_page()
            began = time.perf_counter()
            tab.goto(f"file://{page}#/samples")
            tab.wait_for_selector(".card")
            listed = time.perf_counter()
            tab.select_option("select[name='attr.type']", "t3")
            tab.select_option("select[name=order]", "worst")
            tab.wait_for_function(f"document.getElementById('count').innerText.startsWith('{of_a_type} of')")
            filtered = time.perf_counter()
            tab.locator(".card").first.click()
            tab.wait_for_selector(".panels canvas")
            drawn = time.perf_counter()
            print(
                f"{turn}: listed {listed - began:.2f} s, filtered {filtered - listed:.2f} s, "
                f"sample {drawn - filtered:.2f} s"
            )
            tab.close()
        browser.close()


if __name__ == "__main__":
    main()

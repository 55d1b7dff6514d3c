"""The pages, in a browser, opened from disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from refseg_bench.report.html import write_report
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from tests.fakes import fake_run
from tests.report.worlds import HOSTILE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


class Visitor:
    """A page that remembers whatever must not happen."""

    def __init__(self, browser: Any, folder: Path, **context: Any) -> None:
        self.folder = folder.resolve()
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.complaints.append(f"error: {e}"))
        self.page.on("requestfailed", lambda r: self.complaints.append(f"failed: {r.url}"))
        self.page.on("request", self._check)

    def _check(self, request: Any) -> None:
        parts = urlsplit(request.url)
        inside = parts.scheme == "file" and Path(unquote(parts.path)).is_relative_to(self.folder)
        if not inside and parts.scheme not in ("data", "blob"):
            self.complaints.append(f"left the folder: {request.url}")

    def go(self, hash_: str = "#/") -> None:
        self.page.goto(f"file://{self.folder}/index.html{hash_}")
        self.page.wait_for_selector("main h1")

    def text(self, selector: str = "main") -> str:
        return str(self.page.inner_text(selector))

    def count(self) -> int:
        found = re.match(r"(\d+) of", self.text("#count"))
        assert found is not None
        return int(found[1])

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []


def pixels(page: Any, index: int) -> str:
    """A canvas as the browser shows it (its pixels may not be read from inside the page)."""
    return str(hash(page.locator(".panels canvas").nth(index).screenshot()))


def test_run_makes_pages_to_browse(small_runs: Path, browser: Any, tmp_path: Path) -> None:
    visit = Visitor(browser, small_runs / "runs" / "report", viewport={"width": 1280, "height": 900})
    page = visit.page
    visit.go()
    assert "3 runs" in visit.text("h1")
    page.screenshot(path=tmp_path / "overview.png")

    # Filter: words, type, score, order.
    page.click("nav >> text=Samples")
    page.wait_for_selector(".card")
    assert visit.count() == 6
    page.select_option(
        "select[name=a]",
        label=next(o for o in page.locator("select[name=a] option").all_inner_texts() if "lexical" in o),
    )
    page.select_option("select[name=order]", "worst")
    lexical = page.eval_on_selector("select[name=a]", "s => Number(s.value)")
    shown = [float(c.locator(".meter").nth(lexical).inner_text()) for c in page.locator(".card").all()]
    assert shown == sorted(shown)
    page.select_option("select[name=order]", "best")
    assert (
        page.locator(".card").first.locator(".meter").nth(lexical).inner_text().strip() == f"{max(shown):.1f}"
    )
    page.select_option("select[name=order]", "moved")
    page.click("button[name=again]")
    assert page.input_value("select[name=order]") in ("random", "moved")
    page.fill("input[name=hi]", str(min(shown)))
    assert visit.count() == shown.count(min(shown))
    page.fill("input[name=hi]", "")
    kind = page.locator("select[name='attr.type'] option").nth(1).get_attribute("value")
    page.select_option("select[name='attr.type']", kind)
    assert 0 < visit.count() < 6
    page.select_option("select[name='attr.type']", "")
    page.fill("input[name=q]", "no such words")
    page.wait_for_function("document.getElementById('count').textContent.startsWith('0 of')")
    page.fill("input[name=q]", "")
    page.wait_for_function("document.getElementById('count').textContent.startsWith('6 of')")

    # One sample: frames, target, three predictions, the heat map; scrub and step with the keyboard.
    page.select_option("select[name=order]", "best")  # the order drawn above changes from time to time
    page.locator(".card").first.click()
    page.wait_for_selector(".panels canvas")
    page.wait_for_timeout(300)
    assert page.locator(".panels figure").count() == 6
    before, name = pixels(page, 0), visit.text("#frame-name")
    slider = page.locator("input[type=range]")
    there = 3 if slider.input_value() == "9" else 9
    slider.fill(str(there))
    page.wait_for_timeout(300)
    assert visit.text("#frame-name") != name
    assert pixels(page, 0) != before
    page.keyboard.press("ArrowRight")
    assert f"{there + 1:05d}" in visit.text("#frame-name")
    page.screenshot(path=tmp_path / "sample.png", full_page=True)
    plain = pixels(page, 4)
    page.keyboard.press("d")
    page.wait_for_timeout(300)
    assert pixels(page, 4) != plain
    page.keyboard.press("m")
    assert page.locator(".panels figure").count() == 5
    at = page.url
    page.keyboard.press("j")
    page.wait_for_function(f"location.href !== {at!r}")
    page.wait_for_selector(".panels canvas")
    page.keyboard.press("Escape")
    page.wait_for_selector(".card")

    # Two runs.
    page.keyboard.press("4")
    page.wait_for_selector("select[name=b]")
    page.select_option("select[name=b]", "2")
    page.wait_for_selector("main table")
    assert "B is better" in visit.text()
    assert page.locator("svg circle").count() == 6
    page.screenshot(path=tmp_path / "compare.png")
    page.locator("ol.moved a").first.click()
    page.wait_for_selector(".panels canvas")
    visit.close()


def test_every_link_leads_to_a_page(small_runs: Path, browser: Any) -> None:
    visit = Visitor(browser, small_runs / "runs" / "report")
    todo, seen = ["#/", "#/tables", "#/compare", "#/samples", "#/sample?g=0&n=5", "#/no-such-page"], set()
    while todo:
        here = todo.pop(0)
        seen.add(here)
        visit.go(here)
        assert "can't be shown" not in visit.text("h1"), here
        for link in visit.page.locator("a").all():
            target = link.get_attribute("href")
            assert target is not None
            assert target.startswith("#/"), target
            # Of the many samples a few suffice: they differ in nothing but their number.
            many = target.startswith("#/sample?") and sum(s.startswith("#/sample?") for s in seen) > 5
            if target not in seen and target not in todo and not many:
                todo.append(target)
    assert len(seen) > 12
    visit.close()


def test_hostile_words_stay_words(hostile_runs: list[RunStore], browser: Any, tmp_path: Path) -> None:
    write_report(hostile_runs, tmp_path / "report")
    visit = Visitor(browser, tmp_path / "report")
    visit.go("#/samples")
    visit.page.wait_for_selector(".card")
    assert visit.page.locator(".card").count() == 10
    listed = visit.page.locator(".card .text").all_text_contents()
    assert listed[:5] == [text[:240] for text in HOSTILE]
    for n, text in enumerate(HOSTILE):
        visit.go(f"#/sample?g=0&n={n}")
        visit.page.wait_for_selector(".panels canvas")
        assert visit.page.text_content("blockquote.expression") == text
    wide = visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert wide, "5,000 characters widen the page"
    visit.go("#/tables")
    visit.go("#/compare")
    assert visit.page.evaluate("window.hacked") is None
    # The failed sample: found by its status, told with its traceback, no score.
    visit.go("#/samples?a=1&status=failed")
    visit.page.wait_for_selector(".card")
    assert visit.count() == 1
    visit.page.locator(".card").click()
    visit.page.wait_for_selector(".panels canvas")
    assert "ValueError: told to fail on clip1/1" in visit.text()
    visit.close()


def test_phone_and_dark(small_runs: Path, browser: Any) -> None:
    phone = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "color_scheme": "dark"}
    visit = Visitor(browser, small_runs / "runs" / "report", **phone)
    for address in ("#/", "#/samples", "#/sample?g=0&n=1", "#/compare", "#/tables"):
        visit.go(address)
        visit.page.wait_for_timeout(100)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375, address
    dark = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    visit.page.click("#theme")
    assert visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != dark
    visit.close()


def test_every_stage_of_a_method_is_shown(browser: Any, tmp_path: Path) -> None:
    store = fake_run(tmp_path, method={"_target_": "tests.report.worlds.StagesMethod"}, keep_maps=True)
    work_on(store)
    visit = Visitor(browser, write_report([store], tmp_path / "report").parent)
    visit.go("#/sample?g=0&n=4&f=0")
    visit.page.wait_for_selector(".panels canvas")
    visit.page.wait_for_timeout(200)
    captions = visit.page.locator(".panels figcaption").all_inner_texts()
    assert len(captions) == 5, "frame, target, answer, two maps"
    assert "object" in captions[3]
    assert "(of frame 2)" in captions[4], "the nearest frame that the map has"
    text = visit.text()
    assert "1 tracklets" in text
    assert "0.800" in text
    assert "Candidates" in text
    before = pixels(visit.page, 3)
    visit.page.keyboard.press("p")
    visit.page.wait_for_timeout(200)
    assert pixels(visit.page, 3) != before, "the click is on this frame"
    visit.close()

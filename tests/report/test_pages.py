"""The pages, in a browser, opened from disk."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from refseg_bench.config.compose import Composed, digest
from refseg_bench.report.html import write_report
from refseg_bench.run.launch import freeze
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from tests.fakes import fake_run, fake_values
from tests.launch.runs import HANGS
from tests.report.worlds import HOSTILE

pytestmark = pytest.mark.slow


class Visitor:
    """A page that remembers whatever must not happen."""

    def __init__(self, browser: Any, folder: Path, **context: Any) -> None:
        self.folder = folder.resolve()
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(HANGS * 1000)
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
        address = f"file://{self.folder}/index.html{hash_}"
        if self.page.url == address:
            self.page.reload()
        else:  # in the same document, where what stands there already would be taken for the new page
            self.page.evaluate("document.querySelector('main h1')?.remove()")
            self.page.goto(address)
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


#: Until all pictures that were asked for are there and drawn; drawing one may ask for the next.
SETTLED = """async () => {
  for (let known = -1; known !== pictures.size;) {
    known = pictures.size;
    await Promise.all(pictures.values());
    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
  }
}"""


def pixels(page: Any, index: int) -> str:
    """A canvas as the browser shows it (its pixels may not be read from inside the page)."""
    page.evaluate(SETTLED)
    return str(hash(page.locator(".panels canvas").nth(index).screenshot()))


def test_run_makes_pages_to_browse(small_runs: Path, browser: Any, tmp_path: Path) -> None:
    visit = Visitor(
        browser, next((small_runs / "runs").glob("report*")), viewport={"width": 1280, "height": 900}
    )
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
    # A value, and "absent" behind it where that is the answer.
    shown = [
        float(c.locator(".meter").nth(lexical).inner_text().split()[0]) for c in page.locator(".card").all()
    ]
    assert shown == sorted(shown)
    page.select_option("select[name=order]", "best")
    first = page.locator(".card").first.locator(".meter").nth(lexical).inner_text()
    assert first.split()[0] == f"{max(shown):.1f}"
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
    for name, absent in (("empty", 6), ("full_frame", 0)):
        labels = page.locator("select[name=a] option").all_inner_texts()
        page.select_option("select[name=a]", label=next(o for o in labels if name in o))
        page.select_option("select[name=status]", "absent")
        assert visit.count() == absent
        page.select_option("select[name=status]", "")
    page.fill("input[name=q]", "no such words")
    page.locator("#count", has_text=re.compile("^0 of")).wait_for()
    page.fill("input[name=q]", "")
    page.locator("#count", has_text=re.compile("^6 of")).wait_for()

    # One sample: frames, target, three predictions, the heat map; scrub and step with the keyboard.
    page.select_option("select[name=order]", "worst")  # one with masks, unlike what is absent and said so
    page.locator(".card").first.click()
    page.wait_for_selector(".panels canvas")
    assert page.locator(".panels figure:visible").count() == 5 + 2, (
        "frame, target, answers; the map and mask below"
    )
    before, name = pixels(page, 0), visit.text("#frame-name")
    slider = page.locator("input[type=range]")
    there = 3 if slider.input_value() == "6" else 6
    slider.fill(str(there))
    assert visit.text("#frame-name") != name
    assert pixels(page, 0) != before
    page.keyboard.press("ArrowRight")
    assert f"{there + 1:05d}" in visit.text("#frame-name")
    page.screenshot(path=tmp_path / "sample.png", full_page=True)
    plain = pixels(page, 4)
    page.keyboard.press("d")
    assert pixels(page, 4) != plain
    page.keyboard.press("m")
    assert page.locator(".panels figure:visible").count() == 5
    at = page.url
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url != at)
    page.wait_for_selector(".panels canvas")
    page.keyboard.press("Escape")
    page.wait_for_selector(".card")

    # Two runs.
    page.keyboard.press("4")
    page.wait_for_selector("select[name=b]")
    page.select_option("select[name=b]", "2")
    page.wait_for_selector("main table")
    assert "B is better" in visit.text()
    assert page.locator("svg a circle").count() == 6
    page.screenshot(path=tmp_path / "compare.png")
    page.locator("ol.moved a").first.click()
    page.wait_for_selector(".panels canvas")
    visit.close()


def test_every_link_leads_to_a_page(small_runs: Path, browser: Any) -> None:
    visit = Visitor(browser, next((small_runs / "runs").glob("report*")))
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
    assert visit.page.evaluate(f"({LAYOUT})()") == [], "5,000 characters widen the page"
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


def test_the_last_address_is_the_page_that_is_shown(
    hostile_runs: list[RunStore], browser: Any, tmp_path: Path
) -> None:
    write_report(hostile_runs, tmp_path / "report")
    visit = Visitor(browser, tmp_path / "report")
    visit.go("#/sample?g=0&n=0")
    expression = visit.page.locator("blockquote.expression")

    # The page that is left keeps its state a moment too late.
    visit.page.evaluate("""() => {
      location.hash = "#/sample?g=0&n=1";
      replaceState("sample", new URLSearchParams("g=0&n=0&f=1"));
    }""")
    expression.get_by_text(HOSTILE[1], exact=True).wait_for()
    # (Which may have told its frame by now.)
    assert visit.page.evaluate("location.hash").startswith("#/sample?g=0&n=1")

    # What the first address asks for arrives after what the second one asks for.
    visit.page.evaluate("""() => {
      const load = refseg.load;
      refseg.load = async (...asked) => {
        refseg.load = load;
        await new Promise((now) => setTimeout(now, 300));
        const loaded = await load(...asked);
        setTimeout(() => { document.body.dataset.late = "yes"; }, 50);
        return loaded;
      };
      window.addEventListener("hashchange", () => { location.hash = "#/sample?g=0&n=3"; }, { once: true });
      location.hash = "#/sample?g=0&n=2";
    }""")
    visit.page.locator("body[data-late]").wait_for()
    expression.get_by_text(HOSTILE[3], exact=True).wait_for()
    visit.close()


#: What must hold of a page at any width: it doesn't scroll sideways, and no text stands letter below letter.
LAYOUT = """() => {
  const wrong = [];
  const page = document.documentElement;
  // A phone's browser would zoom out and make innerWidth as wide as what overflows.
  if (page.scrollWidth > page.clientWidth) wrong.push(`the page is ${page.scrollWidth} wide`);
  const range = document.createRange();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const word = walker.currentNode.data.match(/[\\w.]{4,12}/);
    if (!word || !walker.currentNode.parentElement.checkVisibility()) continue;
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    if (range.getClientRects().length > 2) wrong.push(`broken letter by letter: ${word[0]}`);
  }
  return wrong;
}"""
VIEWS = ("#/", "#/tables", "#/samples", "#/sample?g=0&n=1&open=0,1,2", "#/compare", "#/sweeps")


def look(
    browser: Any, folder: Path, views: tuple[str, ...], size: tuple[int, int], scheme: str, shots: Path
) -> Visitor:
    """Open each view at a size and theme: nothing overflows, something is drawn."""
    context = {"viewport": {"width": size[0], "height": size[1]}, "is_mobile": size[0] < 500}
    visit = Visitor(browser, folder, color_scheme=scheme, **context)
    for number, address in enumerate(views):
        visit.go(address)
        visit.page.evaluate(SETTLED)
        assert visit.page.evaluate(LAYOUT) == [], address
        shot = visit.page.screenshot(path=shots / f"{number}-{scheme}-{size[0]}.png", full_page=True)
        assert len(shot) > 5_000, "something is drawn"
    return visit


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["desktop", "phone"])
def test_every_page_at_every_size_and_theme(
    small_runs: Path, browser: Any, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    visit = look(browser, next((small_runs / "runs").glob("report*")), VIEWS, size, scheme, tmp_path)
    back = "getComputedStyle(document.documentElement).backgroundColor"
    before = visit.page.evaluate(back)
    visit.page.click("#theme")
    assert visit.page.evaluate(back) != before
    visit.page.emulate_media(media="print")
    assert visit.page.evaluate(back) == "rgb(255, 255, 255)", "dark pages would be light words on paper"
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["desktop", "phone"])
def test_conversations_at_every_size_and_theme(
    agent_runs: Path, browser: Any, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    views = ("#/", "#/tables", "#/sample?g=0&n=0&open=0,1,2,3", "#/sample?g=0&n=1&open=0,1,2,3")
    look(browser, next((agent_runs / "runs").glob("report*")), views, size, scheme, tmp_path).close()


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_long_name_widens_no_page(browser: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    stores = []
    for side in (4, 8, 12):
        method = {"_target_": "tests.fakes.FakeMethod", "side": side}
        values = fake_values(tmp_path, method=method, score={"bootstrap": 20, "jobs": 1})
        choices = {"method": "x" * 120, "dataset": "fake"}
        stores.append(freeze(Composed(values, "fake", digest(values), (), choices)))
        work_on(stores[-1])
        score_run(stores[-1])
    folder = write_report(stores, tmp_path / "report").parent
    for scheme in ("light", "dark"):
        visit = look(browser, folder, VIEWS, size, scheme, tmp_path)
        assert "method.side" in visit.text(), "the last view is a sweep"
        visit.close()


def test_a_conversation_is_shown_with_what_was_sent(agent_runs: Path, browser: Any, tmp_path: Path) -> None:
    visit = Visitor(
        browser, next((agent_runs / "runs").glob("report*")), viewport={"width": 1440, "height": 900}
    )
    page = visit.page
    visit.go("#/")
    costs = (
        page.locator("section", has=page.locator("h3", has_text="Cost")).locator("thead th").all_inner_texts()
    )
    assert costs[:4] == ["", "s per sample", "calls", "replayed"]
    rows = page.eval_on_selector_all("select[name=base] option", "all => all.map((one) => one.textContent)")
    place = {name.split(" ")[0]: number for number, name in enumerate(rows)}
    broken = 0
    for n in (0, 1):
        visit.go(f"#/sample?g=0&n={n}&open={place['tiny_box']},{place['tiny_agent']}")
        page.wait_for_selector("details.dialogue")
        stories = page.locator("main > details.box")
        boxes, agent = (stories.nth(place[name]) for name in ("tiny_box", "tiny_agent"))
        for story in (boxes, agent):
            talk = story.locator("details.dialogue")
            if not talk.evaluate("node => node.open"):
                talk.locator("summary").click()
        steps = agent.locator(".dialogue h4").all_inner_texts()
        assert steps[:2] == ["concept", "appearance needed"]
        assert "Name the kind of object" in agent.inner_text()
        assert "<img src=x onerror=" in agent.inner_text(), "markup of a reply stays words"
        assert "Verdict" in agent.inner_text()
        pictures = boxes.locator(".sent img")
        pictures.first.scroll_into_view_if_needed()
        page.wait_for_function("image => image.naturalWidth > 50", arg=pictures.first.element_handle())
        small = pictures.first.bounding_box()["height"]
        pictures.first.press("Enter")
        assert pictures.first.bounding_box()["height"] > small
        if "it broke here" in boxes.inner_text():
            broken += 1
            assert boxes.locator(".dialogue h4").count() == 3
            assert "That can't be used" in boxes.inner_text()
            assert "3 replies at" in boxes.inner_text()
    assert broken == 1
    assert page.evaluate("window.hacked") is None
    page.screenshot(path=tmp_path / "conversation.png", full_page=True)
    visit.close()


def test_a_conversation_from_elsewhere_leads_nowhere(browser: Any, tmp_path: Path) -> None:
    """A received record may say anything; pictures are those of the run's own folder, by digest."""
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (64, 64), "red").save(secret)
    store = fake_run(tmp_path, method={"_target_": "tests.report.worlds.ForgedMethod"})
    work_on(store)
    folder = store.place("pictures")
    folder.mkdir()
    (folder / f"{'a' * 32}.jpg").symlink_to(secret)
    (folder / f"{'b' * 32}.jpg").write_text("<svg onload='window.hacked = 1'/>")
    (folder / f"{'c' * 32}.jpg").write_bytes(secret.read_bytes())
    visit = Visitor(browser, write_report([store], tmp_path / "report").parent)
    visit.go("#/sample?g=0&n=0&open=0")
    visit.page.wait_for_selector("details.dialogue")
    assert visit.text("details.dialogue summary") == "conversation of 302 calls"
    visit.page.locator("details.dialogue summary").click()
    assert "102 more calls are in the run folder only" in visit.text(".dialogue")
    assert visit.page.locator(".sent img").count() == 1, "the third alone is a picture of the run's own"
    assert len(list((tmp_path / "report" / "sent").iterdir())) == 1
    assert visit.page.locator(".sent span").count() == 4
    assert "<b>bold</b>" in visit.text(".dialogue")
    assert visit.page.evaluate("window.hacked") is None
    # The page opens at the frame of its box, which is drawn there and nowhere else.
    assert visit.text("#frame-name").startswith("frame 00001 ")
    assert "box that the segmenter was given" in visit.text(".legend")
    drawn = pixels(visit.page, 2)
    visit.page.keyboard.press("p")
    assert pixels(visit.page, 2) != drawn
    assert "box" not in visit.text(".legend")
    visit.close()


def test_the_overview_leads_with_values_and_their_differences(small_runs: Path, browser: Any) -> None:
    visit = Visitor(
        browser, next((small_runs / "runs").glob("report*")), viewport={"width": 1440, "height": 900}
    )
    page = visit.page
    visit.go("#/?base=2")
    table = page.locator("main table").first
    assert table.locator("thead th").all_inner_texts()[:3] == ["run", "J&F", "difference"]
    rows = [row.locator("td").nth(1).inner_text() for row in table.locator("tbody tr").all()]
    assert rows[2] == "baseline"
    against_last = rows[0].split()[0]
    page.select_option("select[name=base]", "0")
    assert "base=0" in page.url, "the address holds it"
    rows = [
        row.locator("td").nth(1).inner_text()
        for row in page.locator("main table").first.locator("tbody tr").all()
    ]
    assert rows[0] == "baseline"
    mirrored = rows[2].split()[0]
    assert {against_last, mirrored} == {f"+{mirrored[1:]}", f"−{mirrored[1:]}"}, (against_last, mirrored)
    assert page.locator("h3", has_text="Cost").count() == 1
    # A run's strip in the histogram is left out and comes back; its card unfolds.
    strips = page.locator("svg[aria-label='Samples by score'] rect").count()
    page.click("[data-stays=hist0]")
    assert page.locator("svg[aria-label='Samples by score'] rect").count() == strips * 2 // 3
    address = page.url
    page.click("[data-stays=hist0]")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("[data-stays=hist0][aria-pressed=false]")
    page.click("details.box >> nth=0")
    assert "config digest" in page.inner_text("details.box >> nth=0")
    visit.close()


def test_a_page_shows_numbers_as_tables_do(small_runs: Path, browser: Any) -> None:
    """To the last digit; what has no value has none in the mirrored comparison either; notes go along."""
    visit = Visitor(browser, next((small_runs / "runs").glob("report*")))
    visit.go()
    values = [12.25, 12.35, 12.75, -0.04, -12.25, 0.05, 99.95, 6.25, 100 / 3, 69.125, 0.5]
    for digits in (0, 1, 2, 4):
        shown = visit.page.evaluate("([values, d]) => values.map((v) => number(v, d))", [values, digits])
        assert shown == [f"{value:z.{digits}f}" for value in values]
    row = {"value": None, "low": None, "high": None}
    (flipped,) = visit.page.evaluate("(row) => turned({ rows: [row], config: [] }).rows", row)
    assert flipped == row
    table = {"caption": "c", "header": ["a"], "rows": [[{"text": "1"}]], "notes": ["other masks"]}
    assert "other masks" in visit.page.evaluate("(table) => tableOf(table).textContent", table)
    visit.close()


def test_an_address_holds_the_whole_view_of_a_sample(small_runs: Path, browser: Any) -> None:
    visit = Visitor(
        browser, next((small_runs / "runs").glob("report*")), viewport={"width": 1440, "height": 900}
    )
    page = visit.page
    visit.go("#/sample?g=0&n=1&f=2")
    page.wait_for_selector(".panels canvas")
    orange = pixels(page, 4)
    for key in ("d", "t", "p", "c", "+", "ArrowRight"):
        page.keyboard.press(key)
    page.locator(".panels canvas").nth(4).focus()
    page.keyboard.press("Enter")
    parts = ("f=3", "flip=difference%2Coutline%2Cpoints", "c=magenta", "solo=run+2", "zoom=")
    page.wait_for_url(lambda url: all(part in url for part in parts))
    assert page.locator(".panels figure:visible").count() == 1, "alone"
    page.evaluate("document.activeElement.blur()")
    page.evaluate(SETTLED)
    address, alone = page.url, page.locator(".panels canvas:visible").screenshot()
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(".panels canvas:visible")
    page.evaluate(SETTLED)
    assert page.locator(".panels canvas:visible").screenshot() == alone
    page.keyboard.press("Escape")
    assert page.locator(".panels figure:visible").count() > 4
    for key in ("0", "d", "t", "p"):
        page.keyboard.press(key)
    page.locator("input[type=range]").fill("2")
    assert pixels(page, 4) != orange, "masks in magenta"
    visit.close()


def test_the_list_opens_where_it_was_left(browser: Any, tmp_path: Path) -> None:
    data = {"_target_": "tests.fakes.FakeDataset", "root": str(tmp_path / "data"), "n_clips": 45}
    store = fake_run(tmp_path, dataset=data)
    work_on(store)
    visit = Visitor(
        browser, write_report([store], tmp_path / "report").parent, viewport={"width": 390, "height": 844}
    )
    page = visit.page
    visit.go("#/samples")
    # The list grows as it is read.
    while (place := page.evaluate("window.scrollY")) <= 3000:
        page.evaluate("window.scrollBy(0, 6000)")
        page.evaluate(SETTLED)
    card = next(c for c in page.locator(".card").all() if (c.bounding_box() or {"y": -1})["y"] > 100)
    name = card.get_attribute("data-sample")
    card.click()
    page.wait_for_selector(".panels canvas")
    page.go_back()
    page.wait_for_selector(".card")
    page.wait_for_function(f"Math.abs(window.scrollY - {place}) < 60")
    assert page.evaluate("document.activeElement.dataset.sample") == name
    visit.close()


def test_a_sweep_is_drawn_and_its_runs_have_colours_of_their_own(browser: Any, tmp_path: Path) -> None:
    stores = []
    for side, kernel in itertools.product((4, 8, 12), (0, 1, 2, 3, 4)):
        method = {"_target_": "tests.fakes.FakeMethod", "side": side, "options": {"kernel": kernel}}
        stores.append(fake_run(tmp_path, method=method, score={"bootstrap": 20, "jobs": 1}))
        work_on(stores[-1])
        score_run(stores[-1])
    visit = Visitor(browser, write_report(stores, tmp_path / "report").parent)
    page = visit.page
    visit.go("#/")
    colours = page.eval_on_selector_all(
        "details.box > summary .key", "keys => keys.map((key) => getComputedStyle(key).backgroundColor)"
    )
    assert len(set(colours)) == len(colours) == 15
    page.keyboard.press("5")
    page.wait_for_selector("td.heat")
    assert page.locator("td.heat a").count() == 15
    assert {page.input_value("select[name=x]"), page.input_value("select[name=y]")} == {
        "method.side",
        "method.options.kernel",
    }
    page.select_option("select[name=y]", "")
    assert page.locator("svg a circle").count() == 15
    assert "y=-" in page.url
    visit.close()


def test_every_stage_of_a_method_is_shown(browser: Any, tmp_path: Path) -> None:
    store = fake_run(tmp_path, method={"_target_": "tests.report.worlds.StagesMethod"}, keep_maps=True)
    work_on(store)
    visit = Visitor(browser, write_report([store], tmp_path / "report").parent)
    visit.go("#/sample?g=0&n=4&f=0")
    visit.page.wait_for_selector(".panels canvas")
    visit.page.evaluate(SETTLED)
    captions = visit.page.locator(".panels figcaption").all_inner_texts()
    assert [caption.partition(" ·")[0] for caption in captions[3:]] == [
        *("object", "fused <i> (of frame 2)", "points", "mask"), "object (video)"
    ]  # fmt: skip
    text = visit.text()
    for said in (
        "2 tracklets",
        "0.800",
        "Candidates",
        "What is <b>it</b>?",
        "“a duck” video, frame 2",
        "--video",
    ):
        assert said in text, said
    assert (
        visit.page.locator("svg circle.kept").count() == visit.page.locator("svg circle.dropped").count() == 1
    )
    widths = visit.page.eval_on_selector_all("td .meter i", "bars => bars.map((bar) => bar.offsetWidth)")
    assert min(widths) > 30, "a bar in a table has room"
    assert "point that the segmenter was clicked at" in visit.text(".legend")
    before = pixels(visit.page, 3)
    visit.page.keyboard.press("p")
    assert pixels(visit.page, 3) != before, "the click is on this frame"
    assert "clicked" not in visit.text(".legend")
    visit.go("#/")
    assert "None of the runs is scored yet" in visit.text()
    visit.close()

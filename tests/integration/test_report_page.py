"""The report page in Chromium, from a file, with the network off."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from poqueue.records import Kind
from tests.integration.browser import Browser, Page, find_browser
from tests.unit.sample_journal import STACK, JournalMaker, read, simulate
from workers.report_files import render
from workers.whole_file import write_whole

MAX_BYTES = 10_000_000
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "'-alert(4)-'",
)
READY = "document.documentElement.dataset.charts === 'ready'"
CONTRASTS = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || one.closest("[data-chart], .swatch, script")) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(`${one.tagName}.${one.className}: ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()
"""
UNNAMED = """
[...document.querySelectorAll("section, nav, figure, [role=region], [role=img], [role=group], button, table, input")]
  .filter((one) => {
    const by = one.getAttribute("aria-labelledby");
    const label = one.getAttribute("aria-label") || (by && document.getElementById(by)?.textContent);
    return !(label || one.caption?.textContent || one.closest("label")?.textContent || one.textContent).trim() ||
      (by && !document.getElementById(by));
  }).map((one) => one.outerHTML.slice(0, 80))
"""
CHARTS = "Bokeh.index.roots.filter((view) => view.canvas_view)"
FOCUSABLE = f"{CHARTS}.map((view) => view.canvas_view.events_el.hasAttribute('tabindex'))"
WIDTH = f"(({{x_range: range}}) => range.end - range.start)({CHARTS}.find((v) => v.model.name === 'queue').model)"
MIDDLE = """
(() => {
  const chart = document.querySelector("[data-chart=timeline]");
  scrollTo({top: chart.offsetTop - 200, behavior: "instant"});
  const box = chart.getBoundingClientRect(), lane = 45;
  return [box.left + box.width / 2, box.top + lane];
})()
"""
TIPS = """
((walk) => walk(document.body, walk))((one, walk) => [
  ...one.classList?.contains("bk-Tooltip") ? [one.shadowRoot] : [],
  ...[...one.children, ...one.shadowRoot?.children ?? []].flatMap((child) => walk(child, walk)),
])"""
HEADINGS = "[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))"
FRAMES = """
(async () => {
  const one = Bokeh.index.roots.find((view) => view.model.name === "timeline");
  const {x_range: range} = one.model, {start, end} = range, times = [];
  for (let step = 0; step < 20; step++) {
    const begun = performance.now();
    range.setv({start: start + (end - start) * step / 50, end: end - (end - start) * step / 50});
    one.export("png");
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[10];
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(tmp_path_factory.mktemp("page"), pos=300, workers=3)


def page_of(folder: Path, *, pos: int, workers: int) -> Path:
    simulate(folder / "journal.sqlite", pos=pos, workers=workers)
    settings = {
        "task_timeout": {"value": "200%,1m", "from": "default"},
        "timeout_floor": {"value": "1s", "from": "default"},
    }
    run = {"run_dir": "/r/2026-orders", "reason": "done", "settings": settings}
    history = read(folder / "journal.sqlite", run=run, again="poqueue retry r")
    write_whole(render(history, "html"), folder / "report.html")
    return folder / "report.html"


def opened(browser: Browser, file: Path, width: int, *, is_dark: bool = False) -> Page:
    page = browser.open(file, width=width, is_dark=is_dark)
    page.wait_for(READY)
    return page


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_opens_from_a_file_without_a_complaint_a_request_or_a_poor_contrast(
    browser: Browser, small: Path, width: int, is_dark: bool
) -> None:
    page = opened(browser, small, width, is_dark=is_dark)

    assert page.complaints == []
    assert page.requests == [small.as_uri()]
    assert page.run("document.documentElement.scrollWidth") == width, "nothing sticks out at the side"
    assert page.run("document.querySelectorAll('[data-chart] > *').length") == 4
    assert page.run(CONTRASTS) == []


def test_a_screen_reader_finds_names_landmarks_and_headings_in_order(browser: Browser, small: Path) -> None:
    page = opened(browser, small, 1400)

    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.title") == "2026-orders: some failed – poqueue report"
    assert (
        page.run("['header', 'nav', 'main', 'footer', 'h1'].map((tag) => document.querySelectorAll(tag).length)")
        == [1] * 5
    )
    levels = page.run(HEADINGS)
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.run(UNNAMED) == []
    assert page.run(FOCUSABLE) == [False] * 4, "a picture holds nothing to stop at"
    ids = page.run("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    assert (
        page.run("[...document.querySelectorAll('nav a')].filter((a) => !document.querySelector(a.hash)).length") == 0
    )


@pytest.mark.once
def test_everything_essential_is_there_without_scripts(small: Path) -> None:
    markup = re.sub(r"<script>.*?</script>", "", small.read_text(encoding="utf-8"), flags=re.DOTALL)

    for text in (
        "POs failed;",
        "poqueue retry r",
        "Where killed POs hung",
        "called from",
        "Cost by supplier",
        "Utilisation",
    ):
        assert text in markup


@pytest.mark.once
def test_time_limits_that_follow_the_median_are_shown(small: Path) -> None:
    text = small.read_text(encoding="utf-8")

    assert "Time limits by the running median" in text and "(all others)" in text


def test_without_scripts_the_page_is_shown_whole(browser: Browser, small: Path) -> None:
    page = browser.open(small, width=1400, has_script=False)

    assert page.complaints == [] and page.requests == [small.as_uri()]


def test_the_buttons_zoom_all_charts_over_time_and_the_boxes_hide_series(browser: Browser, small: Path) -> None:
    page = opened(browser, small, 1400)
    whole = page.run(WIDTH)

    page.run("document.querySelector('[data-zoom=in]').click()")
    assert page.run(WIDTH) == pytest.approx(whole / 2)
    assert page.run("document.getElementById('shown').textContent").startswith("Shown: ")
    page.run("document.querySelector('[data-zoom=reset]').click()")
    assert page.run(WIDTH) == pytest.approx(whole)

    page.run("document.querySelector('[data-series=completed]').click()")
    shown = "Bokeh.index.roots.find((v) => v.model.name === 'timeline').model.renderers.map((r) => [r.name, r.visible])"
    assert dict(page.run(shown)) == {"completed": False, "retry": True, "failed": True, "kill": True}
    assert page.complaints == []


def test_on_paper_there_is_a_light_copy_of_each_chart(browser: Browser, small: Path, tmp_path: Path) -> None:
    page = opened(browser, small, 1400, is_dark=True)
    page.run("addEventListener('beforeprint', () => { window.copies = document.querySelectorAll('.paper').length })")

    page.print(tmp_path / "report.pdf")

    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.run("window.copies") == 4 and page.run("document.querySelectorAll('.paper').length") == 0
    assert page.complaints == []


@pytest.mark.parametrize("text", HOSTILE)
def test_no_po_can_run_a_script_or_break_out_of_the_page(browser: Browser, tmp_path: Path, text: str) -> None:
    with JournalMaker(tmp_path / "j") as journal:
        token = journal.lease(journal.add(text, supplier=text, amount="1", currency=text), text, at=0.0)
        journal.end(Kind.FAILED, token, at=5.0, seconds=5.0, error_type=text, message=text, stack=STACK + text)
        journal.note(Kind.PAUSED, 6.0, error=f'"{text}"' if '"' not in text else None)
    run = {
        "run_dir": f"/r/{text}",
        "reason": text,
        "orders": text,
        "message": text,
        "settings": {text: {"value": text}},
    }
    file = tmp_path / "report.html"
    write_whole(render(read(tmp_path / "j", run=run, again=text), "html"), file)

    page = opened(browser, file, 1400)
    x, y = page.run(MIDDLE)
    page.mouse(x, y)
    page.mouse(x + 2, y)
    page.wait_for(f"{TIPS}.length === 1")

    assert text in page.run(f"{TIPS}[0].textContent")
    assert page.run(f"{TIPS}[0].querySelectorAll('script, img').length") == 0
    assert page.complaints == [] and page.requests == [file.as_uri()]
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.querySelectorAll('script').length") == 3
    assert text in page.run("document.body.innerText")


@pytest.mark.slow
def test_twenty_thousand_pos_are_below_ten_megabytes_and_drawn_smoothly(browser: Browser, tmp_path: Path) -> None:
    file = page_of(tmp_path, pos=20_000, workers=8)

    assert file.stat().st_size < MAX_BYTES
    page = opened(browser, file, 1400)
    assert page.complaints == [] and page.requests == [file.as_uri()]
    assert page.run(FRAMES) < 200, "milliseconds a frame, drawn without a graphics card"

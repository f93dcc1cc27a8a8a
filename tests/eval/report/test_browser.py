"""The pages in a real headless Chromium: nothing on the console, plots drawn, a phone's width."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from eval.compare import compare
from eval.compare.page import html
from eval.report import write_report
from eval.routing.stage_ablation import write_ablation
from tests.eval.make_run import ablate_run, make_run, second_run
from tests.eval.report.browser import BINARY, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARY, reason="needs Chromium (Debian package chromium)"),
]
# Plots that have no size, or stand out of the page.
PLOTS = """[...document.querySelectorAll('svg.chart')].filter(s => s.checkVisibility()).map(s => {
  const box = s.getBoundingClientRect();
  return [s.getAttribute('aria-label') || '', box.width, box.height, box.left, box.right];
})"""
BROKEN_PICTURES = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
TEXTS_OUTSIDE = """[...document.querySelectorAll('svg.chart text')]
  .filter(t => t.checkVisibility())
  .filter(t => { const b = t.getBoundingClientRect(); return b.left < 0 || b.right > innerWidth; })
  .map(t => t.textContent)"""
SMALL_TEXT = """[...document.querySelectorAll('p, td, th, dd, dt, li, summary, figcaption')]
  .filter(e => e.checkVisibility() && parseFloat(getComputedStyle(e).fontSize) < 11).length"""
HIDDEN_CELLS = """[...document.querySelectorAll('table.slim')]
  .filter(t => t.scrollWidth > t.parentElement.clientWidth).length"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run with everything, and a comparison of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    run, stream = make_run(folder, chunks=5, done=5, tests=8)
    ablate_run(run, stream, ["stage1_off", "without_expert_0"], 5)
    write_ablation(run, stream, 5, ["stage1_off", "without_expert_0"])
    other = second_run(run)
    compared = folder / "compare.html"
    compared.write_text(html(compare([run, other])), "utf-8")
    return {"report": write_report(run), "compare": compared}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize(("name", "plots"), [("report", 8), ("compare", 8)])
def test_page(
    browser: Browser, pages: dict[str, Path], name: str, plots: int, width: int, dark: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    browser.messages.clear()
    browser.open(pages[name], width, dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    # The first table of a comparison is all to be seen, on a phone too.
    assert browser.evaluate(HIDDEN_CELLS) == 0
    browser.evaluate("document.querySelectorAll('details.part').forEach(d => d.open = true)")
    assert browser.messages == []
    found = browser.evaluate(PLOTS)
    assert len(found) >= plots
    for title, across, down, left, right in found:
        assert title, "a plot without a text for screen readers"
        assert across > 100, title
        assert down > 40, title
        assert left >= 0, title
        assert right <= width, title
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(TEXTS_OUTSIDE) == []
    assert browser.evaluate(BROKEN_PICTURES) == 0
    assert browser.evaluate(SMALL_TEXT) == 0
    light = browser.evaluate(BACKGROUND) == "rgb(253, 253, 252)"
    assert light != dark
    with Image.open(browser.screenshot(tmp_path / "page.png")) as picture:
        assert picture.width == width
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_every_plot_has_a_table(browser: Browser, pages: dict[str, Path]) -> None:
    """Opened, the tables hold text, and none makes the page wider than a phone."""
    browser.open(pages["report"], 360)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    without = """[...document.querySelectorAll('section')].filter(s =>
      s.querySelector('svg.chart') && !s.querySelector('details table')).map(s => s.innerText)"""
    assert browser.evaluate(without) == []
    figures = "[...document.querySelectorAll('.figures figure')]"
    bare = f"{figures}.filter(f => !f.querySelector('details td')).length"
    assert browser.evaluate(f"{figures}.length") >= 3
    assert browser.evaluate(bare) == 0


@pytest.mark.skipif(os.environ.get("FULL_LONG") != "1", reason="FULL_LONG=1: minutes of drawing")
def test_a_hundred_chunks_of_fifty_tasks(browser: Browser, tmp_path: Path) -> None:
    """Fast and small enough: written in under 25 s again, drawn in under 10 s, below 6 MB."""
    tasks = [f"Task{n:02d}" for n in range(50)]
    run, _ = make_run(tmp_path, chunks=100, done=100, tests=10, tasks=tasks)
    page = write_report(run)
    assert page.stat().st_size < 6_000_000
    started = time.monotonic()
    write_report(run)
    assert time.monotonic() - started < 25
    browser.messages.clear()
    for width in (1100, 360):
        started = time.monotonic()
        browser.open(page, width)
        assert time.monotonic() - started < 10
        assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.messages == []

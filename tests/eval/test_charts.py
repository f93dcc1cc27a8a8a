"""Plots inside a page: named for screen readers, in the page's colours, gaps where nothing is."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from eval.charts.figure import Chart, Entry, percent
from eval.charts.plots import (
    Bar,
    Series,
    bars,
    composition,
    heat_map,
    intervals,
    line_chart,
    small_multiples,
)
from eval.report.loss_curves import Curve

NAN = math.nan
LINES = [Series("a", [0.1, NAN, 0.3], "c0"), Series("mean", [0.2, 0.2, NAN], "mean")]


def _line() -> Chart:
    return line_chart("Two <lines>", LINES, [0.0, 1.0, 2.0], "chunk", "Score, %")


CHARTS = {
    "line": _line,
    "heat": lambda: heat_map("Map", np.array([[0.0, 0.5], [1.0, NAN]]), ["x", "y"], ["1", "2"]),
    "bars": lambda: bars("Bars", [Bar("x", 0.1, 0.0, 0.2), Bar("y", -0.1), Bar("z", NAN)], "pts"),
    "dots": lambda: intervals("Dots", [Bar("x", 0.1, 0.0, 0.2), Bar("y", NAN)], "points"),
    "composition": lambda: composition("Shares", [{"x": 3, "y": 1}, {}], [Entry("x", "c0")], 1),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_plot_takes_the_colours_and_the_font_of_the_page(name: str) -> None:
    chart = CHARTS[name]()
    assert chart == CHARTS[name](), "the same numbers give the same picture"
    for picture, width in ((chart.wide, 880), (chart.narrow, 380)):
        assert picture.startswith(f'<svg viewBox="0 0 {width} ')
        assert 'role="img" aria-label="' in picture
        assert "var(--" in picture
        assert not re.search(r"#0000|#ffffff|font-family|<style|http", picture)
        assert "nan" not in picture


def test_titles_are_escaped() -> None:
    assert 'aria-label="Two &lt;lines&gt;"' in _line().wide


def test_gaps_are_not_drawn_as_zero() -> None:
    picture = CHARTS["heat"]().wide
    assert [re.search(rf">\s*{text}\s*</text>", picture) is not None
            for text in ("0.0", "50.0", "100.0", "–")] == [True] * 4  # fmt: skip  # noqa: RUF001
    assert "not known yet" in CHARTS["bars"]().wide


def test_chunks_to_come_are_outlines() -> None:
    chunks = [{"x": 1}, {"x": 1}]
    assert "fill: none; stroke: var(--c0)" in composition("S", chunks, [Entry("x", "c0")], 1).wide
    both = composition("S", chunks, [Entry("x", "c0")], 2).wide
    assert "fill: none; stroke: var(--c0)" not in both


def _heights(picture: str) -> list[float]:
    """The heights of a line's points in the drawing."""
    line = re.search(r'd="(M [^"]*)"[^>]*stroke: var\(--c1\); stroke-width: 1.8', picture)
    assert line is not None
    return [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.group(1))]


def test_the_axis_is_as_long_as_the_data() -> None:
    """Scores of 0.90 and 0.92 stand far apart, not both at the top of 0 to 1."""
    flat = [Series("a", [0.90, 0.92], "c1")]
    low, high = _heights(line_chart("T", flat, [0.0, 1.0], "chunk", "y").wide)
    assert low - high > 150  # of 228 pixels
    low, high = _heights(line_chart("T", flat, [0.0, 1.0], "chunk", "y", from_zero=True).wide)
    assert 0 < low - high < 10


def test_a_spike_is_cut_off_where_asked() -> None:
    spike = [Series("a", [9.0, 1.0, 0.5], "c1")]
    cut = line_chart("T", spike, [0.0, 1.0, 2.0], "step", "", most=1.0).wide
    *_, one, half = _heights(cut)
    assert half - one > 80


def test_the_band_is_drawn_in_the_colour_of_its_line() -> None:
    banded = [Series("a", [0.5, 0.6], "c1", ([0.4, 0.5], [0.6, 0.7]))]
    picture = line_chart("T", banded, [0.0, 1.0], "chunk", "y").wide
    assert "fill: var(--c1); fill-opacity: 0.16" in picture


def test_small_multiples_have_one_panel_a_task() -> None:
    panels = [(f"Task {n}", [Series("a", [0.1 * n, 0.5], "c0")]) for n in range(11)]
    chart = small_multiples("Eleven", panels, 2)
    for picture in (chart.wide, chart.narrow):
        assert [f">Task {n}</text>" in picture for n in range(11)] == [True] * 11


def test_a_tick_keeps_its_decimals() -> None:
    small = [Series("a", [0.002, 0.008], "c1")]
    chart = line_chart("T", small, [0.0, 1.0], "step", "", lambda v: f"{v:g}", from_zero=True)
    assert re.search(r">\s*0\.00[24]\s*</text>", chart.wide)


def test_losses_are_smoothed_within_their_chunk() -> None:
    """Of 1 to 12 in chunk 1 and 100 in chunk 2: neighbours of chunk 2 are no neighbours."""
    values = [float(n) for n in range(1, 13)]
    found = Curve([*map(float, range(1, 14))], [*values, 100.0], [12.0]).smooth
    assert found[0] == pytest.approx(sum(range(1, 7)) / 6)
    assert found[5] == pytest.approx(sum(range(1, 12)) / 11)
    assert found[11] == pytest.approx(sum(range(7, 13)) / 6)
    assert found[12] == 100.0


def test_zero_has_no_sign() -> None:
    assert percent(-0.0004) == percent(-0.0) == "0.0"
    assert percent(-0.0006) == "\u22120.1"

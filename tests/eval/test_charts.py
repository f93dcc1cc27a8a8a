"""Plots inside a page: named for screen readers, in the page's colours, gaps where nothing is."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from eval.charts.figure import Chart, Entry
from eval.charts.plots import Bar, Series, bars, composition, heat_map, intervals, line_chart

NAN = math.nan
LINES = [Series("a", [0.1, NAN, 0.3], "c0"), Series("mean", [0.2, 0.2, NAN], "mean")]


def _line() -> Chart:
    return line_chart("Two <lines>", LINES, [0.0, 1.0, 2.0], "chunk", "Score, %", y_max=1.0)


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


def test_chunks_to_come_are_pale() -> None:
    chunks = [{"x": 1}, {"x": 1}]
    assert "opacity: 0.35" in composition("Shares", chunks, [Entry("x", "c0")], 1).wide
    assert "opacity: 0.35" not in composition("Shares", chunks, [Entry("x", "c0")], 2).wide

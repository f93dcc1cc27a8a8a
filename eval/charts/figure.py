"""What a section of the page is made of: plots for two widths, with the table behind each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup

from eval.charts.lines import NARROW, WIDE


@dataclass(frozen=True)
class Chart:
    """One plot for a screen and the same for a phone."""

    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class Table:
    """A caption, a head and rows of text; the first cell of a row names it."""

    caption: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Figure:
    """A plot under its heading, with a note and the tables behind it.

    Attributes:
        title: the heading.
        chart: the plot.
        tables: all of its numbers.
        note: how to read it.
        half: so narrow that two stand side by side on a screen.
        legend: entries of name and CSS class, shown where the plot does not name its lines.
        always: show the legend also on a screen.
    """

    title: str
    chart: Chart
    tables: list[Table]
    note: str = ""
    half: bool = False
    legend: list[dict[str, str]] = field(default_factory=list)
    always: bool = False


def both(draw: Callable[[float], Markup]) -> Chart:
    """Return a plot drawn for both widths."""
    return Chart(draw(WIDE), draw(NARROW))

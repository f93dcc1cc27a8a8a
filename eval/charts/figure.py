"""What a section of a page is made of: plots for two widths, with the tables behind each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from markupsafe import Markup

COLOURS = 12


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
class Entry:
    """One entry of a legend: a name, and the class of the style sheet that has its colour."""

    name: str
    style: str


@dataclass(frozen=True)
class Figure:
    """A plot under its heading, with a note and the tables behind it.

    Attributes:
        title: the heading.
        chart: the plot.
        tables: all of its numbers.
        note: how to read it.
        half: so narrow that two stand side by side on a screen.
        legend: what the colours mean.
    """

    title: str
    chart: Chart
    tables: list[Table]
    note: str = ""
    half: bool = False
    legend: list[Entry] = field(default_factory=list)


def colour(index: int) -> str:
    """Return the style of series `index`: twelve colours, then the same again, dashed."""
    return f"c{index % COLOURS}" + (" again" if index >= COLOURS else "")


def percent(value: float | None) -> str:
    """Return a score in 0..1 as percent with one decimal; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    text = f"{100 * value:.1f}"
    # A difference that rounds to nothing has no sign.
    return "0.0" if text == "-0.0" else text.replace("-", "−")  # noqa: RUF001


def counted(number: int, what: str) -> str:
    """Return a number of things: "1 task", "2 tasks"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time for people: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ratio(value: float, digits: int = 3) -> str:
    """Return a number with some digits behind the point; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"  # noqa: RUF001

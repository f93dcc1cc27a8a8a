"""The plots of the report. Every function takes numbers and a width and returns one SVG.

The page shows the wide form on a screen and the narrow form on a phone, so text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.charts.svg import (
    Scale,
    colour,
    label,
    picture,
    polyline,
    slanted_label,
    spread,
    tag,
    ticks,
)

Array = NDArray[np.float64]
WIDE, NARROW = 880.0, 380.0
ON_SCREEN = 700.0  # wider than this is a screen
TOP = 40.0  # of a heat map's cells
MOST_CELLS = 1200
SHADES = 24
Box = tuple[float, float, float, float]
Formatter = Callable[[float], str]
Outlined = Callable[[int, int], bool]


def percent(value: float) -> str:
    """Return a score in 0..1 as percent with one decimal; a dash where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}".replace("-", "−")  # noqa: RUF001


def short_percent(value: float) -> str:
    """Return a score in 0..1 as percent, without a decimal where it is 0."""
    text = percent(value)
    return text[:-2] if text.endswith(".0") else text


@dataclass(frozen=True)
class Series:
    """One line of a line chart: a name, values by x (NaN = gap) and a CSS class."""

    name: str
    values: Sequence[float]
    class_: str


def line_chart(
    title: str,
    series: Sequence[Series],
    x: Sequence[float],
    width: float,
    x_label: str,
    y_label: str,
    show: Formatter = percent,
    y_max: float | None = None,
    height: float = 300.0,
    name_lines: bool = True,
    marks: Sequence[float] = (),
) -> Markup:
    """Return a line chart; lines are named at their right ends where there is room.

    Args:
        title: what a screen reader says.
        series: the lines, drawn in order.
        x: the abscissae, one for each value.
        width: of the picture in units of CSS pixels.
        x_label, y_label: what the axes show, with units.
        show: turns a value into the text of a tick.
        y_max: top of the axis; None takes the largest value.
        height: of the picture.
        name_lines: write names beside the lines (wide form only).
        marks: abscissae of thin vertical lines (chunk borders).
    """
    named = name_lines and width >= WIDE and len(series) <= 16
    left, right, top, bottom = 44.0, 128.0 if named else 14.0, 24.0, height - 40.0
    values = [v for s in series for v in s.values if not math.isnan(v)]
    y_ticks = ticks(min(0.0, *values, 0.0), y_max or max(values, default=1.0) or 1.0)
    across = Scale(x[0] if x else 0.0, x[-1] if x else 1.0, left, width - right)
    up = Scale(y_ticks[0], y_ticks[-1], bottom, top)
    body = [label(left - 36, 12, y_label, "start", "axis")]
    body += _grid(y_ticks, up, left, width - right, show)
    body += [tag("path", d=f"M{across(m):.1f} {top}V{bottom}", class_="mark") for m in marks]
    body += _x_axis(x, across, bottom, x_label, (left + width - right) / 2)
    body += [_line(s, x, across, up, show) for s in series]
    if named:
        body += _line_names(series, x, across, up, top, bottom)
    return picture(width, height, title, body)


def _grid(
    y_ticks: Sequence[float], up: Scale, left: float, right: float, show: Formatter
) -> list[str]:
    parts = []
    for value in y_ticks:
        y = up(value)
        parts.append(
            tag("path", d=f"M{left} {y:.1f}H{right}", class_="zero" if value == 0 else "grid")
        )
        text = show(value)
        parts.append(label(left - 8, y + 4, text[:-2] if text.endswith(".0") else text, "end"))
    return parts


def _x_axis(
    x: Sequence[float], across: Scale, bottom: float, name: str, middle: float
) -> list[str]:
    room = max(1, int((across.end - across.start) // 34))
    step = max(1, math.ceil(len(x) / room))
    # Chunks are all named, or every n-th; optimizer steps get round numbers.
    shown = x[::step] if len(x) <= 128 else [t for t in ticks(x[0], x[-1]) if x[0] <= t <= x[-1]]
    parts = [label(across(v), bottom + 18, f"{v:g}") for v in shown]
    return [*parts, label(middle, bottom + 36, name, class_="axis")]


def _line(s: Series, x: Sequence[float], across: Scale, up: Scale, show: Formatter) -> str:
    points = [(across(a), up(v)) for a, v in zip(x, s.values, strict=True)]
    parts = [tag("title", escape(s.name)), tag("path", d=polyline(points), class_="line")]
    if len(points) <= 40:
        for (px, py), a, v in zip(points, x, s.values, strict=True):
            if not math.isnan(v):
                tip = tag("title", escape(f"{s.name}, {a:g}: {show(v)}"))
                parts.append(tag("circle", tip, cx=px, cy=py, r=2.5, class_="dot"))
    return tag("g", *parts, class_=f"series {s.class_}")


def _line_names(
    series: Sequence[Series],
    x: Sequence[float],
    across: Scale,
    up: Scale,
    top: float,
    bottom: float,
) -> list[str]:
    """Write every name beside its line's last point, moved apart where they would overlap."""
    ends = []
    at = x[0] if x else 0.0
    for s in series:
        known = [(a, v) for a, v in zip(x, s.values, strict=True) if not math.isnan(v)]
        ends.append(up(known[-1][1]) if known else bottom)
        at = max([at, *(a for a, _ in known)])
    placed = spread(ends, 15.0, top, bottom)
    return [
        label(across(at) + 8, y + 4, s.name, "start", f"name {s.class_}")
        for s, y in zip(series, placed, strict=True)
    ]


def composition(title: str, chunks: Sequence[dict[str, int]], tasks: Sequence[str], width: float,
                last_done: int, named: bool = True) -> Markup:  # fmt: skip
    """Return stacked bars: which share of each chunk's samples belongs to which task.

    Bars share the abscissa of the line chart above, whose lines may be `named` at the right; chunks
    not yet trained are pale.
    """
    height, top, bottom = 104.0, 22.0, 82.0
    right = 128.0 if named and width >= WIDE and len(tasks) + 1 <= 16 else 14.0
    across = Scale(0.0, float(max(len(chunks), 1)), 44.0, width - right)
    half = min(22.0, 0.36 * (across(1.0) - across(0.0)))
    body = [label(8, 12, "Share of the chunk's samples", "start", "axis")]
    for number, chunk in enumerate(chunks, start=1):
        total, y = sum(chunk.values()) or 1, bottom
        parts = []
        for i, task in enumerate(tasks):
            share = chunk.get(task, 0) / total
            if share:
                tip = tag("title", escape(f"chunk {number}: {chunk[task]} of {task}"))
                y -= share * (bottom - top)
                parts.append(
                    tag("rect", tip, x=across(number) - half, y=y, width=2 * half,
                        height=max(share * (bottom - top) - 1, 0.5), class_=f"bar {colour(i)}")
                )  # fmt: skip
        body.append(tag("g", *parts, class_="waiting" if number > last_done else None))
    step = max(1, math.ceil(len(chunks) / max(1, int((across.end - across.start) // 34))))
    body += [label(across(n), bottom + 16, str(n)) for n in range(1, len(chunks) + 1, step)]
    return picture(width, height, title, body)


def heat_map(
    title: str,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    width: float,
    column_label: str,
    low: float = 0.0,
    high: float = 1.0,
    outlined: Outlined = lambda row, column: False,
) -> Markup:
    """Return a heat map with the number in each cell where there is room.

    Args:
        title: what a screen reader says.
        values: (rows, columns), NaN is drawn as a gap.
        rows, columns: names.
        width: of the picture.
        column_label: what the columns are.
        low, high: values of the palest and the darkest cell.
        outlined: cells that get a frame.
    """
    left, tall = names_room(rows, width), row_height(rows)
    cell = min((width - left - 4) / max(len(columns), 1), 64.0)
    # A column's name takes about seven pixels a letter; a long one is set aslant.
    longest = max((len(name) for name in columns), default=0)
    slanted = longest * 7 > cell + 4 and len(columns) <= 24
    if slanted:  # the last name reaches beyond its cell
        room = max(width - left - 4.9 * len(columns[-1]), 0.4 * width)
        cell = min(cell, room / (len(columns) - 0.5))
    top = TOP + (4.6 * longest if slanted else 0.0)
    body = [label(left, 12, column_label, "start", "axis"), *row_names(rows, left, top)]
    step = 1 if slanted else max(1, math.ceil(24.0 / cell))
    write = slanted_label if slanted else label
    body += [
        write(left + (j + 0.5) * cell, top - 8, columns[j]) for j in range(0, len(columns), step)
    ]
    tips = [[f"{row}, {column}" for column in columns] for row in rows]
    body += heat_cells(values, tips, (left, top), (cell, tall), low, high, outlined)
    return picture(width, top + len(rows) * tall + 4, title, body)


def names_room(rows: Sequence[str], width: float) -> float:
    """Return the left edge of a heat map's cells: room for the names of its rows."""
    return min(16.0 + 7.0 * max((len(name) for name in rows), default=0), 0.42 * width)


def row_height(rows: Sequence[str]) -> float:
    """Return the height of a heat map's row."""
    return 26.0 if len(rows) <= 16 else 20.0 if len(rows) <= 32 else 12.0


def row_names(rows: Sequence[str], left: float, top: float, tall: float | None = None) -> list[str]:
    """Return the names beside rows of height `tall`, every other one where they are many."""
    tall, every = tall or row_height(rows), 1 if len(rows) <= 60 else 2
    return [
        label(left - 8, top + (i + 0.5) * tall + 4, truncate(rows[i], left - 12), "end", "row")
        for i in range(0, len(rows), every)
    ]


def truncate(text: str, room: float) -> str:
    most = max(int(room // 6.6), 3)
    return text if len(text) <= most else "…" + text[1 - most :]


def heat_cells(
    values: Array,
    tips: Sequence[Sequence[str]],
    corner: tuple[float, float],
    size: tuple[float, float],
    low: float,
    high: float,
    outlined: Outlined = lambda row, column: False,
) -> list[str]:
    """Return the cells of a heat map; so many that no number fits become one path a shade.

    Args:
        values: (rows, columns), NaN is a gap.
        tips: what a pointer shows, before the number.
        corner: (x, y) of the first cell.
        size: (width, height) of a cell.
        low, high: values of the palest and the darkest cell.
        outlined: cells that get a frame.
    """
    span = high - low if high > low else math.nan
    if values.size > MOST_CELLS:
        return _shaded((values - low) / span, corner, size, outlined)
    cells = []
    for i, j in np.ndindex(*values.shape):
        value = float(values[i, j])
        box = (corner[0] + j * size[0], corner[1] + i * size[1], *size)
        texts = (percent(value), "–" if math.isnan(value) else f"{100 * value:.0f}")  # noqa: RUF001
        tip = tag("title", escape(f"{tips[i][j]}: {texts[0]}"))
        cells.append(_cell(tip, box, (value - low) / span, texts, outlined(i, j)))
    return cells


def _shaded(
    shares: Array, corner: tuple[float, float], size: tuple[float, float], outlined: Outlined
) -> list[str]:
    """Return one path for all cells of a shade (of `SHADES`), one for gaps, one for frames."""
    gap = min(0.5, size[0] / 16)
    paths: dict[int, list[str]] = {}
    frames: list[str] = []
    for i, j in np.ndindex(*shares.shape):
        x, y = corner[0] + j * size[0] + gap, corner[1] + i * size[1] + gap
        square = f"M{x:.1f} {y:.1f}h{size[0] - 2 * gap:.1f}v{size[1] - 2 * gap:.1f}H{x:.1f}z"
        share = float(shares[i, j])
        shade = -1 if math.isnan(share) else round(min(max(share, 0.0), 1.0) * SHADES)
        paths.setdefault(shade, []).append(square)
        if outlined(i, j):
            frames.append(square)
    parts = [
        tag("path", d="".join(squares), class_="cell none")
        if shade < 0
        else tag("path", d="".join(squares), class_="cell", fill_opacity=_opacity(shade / SHADES))
        for shade, squares in sorted(paths.items())
    ]
    if frames:
        parts.append(tag("path", d="".join(frames), class_="frames", stroke_width=size[0] / 9))
    return parts


def _opacity(share: float) -> float:
    """Return a cell's opacity; the palest must still be seen as a cell."""
    return 0.06 + 0.94 * share


def _cell(tip: str, box: Box, share: float, texts: tuple[str, str], outlined: bool) -> str:
    x, y, width, height = box
    text, short = texts
    # Small cells keep most of their area for colour.
    gap = min(1.0, width / 16, height / 16)
    place = {"x": x + gap, "y": y + gap, "width": width - 2 * gap, "height": height - 2 * gap}
    place["rx"] = min(3.0, width / 6)
    if math.isnan(share):
        return tag("rect", tip, **place, class_="cell none")
    share = min(max(share, 0.0), 1.0)
    frame = min(1.6, width / 7) if outlined else None
    kind = "cell framed" if outlined else "cell"
    parts = [
        tip,
        tag("rect", **place, class_=kind, stroke_width=frame, fill_opacity=_opacity(share)),
    ]
    if width >= 30 and height >= 18:
        shade = "on-dark" if share > 0.76 else "on-mid" if share > 0.56 else "on-pale"
        shown = text if width >= 40 else short
        parts.append(label(x + width / 2, y + height / 2 + 4, shown, class_=f"value {shade}"))
    return tag("g", *parts)

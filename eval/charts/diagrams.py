"""Plots of routing: maps in groups of columns, a scatter of instructions, square tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.charts.lines import ON_SCREEN, TOP, heat_cells, names_room, row_height, row_names
from eval.charts.svg import COLOURS, Scale, colour, label, picture, tag

Array = NDArray[np.float64]
MOST_TIPS = 400


def grouped_map(
    title: str,
    values: Array,
    rows: Sequence[str],
    groups: Sequence[str],
    columns: Sequence[str],
    width: float,
    high: float,
) -> Markup:
    """Return heat maps side by side that share their rows: one group of columns each.

    Args:
        title: what a screen reader says.
        values: (rows, groups, columns), NaN is drawn as a gap.
        rows, groups, columns: names.
        width: of the picture.
        high: value of the darkest cell; the palest is 0.
    """
    left, tall = names_room(rows, width), row_height(rows)
    space = 14.0 if width >= ON_SCREEN else 6.0
    across = (width - left - 4 - space * (len(groups) - 1)) / max(len(groups), 1)
    cell = min(across / max(len(columns), 1), 40.0)
    body = row_names(rows, left, TOP)
    step = max(1, math.ceil(22.0 / cell))
    for g, group in enumerate(groups):
        start = left + g * (cell * len(columns) + space)
        body.append(label(start + cell * len(columns) / 2, 12, group, class_="axis"))
        body += [
            label(start + (j + 0.5) * cell, TOP - 8, name)
            for j, name in enumerate(columns)
            if j % step == 0
        ]
        tips = [[f"{row}, {group}, {name}" for name in columns] for row in rows]
        body += heat_cells(values[:, g], tips, (start, TOP), (cell, tall), 0.0, high)
    return picture(width, TOP + len(rows) * tall + 4, title, body)


@dataclass(frozen=True)
class Cloud:
    """The points of one task: names, coordinates and sizes (rows behind each)."""

    name: str
    texts: Sequence[str]
    points: Sequence[tuple[float, float]]
    rows: Sequence[int]


def scatter(title: str, clouds: Sequence[Cloud], width: float, labels: tuple[str, str]) -> Markup:
    """Return a map of points, a colour and a shape for every task; both axes in one scale.

    Args:
        title: what a screen reader says.
        clouds: the points by task; colours follow their order.
        width: of the picture.
        labels: of the two axes.
    """
    height = 0.62 * width if width >= ON_SCREEN else 0.9 * width
    left, right, top, bottom = 30.0, width - 12.0, 22.0, height - 30.0
    x, y = _axes([p for c in clouds for p in c.points], left, right, top, bottom)
    body = [
        tag("path", d=f"M{left} {y(0):.1f}H{right}", class_="zero"),
        tag("path", d=f"M{x(0):.1f} {top}V{bottom}", class_="zero"),
        label(left - 22, 12, labels[1], "start", "axis"),
        label((left + right) / 2, height - 6, labels[0], class_="axis"),
    ]
    tips = sum(len(c.points) for c in clouds) <= MOST_TIPS
    for index, cloud in enumerate(clouds):
        marks = []
        for text, (px, py), rows in zip(cloud.texts, cloud.points, cloud.rows, strict=True):
            tip = (tag("title", _clean(f"{cloud.name}: {text}")),) if tips else ()
            size = min(3.4 + 0.5 * math.log2(max(rows, 1)), 7.0)
            path = shape(index, x(px), y(py), size)
            marks.append(tag("path", *tip, d=path, class_="mark-of"))
        body.append(tag("g", *marks, class_=colour(index)))
    return picture(width, height, title, body)


def _clean(text: str) -> str:
    return escape(text if len(text) <= 90 else f"{text[:89]}…")


def _axes(
    points: Sequence[tuple[float, float]], left: float, right: float, top: float, bottom: float
) -> tuple[Scale, Scale]:
    """Return scales that show every point, one unit as long on both axes."""
    spread = np.array([*points, (0.0, 0.0)])
    low, high = spread.min(axis=0), spread.max(axis=0)
    middle = (low + high) / 2
    unit = max((high[0] - low[0]) / (right - left), (high[1] - low[1]) / (bottom - top), 1e-9)
    half = (0.54 * unit * (right - left), 0.54 * unit * (bottom - top))
    x = Scale(middle[0] - half[0], middle[0] + half[0], left, right)
    y = Scale(middle[1] - half[1], middle[1] + half[1], bottom, top)
    return x, y


def shape(index: int, x: float, y: float, r: float) -> str:
    """Return the path of a point's mark: circle, square, triangle, diamond, then again."""
    kind = (index + index // COLOURS) % 4
    if kind == 0:
        return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0z"  # noqa: E501
    if kind == 1:
        return f"M{x - 0.9 * r:.1f} {y - 0.9 * r:.1f}h{1.8 * r:.1f}v{1.8 * r:.1f}h{-1.8 * r:.1f}z"
    if kind == 2:
        return f"M{x:.1f} {y - 1.15 * r:.1f}l{1.1 * r:.1f} {1.95 * r:.1f}h{-2.2 * r:.1f}z"
    return f"M{x:.1f} {y - 1.25 * r:.1f}l{1.25 * r:.1f} {1.25 * r:.1f}l{-1.25 * r:.1f} {1.25 * r:.1f}l{-1.25 * r:.1f} {-1.25 * r:.1f}z"  # noqa: E501

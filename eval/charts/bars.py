"""Bars with whiskers, and dots with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from eval.charts.lines import names_room, percent, row_names, short_percent, truncate
from eval.charts.svg import Scale, label, picture, tag, ticks


@dataclass(frozen=True)
class Bar:
    """One bar: a name, a value (NaN: none) and the ends of its whisker (NaN: none)."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan


def bars(title: str, items: Sequence[Bar], width: float, unit: str) -> Markup:
    """Return horizontal bars that may go below zero, with whiskers.

    Args:
        title: what a screen reader says.
        items: the bars, from the top.
        width: of the picture.
        unit: what stands under the axis.
    """
    longest = max((len(item.name) for item in items), default=0)
    left = min(16.0 + 7.0 * longest, 0.42 * width)
    tall, top = 26.0 if len(items) <= 20 else 17.0, 8.0
    ends = [end for item in items for end in _reach(item)]
    marks = ticks(min([0.0, *ends]), max([0.02, *ends]))
    across = Scale(marks[0], marks[-1], left, width - 52)
    bottom = top + tall * len(items)
    body = [
        tag("path", d=f"M{across(m):.1f} {top}V{bottom}", class_="zero" if m == 0 else "grid")
        for m in marks
    ]
    step = max(1, math.ceil(len(marks) * 44 / (across.end - across.start)))
    body += [label(across(m), bottom + 16, short_percent(m)) for m in marks[::step]]
    for i, item in enumerate(items):
        body += _bar(item, across, top + i * tall, tall, left)
    body.append(label((left + width - 52) / 2, bottom + 34, unit, class_="axis"))
    return picture(width, bottom + 42, title, body)


def _reach(item: Bar) -> list[float]:
    """Return the ends of a bar and its whisker; nothing where there is no bar."""
    ends = [item.value, item.low, item.high]
    return [] if math.isnan(item.value) else [end for end in ends if not math.isnan(end)]


def _bar(item: Bar, across: Scale, y: float, tall: float, left: float) -> list[str]:
    parts = [label(left - 8, y + tall / 2 + 4, truncate(item.name, left - 12), "end", "row")]
    if math.isnan(item.value):
        return [*parts, label(across(0) + 8, y + tall / 2 + 4, "not known yet", "start")]
    zero, end = across(0.0), across(item.value)
    kind = "loss" if item.value > 0 else "gain"
    tip = tag("title", escape(f"{item.name}: {percent(item.value)}"))
    parts.append(
        tag("rect", tip, x=min(zero, end), y=y + tall * 0.22, width=max(abs(end - zero), 1.0),
            height=tall * 0.56, rx=2, class_=kind)
    )  # fmt: skip
    reach = end
    if item.high > item.low:
        a, b = across(item.low), across(item.high)
        parts.append(tag("path", d=f"M{a:.1f} {y + tall / 2}H{b:.1f}", class_="whisker"))
        reach = max(b, end)
    parts.append(
        label(max(reach, zero) + 6, y + tall / 2 + 4, percent(item.value), "start", "value")
    )
    return parts


def intervals(title: str, items: Sequence[Bar], width: float, unit: str) -> Markup:
    """Return one dot an item with the line of its interval; the axis need not begin at 0.

    Args:
        title: what a screen reader says.
        items: the dots, from the top.
        width: of the picture.
        unit: what stands under the axis.
    """
    left, tall, top = names_room([item.name for item in items], width), 26.0, 8.0
    ends = [e for i in items for e in (i.value, i.low, i.high) if not math.isnan(e)]
    marks = ticks(min(ends, default=0.0), max(ends, default=1.0) + 1e-6)
    across = Scale(marks[0], marks[-1], left, width - 52)
    bottom = top + tall * len(items)
    body = [
        tag("path", d=f"M{across(m):.1f} {top}V{bottom}", class_="zero" if m == 0 else "grid")
        for m in marks
    ]
    step = max(1, math.ceil(len(marks) * 44 / (across.end - across.start)))
    body += [label(across(m), bottom + 16, short_percent(m)) for m in marks[::step]]
    body += row_names([item.name for item in items], left, top, tall)
    for i, item in enumerate(items):
        y = top + (i + 0.5) * tall
        if item.high > item.low:
            line = f"M{across(item.low):.1f} {y}H{across(item.high):.1f}"
            body.append(tag("path", d=line, class_="whisker"))
        tip = tag("title", escape(f"{item.name}: {percent(item.value)}"))
        body.append(tag("circle", tip, cx=across(item.value), cy=y, r=4.5, class_="gain"))
        reach = max(across(item.value) + 5, across(item.high) if item.high > item.low else 0)
        body.append(label(reach + 7, y + 4, percent(item.value), "start", "value"))
    body.append(label((left + width - 52) / 2, bottom + 34, unit, class_="axis"))
    return picture(width, bottom + 42, title, body)

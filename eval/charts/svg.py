"""A little SVG: elements, scales and text, no library. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

COLOURS = 8


def tag(name: str, *children: str, **attributes: object) -> str:
    """Return one element; `stroke_width=2` becomes stroke-width="2", `class_` becomes class."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(str(shown))}"')
    return f"<{' '.join(parts)}>{''.join(children)}</{name}>"


def label(x: float, y: float, text: str, anchor: str = "middle", class_: str = "tick") -> str:
    """Return a text element whose anchor point is (x, y)."""
    return tag("text", escape(text), x=x, y=y, text_anchor=anchor, class_=class_)


def slanted_label(x: float, y: float, text: str, class_: str = "tick") -> str:
    """Return a text that rises to the right from (x, y)."""
    turn = f"rotate(-46 {x:.1f} {y:.1f})"
    return tag("text", escape(text), x=x, y=y, text_anchor="start", class_=class_, transform=turn)


def picture(width: float, height: float, title: str, body: Iterable[str]) -> Markup:
    """Return an <svg> that fills its column, named for screen readers by `title`."""
    box = f"0 0 {width:g} {height:g}"
    attributes = {"role": "img", "aria_label": title, "class_": "chart"}
    return Markup(tag("svg", *body, viewBox=box, **attributes))


def colour(index: int) -> str:
    """Return the CSS class of series `index`; after eight colours they come again, marked."""
    return f"c{index % COLOURS}" + (" again" if index >= COLOURS else "")


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] to [start, end] (pixels)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return about `wanted` round numbers that cover [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    start = math.floor(low / step)
    found = [step * i for i in range(start, math.ceil(high / step - 1e-9) + 1)]
    return [round(value, 10) for value in found]


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Return path data through the points; NaN breaks the line, a lone point is a dot."""
    parts: list[str] = []
    pen_down = False
    for at, (x, y) in enumerate(points):
        if math.isnan(y):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        alone = at + 1 >= len(points) or math.isnan(points[at + 1][1])
        if not pen_down and alone:
            parts.append("h0")
        pen_down = True
    return " ".join(parts)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return label positions near `positions`, at least `gap` apart where [low, high] allows it."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    placed = [0.0] * len(positions)
    floor = low
    for i in order:
        placed[i] = max(positions[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed

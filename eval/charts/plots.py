"""The kinds of plots on the pages. Each takes numbers and returns a chart for both widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from eval.charts.drawing import FONT, PALETTE, axes, both, label, plain
from eval.charts.figure import Chart, Entry, percent

Array = NDArray[np.float64]
LEFT, RIGHT = 44.0, 16.0  # beside a plot over chunks; the same in all, so that their chunks align
MOST_DOTS = 40
MOST_NUMBERS = 1200  # cells of a heat map; more are drawn without numbers
# The corners of a heat map's frame inside its cell, and a gap before the next.
_FRAME = np.array([[0.04, 0.06], [0.96, 0.06], [0.96, 0.94], [0.04, 0.94], [0.04, 0.06],
                   [math.nan, math.nan]])  # fmt: skip
_WEIGHTS = {"mean": 3.4, "many": 1.1}
Formatter = Callable[[float], str]


def short_percent(value: float) -> str:
    """Return a score in 0..1 as percent, without a decimal where it is 0."""
    return percent(value).removesuffix(".0")


@dataclass(frozen=True)
class Series:
    """One line of a line chart.

    Attributes:
        name: in the legend.
        values: by x; NaN: gap.
        style: of `figure.colour`; `mean` is a bold line, `many` one of so many that none has its
            own colour.
        band: the lower and the upper edge of what is shaded around it, by x; empty: nothing.
    """

    name: str
    values: Sequence[float]
    style: str
    band: tuple[Sequence[float], Sequence[float]] = ((), ())


def legend(series: Sequence[Series]) -> list[Entry]:
    """Return the legend of lines; those of the style `many` share an entry."""
    entries = [Entry(s.name, s.style) for s in series if s.style != "many"]
    many = any(s.style == "many" for s in series)
    return [*entries, Entry("one task each", "many")] if many else entries


def line_chart(
    title: str,
    series: Sequence[Series],
    x: Sequence[float],
    x_label: str,
    y_label: str,
    show: Formatter = short_percent,
    height: float = 300.0,
    marks: Sequence[float] = (),
    from_zero: bool = False,
    most: float | None = None,
) -> Chart:
    """Return a line chart.

    Args:
        title: what a screen reader says.
        series: the lines, drawn in order.
        x: the abscissae, one for each value.
        x_label, y_label: what the axes show, with units.
        show: turns a value into the text of a tick.
        height: of the picture.
        marks: abscissae of thin vertical lines (chunk borders).
        from_zero: whether the axis begins at 0; else it is as long as the data.
        most: values above it are cut off; None: none are.
    """

    def draw(width: float) -> Canvas:
        ax = axes(width, height, LEFT, RIGHT, top=28, bottom=44)
        _chunk_axis(ax, x[0], x[-1], width)
        for mark in marks:
            ax.axvline(mark, color=PALETTE["rule"], linewidth=1, linestyle=(0, (2, 3)))
        for s in series:
            _line(ax, x, s, cut=most is not None)
        ax.set_ylim(*_reach(series, from_zero, most))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
        ax.grid(axis="y", color=PALETTE["hair"], linewidth=1)
        label(ax, 8, height - 12, y_label, "left")
        label(ax, (LEFT + width - RIGHT) / 2, 9, x_label, "center")
        return _canvas(ax)

    return both(draw, title)


def _reach(
    series: Sequence[Series], from_zero: bool = False, most: float | None = None
) -> tuple[float, float]:
    """Return the ends of an axis that shows all values and bands, and little else."""
    values = [v for s in series for part in (s.values, *s.band) for v in part if math.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = (min(low, 0.0) if from_zero else low), high if most is None else min(high, most)
    pad = 0.06 * (high - low) or 0.05
    # An axis of scores must not go below 0 for the sake of its padding.
    return low - (0.0 if low == 0 else min(pad, low) if low > 0 else pad), high + pad


def small_multiples(
    title: str, panels: Sequence[tuple[str, Sequence[Series]]], chunks: int
) -> Chart:
    """Return one small line chart a panel over the chunks, all with the same axes.

    Args:
        title: what a screen reader says.
        panels: heading and lines of each.
        chunks: values of a line, that of the base model included.
    """
    x = range(chunks)
    low, high = _reach([s for _, lines in panels for s in lines])

    def draw(width: float) -> Canvas:
        columns = min(max(int(width // 205), 2), max(len(panels), 1))
        across, tall, gap = (width - LEFT - 10) / columns, 96.0, 34.0
        rows = math.ceil(len(panels) / columns)
        height = rows * (tall + gap) + 34
        canvas = Canvas(figsize=(width / 72, height / 72), frameon=False)
        for number, (name, lines) in enumerate(panels):
            row, column = divmod(number, columns)
            bottom = height - (row + 1) * (tall + gap) + 4
            box = ((LEFT + column * across) / width, bottom / height)
            ax = canvas.add_axes((*box, (across - 14) / width, tall / height))
            plain(ax)
            ax.set_xlim(x[0] - 0.4, x[-1] + 0.4)
            ax.set_ylim(low, high)
            for s in lines:
                _line(ax, x, s, dots=False)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_percent(value)))
            ax.grid(axis="y", color=PALETTE["hair"], linewidth=1)
            ax.tick_params(pad=3, labelleft=column == 0,
                           labelbottom=number + columns >= len(panels))  # fmt: skip
            ax.annotate(_truncate(name, across), (0, tall + 3), xycoords="axes points",
                        fontsize=FONT, color=PALETTE["ink"], annotation_clip=False)  # fmt: skip
        label(canvas.axes[0], LEFT + (width - LEFT) / 2, 9, "chunk", "center")
        return canvas

    return both(draw, title)


def _canvas(ax: Axes) -> Canvas:
    canvas = ax.get_figure()
    assert isinstance(canvas, Canvas)
    return canvas


def _chunk_axis(ax: Axes, first: float, last: float, width: float) -> None:
    """Set the limits and ticks of an axis of chunks or steps; whole numbers where there is room."""
    pad = 0.5 if last - first < MOST_DOTS else 0.01 * (last - first)
    ax.set_xlim(first - pad, last + pad)
    ax.xaxis.set_major_locator(MaxNLocator(max(int(width // 50), 2), integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line(
    ax: Axes, x: Sequence[float], series: Series, dots: bool = True, cut: bool = False
) -> None:
    name, _, again = series.style.partition(" ")
    ink = PALETTE[{"mean": "ink", "many": "rule"}.get(name, name)]
    dots = dots and len(x) <= MOST_DOTS
    if len(series.band[0]):
        ax.fill_between(x, *series.band, color=ink, alpha=0.16, linewidth=0)
    ax.plot(
        x,
        series.values,
        color=ink,
        linewidth=_WEIGHTS.get(name, 1.8),
        linestyle=(0, (4, 2)) if again else "-",
        marker="o" if dots else "",
        markersize=5,
        markerfacecolor=ink if name == "mean" else PALETTE["paper"],
        markeredgewidth=1.6,
        # A dot on the border of the axes is drawn whole, unless something is to be cut off.
        clip_on=cut,
    )


def composition(
    title: str, chunks: Sequence[dict[str, int]], entries: Sequence[Entry], done: int
) -> Chart:
    """Return stacked bars: which share of each chunk's samples belongs to which task.

    Chunks stand under those of a line chart that begins with chunk 0; those after `done` are empty
    outlines, since pale colours mean tasks.
    """
    counts = np.array([[chunk.get(entry.name, 0) for entry in entries] for chunk in chunks])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbers = np.arange(1, len(chunks) + 1)

    def draw(width: float) -> Canvas:
        height = 110.0
        ax = axes(width, height, LEFT, RIGHT, top=24, bottom=24)
        _chunk_axis(ax, 0, len(chunks), width)
        broad = min(0.72, 44 * (len(chunks) + 1) / width)
        bottom = np.zeros(len(chunks))
        for column, entry in enumerate(entries):
            name, _, again = entry.style.partition(" ")
            ink = (*to_rgb(PALETTE[name]), 0.5 if again else 1.0)
            held = shares[:, column] > 0
            now, later = held & (numbers <= done), held & (numbers > done)
            ax.bar(numbers[now], shares[now, column], broad, bottom[now], color=ink,
                   edgecolor=PALETTE["paper"], linewidth=0.6, clip_on=False)  # fmt: skip
            ax.bar(numbers[later], shares[later, column], broad, bottom[later], fill=False,
                   edgecolor=ink, linewidth=1.2, clip_on=False)  # fmt: skip
            bottom += shares[:, column]
        ax.set_ylim(0, 1)
        ax.set_yticks([])
        label(ax, 8, height - 12, "Share of the chunk's samples", "left")
        return _canvas(ax)

    return both(draw, title)


def heat_map(
    title: str,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    column_label: str = "",
    high: float = 1.0,
    framed: Callable[[int, int], bool] = lambda row, column: False,
) -> Chart:
    """Return a heat map with the number in each cell where there is room.

    Args:
        title: what a screen reader says.
        values: (rows, columns), fractions of 1; NaN is drawn as a gap.
        rows, columns: names.
        column_label: what the columns are.
        high: value of the darkest cell; the palest is 0.
        framed: cells that get a frame.
    """

    def draw(width: float) -> Canvas:
        left = _names_room(rows, width)
        tall = 26.0 if len(rows) <= 16 else 20.0 if len(rows) <= 32 else 12.0
        wide = min((width - left - 4) / max(len(columns), 1), 64.0)
        longest = max((len(name) for name in columns), default=0)
        slanted = 7 * longest > wide + 4 and longest > 4 and len(columns) <= 24
        top = 44.0 + (4.6 * longest if slanted else 0.0)
        if slanted:  # the last name reaches beyond its cell
            wide = min(wide, max(width - left - 5.2 * len(columns[-1]), 0.4 * width) / len(columns))
        right = width - left - wide * len(columns)
        ax = axes(width, top + tall * len(rows) + 6, left, right, top, 6)
        ax.set_xlim(0, len(columns))
        ax.set_ylim(len(rows), 0)
        _cells(ax, values, wide, tall, high, framed)
        step = 1 if slanted else max(1, math.ceil(26.0 / wide))
        ax.xaxis.tick_top()
        ax.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step])
        if slanted:
            ax.tick_params(axis="x", labelrotation=46)
            for tick in ax.get_xticklabels():
                tick.set(ha="left", rotation_mode="anchor")
        _name_rows(ax, rows, left, np.arange(len(rows)) + 0.5)
        label(ax, left, _canvas(ax).get_figheight() * 72 - 12, column_label, "left")
        return _canvas(ax)

    return both(draw, title)


def _names_room(rows: Sequence[str], width: float) -> float:
    return min(16.0 + 7.0 * max((len(name) for name in rows), default=0), 0.42 * width)


def _name_rows(ax: Axes, rows: Sequence[str], left: float, places: NDArray[np.floating]) -> None:
    step = 1 if len(rows) <= 60 else 2
    ax.set_yticks(places[::step], [_truncate(name, left - 12) for name in rows[::step]])
    ax.tick_params(axis="y", labelcolor=PALETTE["ink"])


def _truncate(text: str, room: float) -> str:
    most = max(int(room // 6.6), 3)
    return text if len(text) <= most else "…" + text[1 - most :]


def _cells(
    ax: Axes,
    values: Array,
    wide: float,
    tall: float,
    high: float,
    framed: Callable[[int, int], bool],
) -> None:
    shares = np.clip(values / high, 0, 1)
    # The palest must still be seen as a cell, a gap must not.
    shade = np.where(np.isfinite(shares), 0.06 + 0.94 * shares, 0.0)
    rgba = np.empty((*values.shape, 4))
    rgba[..., :3], rgba[..., 3] = to_rgb(PALETTE["heat"]), shade
    rows, columns = values.shape
    ax.pcolormesh(np.arange(columns + 1), np.arange(rows + 1), rgba,
                  edgecolor=PALETTE["paper"], linewidth=min(2.0, wide / 8),
                  clip_on=False)  # fmt: skip
    frames = [_FRAME + np.array([j, i]) for i, j in np.ndindex(rows, columns) if framed(i, j)]
    if frames:  # one line, with gaps: thousands of frames must stay a small picture
        x, y = np.concatenate(frames).T
        ax.plot(x, y, color=PALETTE["ink"], linewidth=min(1.6, wide / 7))
    numbers = wide >= 30 and tall >= 18 and values.size <= MOST_NUMBERS
    for i, j in np.ndindex(*values.shape):
        if numbers:
            share = float(shares[i, j])
            text = percent(float(values[i, j])) if wide >= 40 else f"{100 * values[i, j]:.0f}"
            # Middle tones take dark text in both themes, pale ones the ink of the theme.
            ink = "on-dark" if share > 0.76 else "on-mid" if share > 0.56 else "on-pale"
            ax.text(j + 0.5, i + 0.5, "–" if math.isnan(share) else text, ha="center",  # noqa: RUF001
                    va="center", fontsize=FONT, color=PALETTE[ink])  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """One bar or dot: name, value, ends of its interval (NaN: none), values of single runs."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    points: Sequence[float] = field(default=(), kw_only=True)


def bars(title: str, items: Sequence[Bar], unit: str) -> Chart:
    """Return horizontal bars from zero with whiskers: losses to the right, gains to the left."""
    return both(lambda width: _rows(width, items, unit, dots=False), title)


def intervals(title: str, items: Sequence[Bar], unit: str) -> Chart:
    """Return one dot an item with the line of its interval; the axis need not begin at 0."""
    return both(lambda width: _rows(width, items, unit, dots=True), title)


def _rows(width: float, items: Sequence[Bar], unit: str, dots: bool) -> Canvas:
    left = _names_room([item.name for item in items], width)
    tall = 26.0 if len(items) <= 20 else 17.0
    ax = axes(width, tall * len(items) + 56, left, 52, top=8, bottom=48)
    places = np.arange(len(items)) + 0.5
    ax.set_ylim(max(len(items), 1), 0)
    if not dots:
        ax.axvline(0, color=PALETTE["rule"], linewidth=1)
    for place, item in zip(places, items, strict=True):
        reach, text, ink = 0.0, "not known yet", "soft"
        if not math.isnan(item.value):
            ends = (item.value, item.high, item.value if dots else 0.0, *item.points)
            reach, text, ink = float(np.nanmax(ends)), percent(item.value), "ink"
            if item.points:
                ax.plot(item.points, [place + 0.3] * len(item.points), "o", color="none",
                        markeredgecolor=PALETTE["soft"], markersize=4)  # fmt: skip
            if dots:
                ax.plot(item.value, place, "o", color=PALETTE["gain"], markersize=9)
            else:
                side = "loss" if item.value > 0 else "gain"
                ax.barh(place, item.value, 0.56, color=PALETTE[side])
            if item.high > item.low:
                ax.plot([item.low, item.high], [place] * 2, color=PALETTE["ink"], linewidth=1.5,
                        alpha=0.75, zorder=2 if dots else 3)  # fmt: skip
        ax.annotate(text, (reach, place), (7, 0), textcoords="offset points", va="center",
                    fontsize=FONT, color=PALETTE[ink], annotation_clip=False)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(max(int((width - left) // 70), 2)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_percent(value)))
    ax.grid(axis="x", color=PALETTE["hair"], linewidth=1)
    _name_rows(ax, [item.name for item in items], left, places)
    label(ax, (left + width - 52) / 2, 9, unit, "center")
    return _canvas(ax)

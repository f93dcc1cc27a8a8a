"""Figures for a paper: the curves of a comparison as PDF and SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from eval import metrics
from eval.charts.plots import Series
from eval.compare.comparison import Comparison
from eval.compare.page import column_of, method_lines

COLUMN = 3.4  # inches: one column of a paper in two
# The colours of the light pages.
COLOURS = ["#0072b2", "#d55e00", "#00805d", "#a8479a", "#9a6b00", "#3d9bd6", "#86224d", "#6b7280"]
DASHES = ["-", "--", "-.", ":"]  # told apart in grey, too
_SAME_BYTES = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write_figures(comparison: Comparison, folder: Path, spread: str) -> list[Path]:
    """Write stream and tasks, as PDF and SVG with text as text; return the files.

    stream: mean score over the chunks, one line a method, shaded by `spread` over its runs. tasks:
    the same for every task. Nothing is written where only one chunk was evaluated.
    """
    if comparison.rows < 3:
        return []
    # Embedded TrueType, since publishers refuse Type 3; the same figure gives the same bytes.
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "compare", "pdf.fonttype": 42, "font.size": 8}
    ):
        canvases = {"stream": _stream(comparison, spread), "tasks": _tasks(comparison, spread)}
        written = []
        for name, canvas in canvases.items():
            for kind, metadata in _SAME_BYTES.items():
                path = folder / f"{name}.{kind}"
                canvas.savefig(path, format=kind, metadata=metadata, bbox_inches="tight")
                written.append(path)
    return written


def _stream(comparison: Comparison, spread: str) -> Canvas:
    canvas = Canvas(figsize=(COLUMN, 2.6), layout="constrained")
    ax = canvas.add_subplot()
    _draw(ax, method_lines(comparison, metrics.mean_over, spread))
    ax.set_xlabel("chunk")
    ax.set_ylabel("mean score, %")
    _legend(canvas)
    return canvas


def _tasks(comparison: Comparison, spread: str) -> Canvas:
    across = min(len(comparison.tasks), 4)
    down = math.ceil(len(comparison.tasks) / across)
    canvas = Canvas(
        figsize=(2 * COLUMN * across / 4 + 0.6, 1.45 * down + 0.5), layout="constrained"
    )
    # A single panel comes without an array around it.
    grid = np.atleast_1d(canvas.subplots(down, across, sharex=True, sharey=True)).ravel()
    for column, task in enumerate(comparison.tasks):
        _draw(grid[column], method_lines(comparison, partial(column_of, column), spread))
        grid[column].set_title(task, fontsize=8)
    for ax in grid[len(comparison.tasks) :]:
        ax.set_visible(False)
    for ax in grid[max(len(comparison.tasks) - across, 0) :]:  # the lowest of every column
        ax.tick_params(labelbottom=True)
    canvas.supxlabel("chunk", fontsize=8)
    for ax in grid[::across]:
        ax.set_ylabel("score, %")
    _legend(canvas)
    return canvas


def _legend(canvas: Canvas) -> None:
    """Set the legend above the axes, in as many columns as have room: names cover nothing."""
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    wrapped = [textwrap.fill(label, 40) for label in labels]
    longest = max(len(line) for label in wrapped for line in label.split("\n"))
    columns = max(1, int(72 * canvas.get_figwidth() / (5 * longest + 36)))  # in points
    # The axes keep their height: what a legend of more than a line or two takes comes on top.
    lines = sum(label.count("\n") + 1 for label in wrapped)
    high = (9.6 * lines + 4 * len(wrapped)) / columns / 72
    canvas.set_figheight(canvas.get_figheight() + max(0.0, high - 0.2))
    canvas.legend(handles, wrapped, loc="outside upper left", ncols=columns, frameon=False,
                  fontsize=8)  # fmt: skip


def _draw(ax: Axes, lines: Sequence[Series]) -> None:
    for number, line in enumerate(lines):
        ink = COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        x = np.arange(len(line.values))
        ax.plot(x, 100 * np.array(line.values), dash, color=ink, linewidth=1.2, label=line.name)
        if len(line.band[0]):
            low, high = (100 * np.array(edge) for edge in line.band)
            ax.fill_between(x, low, high, color=ink, alpha=0.18, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.spines[["top", "right"]].set_visible(False)

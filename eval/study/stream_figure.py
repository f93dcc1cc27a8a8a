"""The figure of a study: accuracy of the tasks seen so far over the chunks, as SVG."""

from __future__ import annotations

import io
import math
from hashlib import sha256
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from eval.charts.figure import percent
from eval.compare.figures import COLOURS, DASHES
from eval.metrics import Array, mean_over, seen_scores
from eval.significance import mean_of_each, over_runs
from eval.study.groups import Group, Study

WIDTH, HEIGHT = 8.6, 3.7  # inches, of a page of GitHub


class Line(NamedTuple):
    """One method: chunks, mean over the runs after each, standard deviation (NaN: one run)."""

    name: str
    chunks: NDArray[np.int64]
    mean: Array
    std: Array


def course(group: Group) -> Line:
    """Return after each evaluated chunk the mean score of the tasks that were taught by then."""
    lines = [mean_over(seen_scores(run.values, run.first)) for run in group.runs]
    rows = np.full((len(lines), max(map(len, lines))), np.nan)
    for row, line in zip(rows, lines, strict=True):
        row[: len(line)] = line
    known = np.flatnonzero(np.isfinite(rows).any(axis=0))
    streams = [run.stream_seed for run in group.runs]
    draws = [mean_of_each(values, streams) for values in rows[:, known].T.tolist()]
    std = np.array([over_runs(values).std for values in draws])
    return Line(group.name, known + 1, mean_over(np.array(draws), axis=1), std)


def described(study: Study) -> str:
    """Return what the figure shows, in words: for those who cannot see it."""
    lines = [course(group) for group in _streams(study)]
    ends = "; ".join(
        f"{line.name} {percent(line.mean[0])} after chunk {line.chunks[0]} and "
        f"{percent(line.mean[-1])} after chunk {line.chunks[-1]}"
        for line in lines
    )
    levels = "; ".join(f"{g.name} {percent(g.mean('last'))}" for g in _levels(study))
    above = f" Dotted, after its one training: {levels}." if levels else ""
    return (
        f"Line chart: mean score in percent of the tasks seen so far, over the chunks. {ends}. "
        f"Shaded: one standard deviation over the runs.{above}"
    )


def _streams(study: Study) -> list[Group]:
    return [group for group in study.groups if not group.runs[0].has_no_stream]


def _levels(study: Study) -> list[Group]:
    found = [group for group in study.groups if group.runs[0].has_no_stream]
    return [group for group in found if math.isfinite(group.mean("last"))]


def drawn(study: Study) -> str:
    """Return the SVG; what it shows is told in its description."""
    canvas = Canvas(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
    ax = canvas.add_subplot()
    groups = _streams(study)
    for number, line in enumerate(map(course, groups)):
        ink = COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        width = 2.4 if number == 0 else 1.5
        ax.plot(line.chunks, 100 * line.mean, dash, color=ink, linewidth=width, label=line.name,
                marker="o", markersize=3)  # fmt: skip
        low, high = 100 * (line.mean - line.std), 100 * (line.mean + line.std)
        ax.fill_between(line.chunks, low, high, color=ink, alpha=0.13, linewidth=0)
    for group in _levels(study):
        level = 100 * group.mean("last")
        ax.axhline(level, color="#1c1f23", linestyle=":", linewidth=1.2, label=group.name)
    ax.set_xlabel("chunk")
    ax.set_ylabel("mean score of the tasks seen so far, %")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.grid(axis="y", color="#e3e3de", linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside right upper", frameon=False)
    return _svg(canvas, study)


def _svg(canvas: Canvas, study: Study) -> str:
    buffer = io.StringIO()
    # The same numbers give the same bytes.
    metadata = {"Date": None, "Creator": None, "Description": described(study)}
    metadata["Identifier"] = _numbers(study)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "study", "font.size": 9}):
        canvas.savefig(buffer, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def shows(svg: str, study: Study) -> bool:
    """Return whether an SVG was drawn from these numbers, by whatever version of matplotlib."""
    return all(f">{text}<" in svg for text in (escape(described(study)), _numbers(study)))


def _numbers(study: Study) -> str:
    """Return a hash of the scores behind the curves: the description has the ends of them alone.

    Of the scores as the CSVs have them: means may differ in their last bits between machines.
    """
    found = sha256()
    for group in study.groups:
        for run in group.runs:
            found.update(f"{group.name} {run.stream_seed} {run.seed} {run.first}".encode())
            found.update(run.values.tobytes())
    return f"sha256:{found.hexdigest()}"

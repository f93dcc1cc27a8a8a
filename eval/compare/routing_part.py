"""Routing of compared runs: do expert sets tell the tasks, was the right chunk chosen.

Runs whose method routes nothing have no record; they are named, never drawn as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from data_prep.files import a_few
from eval.charts.figure import Figure, Table, colour, percent, ratio
from eval.charts.over_chunks import over_chunks
from eval.charts.plots import Series
from eval.compare.comparison import Comparison
from eval.compare.names import printed
from eval.compare.runs import Method
from eval.metrics import mean_over
from eval.report.choices import NAMES, RIGHT
from eval.report.data import RunData
from eval.routing.router_accuracy import Choices


def routing_part(comparison: Comparison) -> tuple[list[str], list[Figure]]:
    """Return the runs without a record, in words, and the figures of those with one, if any."""
    figures: list[Figure] = []
    gaps: list[str] = []
    if routed := [m for m in comparison.methods if any(e.run.routing for e in m.entries)]:
        figures.append(_separation(comparison, routed))
        without = [m.name_of(e) for m in comparison.methods for e in m.entries if not e.run.routing]
        gaps = [f"No routing record: {a_few([*map(printed, without)])}."] if without else []
    if chosen := [m for m in comparison.methods if any(e.run.choices for e in m.entries)]:
        figures.append(_choices(comparison, chosen))
    return gaps, figures


def _by_chunk(
    comparison: Comparison, methods: list[Method], of_run: Callable[[RunData], Mapping[int, float]]
) -> tuple[list[int], list[Series]]:
    """Return the chunks, and a line a method in its colour: means over its seeds; NaN: unknown."""
    known = {method.name: [of_run(entry.run) for entry in method.entries] for method in methods}
    chunks = sorted({chunk for runs in known.values() for run in runs for chunk in run})
    lines = []
    for number, method in enumerate(comparison.methods):
        if runs := known.get(method.name):
            means = mean_over(np.array([[run.get(c, np.nan) for c in chunks] for run in runs]), 0)
            lines.append(Series(printed(method.name), means.tolist(), colour(number)))
    return chunks, lines


def _separation(comparison: Comparison, routed: list[Method]) -> Figure:
    chunks, lines = _by_chunk(
        comparison, routed, lambda run: {c: float(mean_over(r.nmi)) for c, r in run.routing.items()}
    )
    names = ", ".join(line.name for line in lines)
    return over_chunks(
        "Does the expert set tell the task?",
        f"Mutual information of task and expert set over the stream: {names}.",
        lines,
        chunks,
        "NMI(task, expert set)",
        "Mutual information of task and expert set",
        "Mean over layers and seeds. 1: the expert set names the task, 0: it says nothing of it.",
        cell=ratio,
        show="{:.2g}".format,
    )


def _choices(comparison: Comparison, chosen: list[Method]) -> Figure:
    chunks, lines = _by_chunk(
        comparison, chosen, lambda run: {c: o.total.dominant_chunk for c, o in run.choices.items()}
    )
    names = ", ".join(line.name for line in lines)
    figure = over_chunks(
        "Is the right chunk chosen?",
        f"Share of questions that went to the dominant chunk of their task: {names}.",
        lines,
        chunks,
        "Dominant chunk, %",
        "Right choices (dominant chunk), in percent",
        f"Mean over seeds. {RIGHT}",
    )
    by_run = [
        [printed(method.name_of(entry)), *_row(entry.run.choices[max(entry.run.choices)])]
        for method in chosen
        for entry in method.entries
        if entry.run.choices
    ]
    head = ["run", "after", "chosen by", *NAMES, "no legal letter"]
    figure.tables.append(
        Table("Choice of a chunk by run, in percent of the questions", head, by_run)
    )
    return figure


def _row(choices: Choices) -> list[str]:
    by = {"adapter": "a router adapter", "router": "image and text keys"}[choices.what]
    figures = (*choices.total.values(), choices.illegal_share)
    return [f"chunk {choices.chunk}", by, *map(percent, figures)]

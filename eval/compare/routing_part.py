"""Routing of compared runs: do expert sets tell the tasks, was the right chunk chosen.

Runs whose method routes nothing have no record; they are named, never drawn as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

import numpy as np

from eval.charts.figure import Figure, Table, colour, percent, ratio
from eval.charts.plots import Series, legend, line_chart, short_percent
from eval.compare.comparison import Comparison
from eval.compare.names import printed
from eval.compare.runs import Method
from eval.metrics import Array, mean_over
from eval.report.choices import NAMES, RIGHT
from eval.report.data import RunData
from eval.routing.router_accuracy import Choices


class RoutingComparison(TypedDict):
    """What the page says about routing: runs without a record, and the plots of those with one."""

    gaps: list[str]
    figures: list[Figure]


def routing_part(found: Comparison) -> RoutingComparison | None:
    """Return the part of the page; None where no run routes, nor chooses among chunks."""
    figures: list[Figure] = []
    gaps: list[str] = []
    if routed := [m for m in found.methods if any(e.run.routing for e in m.entries)]:
        figures.append(_separation(found, routed))
        without = ", ".join(
            printed(m.name_of(e)) for m in found.methods for e in m.entries if not e.run.routing
        )
        gaps = [f"Without a routing record: {without}."] if without else []
    if chosen := [m for m in found.methods if any(e.run.choices for e in m.entries)]:
        figures.append(_choices(found, chosen))
    return {"gaps": gaps, "figures": figures} if figures else None


def _values(
    methods: list[Method], of_run: Callable[[RunData], Mapping[int, float]]
) -> tuple[list[int], dict[str, Array]]:
    """Return the chunks and each method's values at them, means over its seeds; NaN: unknown."""
    known = {m.name: [of_run(entry.run) for entry in m.entries] for m in methods}
    chunks = sorted({chunk for runs in known.values() for run in runs for chunk in run})
    rows = {n: [[run.get(c, np.nan) for c in chunks] for run in runs] for n, runs in known.items()}
    return chunks, {name: mean_over(np.array(values), axis=0) for name, values in rows.items()}


def _lines(found: Comparison, values: Mapping[str, Array]) -> list[Series]:
    """Return lines in the colours that the methods have everywhere on the page."""
    names = [method.name for method in found.methods]
    return [Series(printed(n), v.tolist(), colour(names.index(n))) for n, v in values.items()]


def _separation(found: Comparison, routed: list[Method]) -> Figure:
    chunks, values = _values(
        routed, lambda run: {c: float(mean_over(r.nmi)) for c, r in run.routing.items()}
    )
    series = _lines(found, values)
    names = list(map(printed, values))
    title = f"Mutual information of task and expert set over the stream: {', '.join(names)}."
    chart = line_chart(title, series, [float(c) for c in chunks], "chunk", "NMI(task, expert set)",
                       lambda v: f"{v:.2g}", height=240.0, from_zero=True)  # fmt: skip
    rows = [[f"chunk {c}", *(ratio(float(v[i])) for v in values.values())]
            for i, c in enumerate(chunks)]  # fmt: skip
    table = Table("Mutual information of task and expert set", ["after", *names], rows)
    note = "Mean over layers and seeds. 1: the expert set names the task, 0: it says nothing of it."
    heading = "Does the expert set tell the task?"
    return Figure(heading, chart, [table], note, legend=legend(series))


def _choices(found: Comparison, chosen: list[Method]) -> Figure:
    chunks, values = _values(
        chosen, lambda run: {c: o.total.dominant_chunk for c, o in run.choices.items()}
    )
    series = _lines(found, values)
    names = ", ".join(map(printed, values))
    title = f"Share of questions that went to the dominant chunk of their task: {names}."
    chart = line_chart(title, series, [float(c) for c in chunks], "chunk", "Dominant chunk, %",
                       short_percent, height=240.0, from_zero=True)  # fmt: skip
    rows = [[f"chunk {c}", *(percent(float(v[i])) for v in values.values())]
            for i, c in enumerate(chunks)]  # fmt: skip
    by_run = [
        [printed(method.name_of(entry)), *_row(entry.run.choices[max(entry.run.choices)])]
        for method in chosen
        for entry in method.entries
        if entry.run.choices
    ]
    head = ["run", "after", "chosen by", *NAMES, "no legal letter"]
    tables = [
        Table("Right choices (dominant chunk), in percent", ["after", *map(printed, values)], rows),
        Table("Choice of a chunk by run, in percent of the questions", head, by_run),
    ]
    note = f"Mean over seeds. {RIGHT}"
    return Figure("Is the right chunk chosen?", chart, tables, note, legend=legend(series))


def _row(choices: Choices) -> list[str]:
    by = {"adapter": "a router adapter", "router": "image and text keys"}[choices.what]
    figures = (*choices.total.values(), choices.illegal_share)
    return [f"chunk {choices.chunk}", by, *map(percent, figures)]

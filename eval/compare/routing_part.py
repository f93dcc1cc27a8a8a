"""The routing of compared runs side by side: do expert sets tell the tasks, who uses which expert.

How well chunks were chosen (MR-LoRA, BranchLoRA) stands in `choice_part`.

Runs whose method routes nothing have no record; they are named, never drawn as zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eval import metrics
from eval.charts.figure import Figure, Table, both
from eval.charts.lines import Series, heat_map, line_chart, percent
from eval.charts.svg import colour
from eval.compare.choice_part import choice_figure
from eval.compare.comparison import Comparison
from eval.compare.runs import Entry, Method
from eval.metrics import Array
from eval.report.routing.routing_tables import ratio
from eval.routing import diagnosis


def routing_part(found: Comparison) -> dict[str, Any] | None:
    """Return what is told about the runs without a record, and the figures of those with one.

    None where no run has a record of experts, nor of choices among chunks.
    """
    choices = choice_figure(found)
    if not any(_recorded(method) for method in found.methods):
        return {"gaps": [], "figures": [choices]} if choices else None
    without = [
        f"{method.name} (seed {entry.seed})" if len(method.entries) > 1 else method.name
        for method in found.methods
        for entry in method.entries
        if not entry.run.routing
    ]
    gaps = [f"Without a routing record: {', '.join(without)}."] if without else []
    makers = (_separation, _shares)
    figures = [*(make(found) for make in makers), *([choices] if choices else [])]
    return {"gaps": gaps, "figures": figures}


def _recorded(method: Method) -> list[Entry]:
    return [entry for entry in method.entries if entry.run.routing]


def _mean_separation(method: Method, chunks: list[int]) -> Array:
    """Return NMI(task, expert set) at `chunks`, mean over layers and seeds; NaN where unknown."""
    rows = np.full((len(method.entries), len(chunks)), np.nan)
    for row, entry in enumerate(method.entries):
        course = entry.run.routing
        for chunk, value in zip(sorted(course), diagnosis.separation(course), strict=True):
            rows[row, chunks.index(chunk)] = value
    return metrics.mean_over(rows, axis=0)


def _separation(found: Comparison) -> Figure:
    chunks = sorted({c for m in found.methods for e in m.entries for c in e.run.routing})
    values = {method.name: _mean_separation(method, chunks) for method in found.methods}
    routed = [method.name for method in found.methods if _recorded(method)]
    series = [Series(name, values[name].tolist(), colour(list(values).index(name)))
              for name in routed]  # fmt: skip
    title = f"Mutual information of task and expert set over the stream: {', '.join(routed)}."
    x = [float(chunk) for chunk in chunks]
    chart = both(
        lambda w: line_chart(title, series, x, w, "chunk", "NMI(task, expert set)",
                             show=lambda v: f"{v:.2g}", y_max=1.0, height=240.0, name_lines=False)
    )  # fmt: skip
    body = [[f"chunk {c}", *(ratio(float(v[i])) for v in values.values())]
            for i, c in enumerate(chunks)]  # fmt: skip
    table = Table("Mutual information of task and expert set", ["after", *values], body)
    legend = [{"name": s.name, "class_": s.class_} for s in series]
    note = "Mean over layers and seeds. 1: the expert set names the task, 0: it says nothing of it."
    return Figure(
        "Does the expert set tell the task?", chart, [table], note, legend=legend, always=True
    )


def _expert_weight(entry: Entry, tasks: list[str], experts: int) -> Array:
    """Return the mean stage-2 weight of each expert, (tasks, experts), after the last record."""
    routing = entry.run.routing[max(entry.run.routing)]
    weight = np.full((len(tasks), experts), np.nan)
    for row, task in enumerate(tasks):
        if task in routing.tasks:
            mean = metrics.mean_over(routing.use[routing.tasks.index(task)], axis=0)
            weight[row, : routing.experts] = mean
    return weight


def _shares(found: Comparison) -> Figure:
    """Return expert shares by run: experts of two seeds have nothing in common but their number."""
    entries = {m.name_of(e): e for m in found.methods for e in m.entries if e.run.routing}
    experts = max(r.experts for e in entries.values() for r in e.run.routing.values())
    weights = {n: _expert_weight(e, found.tasks, experts) for n, e in entries.items()}
    columns = [f"E{number}" for number in range(experts)]
    means = np.array([metrics.mean_over(weight, axis=0) for weight in weights.values()])
    plural = "s" if len(entries) > 1 else ""
    title = (
        f"Share of {experts} experts (columns) in {len(entries)} run{plural} (rows), in percent."
    )
    chart = both(lambda w: heat_map(title, means, list(weights), columns, w, ""))
    body = [
        [f"{name}, {task}", *(percent(float(v)) for v in weight[row])]
        for name, weight in weights.items()
        for row, task in enumerate(found.tasks)
    ]
    table = Table("Expert weight by run and task, in percent", ["run, task", *columns], body)
    note = (
        "Stage-2 weight after the last recorded chunk, mean over layers and tasks; by task in the"
        " table. The experts of two runs share a number, nothing else."
    )
    return Figure("Who uses which expert", chart, [table], note)

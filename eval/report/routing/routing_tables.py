"""The tables behind the plots of routing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval import metrics
from eval.charts.figure import Table
from eval.charts.lines import percent
from eval.routing.record import Routing
from eval.run_files import AblationContent

Array = NDArray[np.float64]
LayerValues = Callable[[Sequence[str], Array], tuple[list[str], Array]]


def by_task(chunk: int, routing: Routing) -> Table:
    """Return stage-2 weight and stage-1 choice by task, means over layers, with entropies."""
    names = [f"E{e}" for e in range(routing.experts)]
    weight = metrics.mean_over(routing.use, axis=1)
    kept = metrics.mean_over(routing.selected, axis=1)
    stage1 = metrics.mean_over(routing.task_entropy)
    stage2 = metrics.mean_over(routing.token_entropy)
    rows = [
        [task, *_percents(weight[i]), *_percents(kept[i]), ratio(stage1[i]), ratio(stage2[i])]
        for i, task in enumerate(routing.tasks)
    ]
    head = ["task", *(f"{n} weight" for n in names), *(f"{n} kept" for n in names)]
    head += ["stage 1 entropy", "stage 2 entropy"]
    return Table(f"Expert use by task after chunk {chunk}, in percent", head, rows)


def by_task_and_layer(chunk: int, routing: Routing, layers: LayerValues) -> Table:
    """Return the weight of every expert by task and layer, with the layer's entropies."""
    rows = []
    for i, task in enumerate(routing.tasks):
        names, weight = layers(routing.layers, routing.use[i])
        stage1 = layers(routing.layers, routing.task_entropy[i])[1]
        stage2 = layers(routing.layers, routing.token_entropy[i])[1]
        rows += [
            [f"{task}, {name}", *_percents(weight[n]), ratio(stage1[n]), ratio(stage2[n])]
            for n, name in enumerate(names)
        ]
    head = ["task, layer", *(f"E{e}" for e in range(routing.experts))]
    caption = f"Expert weight by task and layer after chunk {chunk}, in percent"
    return Table(caption, [*head, "stage 1 entropy", "stage 2 entropy"], rows)


def expert_course(
    what: str, caption: str, names: Sequence[str], chunks: Sequence[int], values: Array
) -> Table:
    """Return expert weights over the stream: one row a task or layer and expert.

    Args:
        what: heads the first column.
        caption: of the table.
        names: of the rows.
        chunks: of the columns.
        values: (rows, experts, chunks).
    """
    rows = [
        [f"{name}, E{e}", *_percents(values[i, e])]
        for i, name in enumerate(names)
        for e in range(values.shape[1])
    ]
    return Table(caption, [f"{what}, expert", *(f"chunk {c}" for c in chunks)], rows)


def matrix(
    caption: str, what: str, rows: Sequence[str], columns: Sequence[str], values: Array
) -> Table:
    """Return a matrix of shares in percent."""
    body = [[name, *_percents(values[i])] for i, name in enumerate(rows)]
    return Table(caption, [what, *columns], body)


def course(caption: str, chunks: Mapping[int, Routing], columns: Mapping[str, Array]) -> Table:
    """Return columns of numbers over the recorded chunks."""
    rows = [
        [f"chunk {chunk}", *(ratio(float(values[row])) for values in columns.values())]
        for row, chunk in enumerate(chunks)
    ]
    return Table(caption, ["after", *columns], rows)


def instructions(chunk: int, routing: Routing) -> Table:
    """Return the instructions on the map with their places."""
    rows = [
        [i.text if len(i.text) <= 80 else f"{i.text[:79]}…", i.task, str(i.rows),
         *(f"{value:.2f}" for value in i.point[:2])]
        for i in routing.instructions
    ]  # fmt: skip
    caption = f"Instructions on the map after chunk {chunk}"
    return Table(caption, ["instruction", "task", "questions", "first", "second"], rows)


def ablation(content: AblationContent) -> Table:
    """Return what each part is worth: score, cost and interval over all tasks, cost by task."""
    tasks = list(content["intact"]["tasks"])
    whole = content["intact"]
    rows = [
        ["intact", _percent(whole["score"]), "", "",
         *(_percent(whole["tasks"][task]["score"]) for task in tasks)]
    ]  # fmt: skip
    for entry in content["ablations"]:
        ends = [_percent(end) for end in (entry["low"], entry["high"])]
        costs = [_percent(entry["tasks"][task]["cost"]) for task in tasks]
        name = entry["name"].replace("_", " ")
        rows.append(
            [name, _percent(entry["score"]), _percent(entry["cost"]), " to ".join(ends), *costs]
        )
    head = ["switched off", "mean score", "cost", "95 % interval"]
    head += [f"{task}: cost" for task in tasks]
    caption = f"Ablations after chunk {content['chunk']}, in percent; first row: intact scores"
    return Table(caption, head, rows)


def _percent(value: float | None) -> str:
    return percent(math.nan if value is None else value)


def _percents(values: Array) -> list[str]:
    return [percent(float(value)) for value in values]


def ratio(value: float) -> str:
    """Return a number with three digits behind the point; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}"  # noqa: RUF001

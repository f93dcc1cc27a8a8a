"""The maps of the routing section: tasks, layers and chunks against experts, task against task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval import metrics
from eval.charts import lines as charts
from eval.charts.diagrams import Cloud, grouped_map, scatter, shape
from eval.charts.figure import Chart, Figure, both
from eval.charts.lines import percent
from eval.charts.svg import colour
from eval.report.data import RunData
from eval.report.routing import routing_tables
from eval.routing import diagnosis
from eval.routing.record import Routing

Array = NDArray[np.float64]
MOST_LAYERS = 32


def routing_by_chunk(run: RunData) -> dict[int, Routing]:
    """Return the chunks with a routing record, in order."""
    return {chunk: run.routing[chunk] for chunk in sorted(run.routing) if run.routing[chunk].tasks}


def last_of(run: RunData) -> tuple[int, Routing]:
    """Return the last chunk with a routing record, and the record."""
    course = routing_by_chunk(run)
    return max(course), course[max(course)]


def expert_names(routing: Routing) -> list[str]:
    """Return E0, E1, ...: numbered as in the training log."""
    return [f"E{e}" for e in range(routing.experts)]


def by_task(run: RunData) -> Figure:
    """Return the weight of every expert by task after the last chunk."""
    chunk, routing = last_of(run)
    values = metrics.mean_over(routing.use, axis=1)
    names = expert_names(routing)
    title = f"Expert weight of {len(routing.tasks)} tasks after chunk {chunk}, in percent."
    high = _high(values)
    chart = both(
        lambda w: charts.heat_map(title, values, routing.tasks, names, w, "expert", high=high)
    )
    note = "Share of the token weight (stage 2), mean over layers; every row sums to 100."
    return Figure(
        "Experts by task", chart, [routing_tables.by_task(chunk, routing)], note, half=True
    )


def _range(values: Array) -> str:
    return f"Pale: 0, dark: {percent(_high(values))} percent of the token weight."


def _high(values: Array) -> float:
    known = values[np.isfinite(values)]
    return max(float(known.max(initial=0.0)), 1e-9)


def task_course(run: RunData) -> Figure | None:
    """Return the weight of every expert by task over the stream; None before two chunks."""
    course = routing_by_chunk(run)
    if len(course) < 2:
        return None
    tasks = [t for t in run.tasks if any(t in r.tasks for r in course.values())]
    experts = max(r.experts for r in course.values())
    values = np.full((len(tasks), experts, len(course)), np.nan)
    for column, routing in enumerate(course.values()):
        shares = metrics.mean_over(routing.use, axis=1)
        for row, task in enumerate(routing.tasks):
            if task in tasks:
                values[tasks.index(task), : routing.experts, column] = shares[row]
    title = f"Expert weight of {len(tasks)} tasks after each of {len(course)} chunks."
    note = f"One block an expert, one column a chunk. {_range(values)}"
    table = routing_tables.expert_course("task", "Expert weight by task and chunk, in percent",
                                         tasks, list(course), values)  # fmt: skip
    return Figure(
        "Experts by task and chunk", _grouped(title, values, tasks, course), [table], note
    )


def _grouped(title: str, values: Array, rows: Sequence[str], course: dict[int, Routing]) -> Chart:
    groups = [f"E{e}" for e in range(values.shape[1])]
    columns, high = [str(c) for c in course], _high(values)
    return both(lambda w: grouped_map(title, values, rows, groups, columns, w, high))


def layer_values(names: Sequence[str], values: Array) -> tuple[list[str], Array]:
    """Return row names and values by layer; a deep model's layers are averaged by block."""
    if len(names) <= MOST_LAYERS:
        return [short_layer(name) for name in names], values
    blocks, means = diagnosis.by_block(names, values)
    return [f"block {block}" for block in blocks], means


def short_layer(name: str) -> str:
    """Return a layer's name without what all layers share: "0 q_proj"."""
    parts = name.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number} {parts[-1]}".strip()


def same_layers(run: RunData) -> dict[int, Routing]:
    """Return the chunks whose record has the layers and experts of the last one."""
    course, last = routing_by_chunk(run), last_of(run)[1]
    return {
        chunk: r
        for chunk, r in course.items()
        if r.layers == last.layers and r.experts == last.experts
    }


def layer_course(run: RunData) -> Figure:
    """Return the weight of every expert by layer over the stream."""
    course = same_layers(run)
    chunk, last = last_of(run)
    stacked = [metrics.mean_over(r.use, axis=0) for r in course.values()]
    rows, values = layer_values(last.layers, np.stack(stacked, axis=-1))
    title = f"Expert weight in {len(rows)} layers after each of {len(course)} chunks."
    note = f"Mean over tasks. One block an expert, one column a chunk. {_range(values)}"
    tables = [
        routing_tables.expert_course("layer", "Expert weight by layer and chunk, in percent",
                                     rows, list(course), values),
        routing_tables.by_task_and_layer(chunk, last, layer_values),
    ]  # fmt: skip
    return Figure("Experts by layer and chunk", _grouped(title, values, rows, course), tables, note)


def layer_separation(run: RunData) -> Figure:
    """Return NMI by block and kind of layer after the last chunk; its table has every chunk."""
    course = same_layers(run)
    chunk, last = last_of(run)
    blocks, kinds, square = diagnosis.block_by_kind(last.layers, last.nmi)
    title = f"Mutual information of task and expert set in {len(last.layers)} layers, in percent."
    chart = both(lambda w: charts.heat_map(title, square, blocks, kinds, w, "", high=1.0))
    note = f"NMI of task and expert set after chunk {chunk}, by decoder block and layer."
    stacked = np.stack([r.nmi for r in course.values()], axis=-1)
    rows, values = layer_values(last.layers, stacked)
    columns = [f"chunk {c}" for c in course]
    table = routing_tables.matrix("NMI(task, expert set) by layer and chunk, in percent", "layer",
                                  rows, columns, values)  # fmt: skip
    return Figure("Which layers tell tasks apart", chart, [table], note, half=True)


def _square(run: RunData, heading: str, caption: str, values: Array, note: str) -> Figure | None:
    chunk, routing = last_of(run)
    if len(routing.tasks) < 2:
        return None
    tasks = routing.tasks
    title = f"{caption} after chunk {chunk}; {len(tasks)} tasks in rows and columns, in percent."
    chart = both(lambda w: charts.heat_map(title, values, tasks, tasks, w, ""))
    table = routing_tables.matrix(f"{caption} after chunk {chunk}, in percent", "task", tasks,
                                  tasks, values)  # fmt: skip
    return Figure(heading, chart, [table], note, half=True)


def overlap_of_tasks(run: RunData) -> Figure | None:
    """Return how much expert weight every two tasks share; None below two tasks."""
    note = "Expert weight that two tasks share, mean over layers. 100: the same experts."
    values = diagnosis.overlap(last_of(run)[1].use)
    return _square(run, "Overlap of tasks", "Overlap of tasks", values, note)


def similarity_of_outputs(run: RunData) -> Figure | None:
    """Return the CKA of the experts' outputs for every two tasks; None below two tasks."""
    note = (
        "Linear CKA (over features) of what the experts add to the layers' outputs, mean over"
        " layers. 100: the same directions."
    )
    values = metrics.mean_over(last_of(run)[1].cka, axis=0)
    caption = "Similarity of expert outputs (CKA)"
    return _square(run, "Similarity of expert outputs", caption, values, note)


def instruction_map(run: RunData) -> Figure | None:
    """Return the instructions on their first two principal components; None without vectors."""
    chunk, routing = last_of(run)
    clouds = []
    for task in routing.tasks:
        mine = [i for i in routing.instructions if i.task == task and len(i.point) >= 2]
        points = [(i.point[0], i.point[1]) for i in mine]
        clouds.append(Cloud(task, [i.text for i in mine], points, [i.rows for i in mine]))
    if not any(cloud.points for cloud in clouds) or len(routing.variance) < 2:
        return None
    axes = [f"{name} component ({percent(v)} % of variance)"
            for name, v in zip(("first", "second"), routing.variance, strict=False)]  # fmt: skip
    count = sum(len(c.points) for c in clouds)
    title = f"Map of {count} instructions of {len(clouds)} tasks by their vectors after {chunk}."
    chart = both(lambda w: scatter(title, clouds, w, (axes[0], axes[1])))
    note = (
        "Principal components of the instruction vectors as the router sees them, every task"
        " weighing the same; a larger mark stands for more questions with that text. Tasks whose"
        " marks lie together are hard to tell apart for stage 1."
    )
    legend = [
        {"name": c.name, "class_": colour(i), "mark": shape(i, 6.0, 6.0, 4.6)}
        for i, c in enumerate(clouds)
    ]
    tables = [routing_tables.instructions(chunk, routing)]
    if np.isfinite(routing.cosine).any():
        shown = routing.tasks
        caption = f"Cosine of the tasks' mean instruction vectors after chunk {chunk}, x 100"
        tables.append(routing_tables.matrix(caption, "task", shown, shown, routing.cosine))
    return Figure("Instructions on a map", chart, tables, note, legend=legend, always=True)

"""The section about routing: who uses which expert, how well tasks are told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval import diagnosis, metrics
from eval.report import charts, routing_tables
from eval.report.charts import Bar, Series, percent
from eval.report.data import RunData
from eval.report.diagrams import Cloud, grouped_map, scatter, shape
from eval.report.figure import Figure, both
from eval.report.svg import colour
from eval.report.tables import curve_table
from eval.report.training import STABILITY_KEYS, curve
from eval.routing import Routing

Array = NDArray[np.float64]
MOST_LAYERS = 32
MOST_COLOURED = 16


def routing_section(run: RunData) -> dict[str, Any] | None:
    """Return the lead, the headline facts and the figures.

    None without any routing record or ablation; without a record alone there is no lead.
    """
    if not _course(run):
        figure = _ablation(run)
        only = {"lead": "", "facts": [], "gaps": routing_gaps(run)}
        return {**only, "figures": [figure]} if figure else None
    last = _last(run)[1]
    # Halves come in pairs.
    makers = [_by_task, _separation, _task_course, _overlap, _similarity, _layer_course]
    makers += [_layer_separation, _entropies, _drift, _stability, _map, _ablation]
    figures = [figure for make in makers if (figure := make(run)) is not None]
    return {
        "lead": _lead(run, last),
        "facts": _facts(last),
        "figures": figures,
        "gaps": routing_gaps(run),
    }


def routing_gaps(run: RunData) -> list[str]:
    """Return sentences about what the routing record lacks."""
    gaps = []
    for chunk, routing in sorted(run.routing.items()):
        if routing.unknown_rows > 0.5:
            text = f"{routing.unknown_rows:.0f} rows had an instruction of no test set; left out"
            gaps.append(f"Chunk {chunk}: {text}.")
        asked = _asked(run, chunk)
        if asked and routing.rows < 0.99 * asked:
            text = f"recorded for {routing.rows:.0f} of {asked} questions"
            gaps.append(f"Chunk {chunk}: {text} (the evaluation was interrupted and went on).")
    return gaps


def _asked(run: RunData, chunk: int) -> int:
    return int(run.matrix.samples[chunk].sum()) if chunk < len(run.matrix.samples) else 0


def _course(run: RunData) -> dict[int, Routing]:
    return {chunk: run.routing[chunk] for chunk in sorted(run.routing) if run.routing[chunk].tasks}


def _last(run: RunData) -> tuple[int, Routing]:
    course = _course(run)
    return max(course), course[max(course)]


def expert_names(routing: Routing) -> list[str]:
    """Return E0, E1, ...: numbered as in the training log."""
    return [f"E{e}" for e in range(routing.experts)]


def _lead(run: RunData, last: Routing) -> str:
    nmi, chunk = float(metrics.mean_over(last.nmi)), _last(run)[0]
    text = (
        f"After chunk {chunk} the normalised mutual information between task and chosen expert set"
        f" is {_number(nmi)} (mean over {len(last.layers)} layers; 0: the sets say nothing about"
        " the task, 1: they name it)."
    )
    first = min(_course(run))
    if first != chunk:
        earlier = float(metrics.mean_over(run.routing[first].nmi))
        text += f" After chunk {first} it was {_number(earlier)}."
    return text + " Measured on the test questions, the same after every chunk."


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"  # noqa: RUF001


def _facts(last: Routing) -> list[dict[str, str]]:
    stage1 = float(metrics.mean_over(last.task_entropy.ravel()))
    stage2 = float(metrics.mean_over(last.token_entropy.ravel()))
    shared = diagnosis.off_diagonal(diagnosis.overlap(last.use))
    alike = diagnosis.off_diagonal(metrics.mean_over(last.cka, axis=0))
    rows = [
        ("Separation", float(metrics.mean_over(last.nmi)), "NMI of task and expert set"),
        ("Overlap", shared, "expert weight two tasks share"),
        ("Similarity", alike, "CKA of two tasks' outputs"),
        ("Stage 1 entropy", stage1, f"nats, at most {math.log(last.experts):.2f}"),
        ("Stage 2 entropy", stage2, f"nats, at most {math.log(last.top_k):.2f}"),
    ]
    return [{"name": n, "value": _number(v), "note": note} for n, v, note in rows]


def _by_task(run: RunData) -> Figure:
    chunk, routing = _last(run)
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


def _high(values: Array) -> float:
    known = values[np.isfinite(values)]
    return max(float(known.max(initial=0.0)), 1e-9)


def _separation(run: RunData) -> Figure | None:
    course = _course(run)
    if len(course) < 2:
        return None
    values = diagnosis.separation(course)
    title = f"Mutual information of task and expert set over {len(course)} chunks."
    line = [Series("NMI", values.tolist(), "c0")]
    chart = _lines(title, line, course, "NMI(task, expert set)", 1.0)
    note = "Mean over layers. A falling line: the router loses the tasks."
    tables = [routing_tables.course("Mutual information of task and expert set", course,
                                    {"NMI": values})]  # fmt: skip
    return Figure("Does the expert set tell the task?", chart, tables, note, half=True)


def _lines(
    title: str,
    series: Sequence[Series],
    chunks: dict[int, Routing],
    y_label: str,
    y_max: float | None = None,
    height: float = 200.0,
) -> Any:
    x = [float(c) for c in chunks]

    def draw(width: float) -> Markup:
        return charts.line_chart(
            title, series, x, width, "chunk", y_label, show=lambda v: f"{v:.2g}", y_max=y_max,
            height=height, name_lines=len(series) > 1,
        )  # fmt: skip

    return both(draw)


def _task_course(run: RunData) -> Figure | None:
    course = _course(run)
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
    note = "One block an expert, one column a chunk: how a task's experts change over the stream."
    table = routing_tables.expert_course("task", "Expert weight by task and chunk, in percent",
                                         tasks, list(course), values)  # fmt: skip
    return Figure(
        "Experts by task and chunk", _grouped(title, values, tasks, course), [table], note
    )


def _grouped(title: str, values: Array, rows: Sequence[str], course: dict[int, Routing]) -> Any:
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


def _same_layers(run: RunData) -> dict[int, Routing]:
    course, last = _course(run), _last(run)[1]
    return {
        chunk: r
        for chunk, r in course.items()
        if r.layers == last.layers and r.experts == last.experts
    }


def _layer_course(run: RunData) -> Figure:
    course = _same_layers(run)
    chunk, last = _last(run)
    stacked = [metrics.mean_over(r.use, axis=0) for r in course.values()]
    rows, values = layer_values(last.layers, np.stack(stacked, axis=-1))
    title = f"Expert weight in {len(rows)} layers after each of {len(course)} chunks."
    note = "Mean over tasks. One block an expert, one column a chunk."
    tables = [
        routing_tables.expert_course("layer", "Expert weight by layer and chunk, in percent",
                                     rows, list(course), values),
        routing_tables.by_task_and_layer(chunk, last, layer_values),
    ]  # fmt: skip
    return Figure("Experts by layer and chunk", _grouped(title, values, rows, course), tables, note)


def _layer_separation(run: RunData) -> Figure:
    """Return NMI by block and kind of layer after the last chunk; its table has every chunk."""
    course = _same_layers(run)
    chunk, last = _last(run)
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
    chunk, routing = _last(run)
    if len(routing.tasks) < 2:
        return None
    tasks = routing.tasks
    title = f"{caption} after chunk {chunk}; {len(tasks)} tasks in rows and columns, in percent."
    chart = both(lambda w: charts.heat_map(title, values, tasks, tasks, w, ""))
    table = routing_tables.matrix(f"{caption} after chunk {chunk}, in percent", "task", tasks,
                                  tasks, values)  # fmt: skip
    return Figure(heading, chart, [table], note, half=True)


def _overlap(run: RunData) -> Figure | None:
    note = "Expert weight that two tasks share, mean over layers. 100: the same experts."
    values = diagnosis.overlap(_last(run)[1].use)
    return _square(run, "Overlap of tasks", "Overlap of tasks", values, note)


def _similarity(run: RunData) -> Figure | None:
    note = (
        "Linear CKA (over features) of what the experts add to the layers' outputs, mean over"
        " layers. 100: the same directions."
    )
    values = metrics.mean_over(_last(run)[1].cka, axis=0)
    caption = "Similarity of expert outputs (CKA)"
    return _square(run, "Similarity of expert outputs", caption, values, note)


def _drift(run: RunData) -> Figure | None:
    course = _course(run)
    if len(course) < 3:
        return None
    values = diagnosis.drift(course, run.tasks)
    many = len(run.tasks) > MOST_COLOURED
    series = [
        Series(task, values[1:, i].tolist(), "many" if many else colour(i))
        for i, task in enumerate(run.tasks)
    ]
    mean = metrics.mean_over(values)
    series.append(Series("mean", mean[1:].tolist(), "mean"))
    later = dict(list(course.items())[1:])
    title = f"How far the routing of {len(run.tasks)} tasks moved with each chunk."
    chart = _lines(title, series, later, "Weight that changed experts", height=240.0)
    note = (
        "Share of a task's token weight that went to other experts since the recorded chunk"
        " before, mean over layers."
    )
    by_task = {task: values[:, i] for i, task in enumerate(run.tasks)} | {"mean": mean}
    table = routing_tables.course("Drift of routing since the chunk before", course, by_task)
    legend = [{"name": s.name, "class_": s.class_} for s in (series[-2:] if many else series)]
    if many:
        legend[0]["name"] = "one task each"
    return Figure("Drift of each task's routing", chart, [table], note, legend=legend)


def _entropies(run: RunData) -> Figure | None:
    course = _course(run)
    if len(course) < 2:
        return None
    stage1, stage2 = diagnosis.entropies(course)
    series = [Series("stage 1", stage1.tolist(), "c0"), Series("stage 2", stage2.tolist(), "c1")]
    last = _last(run)[1]
    title = f"Entropy of both routing stages over {len(course)} chunks, in nats."
    chart = _lines(title, series, course, "Entropy, nats", math.log(last.experts))
    note = (
        f"Stage 1 (instruction over all experts) at most {math.log(last.experts):.2f}, stage 2"
        f" (token over the kept ones) at most {math.log(last.top_k):.2f}. Low: decided."
    )
    named = {"stage 1": stage1, "stage 2": stage2}
    table = routing_tables.course("Entropy of routing, in nats", course, named)
    legend = [{"name": s.name, "class_": s.class_} for s in series]
    return Figure(
        "How decided the router is", chart, [table], note, half=True, legend=legend, always=True
    )


def _stability(run: RunData) -> Figure | None:
    line = curve(run, STABILITY_KEYS)
    if line is None:
        return None
    title = f"Routing-stability loss: {line.values[0]:.3g} at first, {line.values[-1]:.3g} at last."
    series = [Series("stability", line.values, "c0")]

    def draw(width: float) -> Markup:
        return charts.line_chart(
            title, series, line.steps, width, "optimizer step", "λ · KL(teacher || student)",
            show=lambda v: f"{v:g}", height=200.0, name_lines=False, marks=line.borders,
        )  # fmt: skip

    note = "From the training log. Thin lines: a new chunk begins."
    table = curve_table("Routing-stability loss", line)
    return Figure("Stability loss over the stream", both(draw), [table], note)


def _map(run: RunData) -> Figure | None:
    chunk, routing = _last(run)
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


ABLATIONS = {
    "stage1_off": "stage 1 off: all experts",
    "stage2_uniform": "stage 2 off: equal weights",
}


def ablation_name(name: str) -> str:
    """Return an ablation's name for people."""
    return ABLATIONS.get(name, name.replace("without_expert_", "without E"))


def _ablation(run: RunData) -> Figure | None:
    entries = run.ablation.get("ablations") or []
    if not entries:
        return None
    nan = math.nan

    def known(value: Any) -> float:
        return nan if value is None else float(value)

    items = [
        Bar(ablation_name(e["name"]), *(known(e.get(key)) for key in ("cost", "low", "high")))
        for e in entries
    ]
    worst = max((i for i in items if not math.isnan(i.value)), key=lambda i: i.value, default=None)
    tail = f"; most: {worst.name}, {percent(worst.value)} points" if worst else ""
    chunk = run.ablation.get("chunk")
    title = f"What each part of the router is worth after chunk {chunk}{tail}."
    unit = "points of the mean score lost without it"
    chart = both(lambda width: charts.bars(title, items, width, unit))
    note = (
        f"The adapter of chunk {chunk} evaluated again with a part switched off; whiskers: 95 %"
        " bootstrap interval, paired on the same test samples."
    )
    return Figure("What each part is worth", chart, [routing_tables.ablation(run.ablation)], note)

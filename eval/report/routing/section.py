"""The section about routing: who uses which expert, how well tasks are told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval import metrics
from eval.charts import lines as charts
from eval.charts.bars import Bar, bars
from eval.charts.figure import Chart, Figure, both
from eval.charts.lines import Series, percent
from eval.charts.svg import colour
from eval.report.data import RunData
from eval.report.loss_curves import STABILITY_KEYS, curve
from eval.report.routing import routing_tables
from eval.report.routing.maps import (
    by_task,
    instruction_map,
    last_of,
    layer_course,
    layer_separation,
    overlap_of_tasks,
    routing_by_chunk,
    similarity_of_outputs,
    task_course,
)
from eval.report.tables import curve_table
from eval.routing import diagnosis
from eval.routing.record import Routing

Array = NDArray[np.float64]
MOST_COLOURED = 16


class Fact(TypedDict):
    """One number of the last chunk, ready for print."""

    name: str
    value: str
    note: str


class RoutingPart(TypedDict):
    """What the page says about routing; `lead` is empty without a routing record."""

    lead: str
    facts: list[Fact]
    figures: list[Figure]
    gaps: list[str]


def routing_section(run: RunData) -> RoutingPart | None:
    """Return the lead, the headline facts and the figures.

    None without any routing record or ablation; without a record alone there is no lead.
    """
    if not routing_by_chunk(run):
        if (figure := _ablation(run)) is None:
            return None
        return {"lead": "", "facts": [], "figures": [figure], "gaps": routing_gaps(run)}
    last = last_of(run)[1]
    # Halves come in pairs.
    makers = [by_task, _separation, task_course, overlap_of_tasks, similarity_of_outputs]
    makers += [layer_course, layer_separation, _entropies, _drift, _stability, instruction_map]
    figures = [figure for make in [*makers, _ablation] if (figure := make(run)) is not None]
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


def _lead(run: RunData, last: Routing) -> str:
    nmi, chunk = float(metrics.mean_over(last.nmi)), last_of(run)[0]
    text = (
        f"After chunk {chunk} the normalised mutual information between task and chosen expert set"
        f" is {_number(nmi)} (mean over {len(last.layers)} layers; 0: the sets say nothing about"
        " the task, 1: they name it)."
    )
    first = min(routing_by_chunk(run))
    if first != chunk:
        earlier = float(metrics.mean_over(run.routing[first].nmi))
        text += f" After chunk {first} it was {_number(earlier)}."
    return text + " Measured on the test questions, the same after every chunk."


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"  # noqa: RUF001


def _facts(last: Routing) -> list[Fact]:
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


def _separation(run: RunData) -> Figure | None:
    course = routing_by_chunk(run)
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
) -> Chart:
    x = [float(c) for c in chunks]

    def draw(width: float) -> Markup:
        return charts.line_chart(
            title, series, x, width, "chunk", y_label, show=lambda v: f"{v:.2g}", y_max=y_max,
            height=height, name_lines=len(series) > 1,
        )  # fmt: skip

    return both(draw)


def _drift(run: RunData) -> Figure | None:
    course = routing_by_chunk(run)
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
    columns = {task: values[:, i] for i, task in enumerate(run.tasks)} | {"mean": mean}
    table = routing_tables.course("Drift of routing since the chunk before", course, columns)
    legend = [{"name": s.name, "class_": s.class_} for s in (series[-2:] if many else series)]
    if many:
        legend[0]["name"] = "one task each"
    return Figure("Drift of each task's routing", chart, [table], note, legend=legend)


def _entropies(run: RunData) -> Figure | None:
    course = routing_by_chunk(run)
    if len(course) < 2:
        return None
    stage1, stage2 = diagnosis.entropies(course)
    series = [Series("stage 1", stage1.tolist(), "c0"), Series("stage 2", stage2.tolist(), "c1")]
    last = last_of(run)[1]
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


ABLATIONS = {
    "stage1_off": "stage 1 off: all experts",
    "stage2_uniform": "stage 2 off: equal weights",
}


def ablation_name(name: str) -> str:
    """Return an ablation's name for people."""
    return ABLATIONS.get(name, name.replace("without_expert_", "without E"))


def _ablation(run: RunData) -> Figure | None:
    if run.ablation is None or not run.ablation["ablations"]:
        return None
    items = [
        Bar(ablation_name(e["name"]), *(math.nan if n is None else n for n in numbers))
        for e in run.ablation["ablations"]
        if (numbers := (e["cost"], e["low"], e["high"]))
    ]
    worst = max((i for i in items if not math.isnan(i.value)), key=lambda i: i.value, default=None)
    tail = f"; most: {worst.name}, {percent(worst.value)} points" if worst else ""
    chunk = run.ablation["chunk"]
    title = f"What each part of the router is worth after chunk {chunk}{tail}."
    unit = "points of the mean score lost without it"
    chart = both(lambda width: bars(title, items, width, unit))
    note = (
        f"The adapter of chunk {chunk} evaluated again with a part switched off; whiskers: 95 %"
        " bootstrap interval, paired on the same test samples."
    )
    return Figure("What each part is worth", chart, [routing_tables.ablation(run.ablation)], note)

"""From a run's data to the page: what each section of the template is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from data_prep.files import a_few
from eval import metrics
from eval.charts.figure import Chart, Entry, Figure, Table, colour, counted, percent
from eval.charts.plots import (
    Bar,
    Series,
    bars,
    composition,
    heat_map,
    legend,
    line_chart,
    small_multiples,
)
from eval.report.choices import choice_part
from eval.report.data import RunData
from eval.report.expert_use import routing_section
from eval.report.loss_curves import STABILITY_KEYS, curve
from eval.report.numbers import Number, Summary, outcome_text
from eval.report.samples import examples
from eval.report.tables import (
    caption_note,
    composition_table,
    curve_table,
    facts,
    form_table,
    matrix_table,
    mean_table,
    published_table,
    small_captions,
    task_table,
    timing_table,
    timing_text,
    weights_table,
)
from eval.significance import ONE_RUN_NOTE

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
MOST_COLOURED = 16
MOST_LINES = 6  # more tasks have a small plot each
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Card:
    """One headline number."""

    name: str
    value: str
    stderr: str
    note: str
    main: bool = False


def render(run: RunData, summary: Summary) -> str:
    """Return the HTML page of a run: one file that needs nothing else."""
    return fill("report.html.j2", page_context(run, summary))


def fill(template: str, context: dict[str, Any]) -> str:
    """Return a template of ours, filled, with the style sheet inside."""
    folder = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    # The style sheet is our own file; quotes in it must not become entities.
    return environment.get_template(template).render(context | {"css": Markup(css)})


def page_context(run: RunData, summary: Summary) -> dict[str, Any]:
    """Return everything that the template shows, ready for print."""
    lines = _accuracy_lines(run) if run.tasks else []
    return {
        "run": run,
        "lead": _lead(run),
        "status": _status(run),
        "outcome": outcome_text(run, summary),
        "gaps": run.gaps,
        "cards": _cards(run, summary),
        "measured": _measured(run),
        "small_captions": [
            caption_note(run, task, percent(chrf)) for task, chrf in small_captions(run).items()
        ],
        "plus_minus": _plus_minus(summary),
        "failed": summary.failed,
        "accuracy": _accuracy(run, lines) if lines else None,
        "entries": _entries(run, lines),
        "composition": composition_chart(run, run.evaluated)[0]
        if lines and run.composition()
        else None,
        "heat": _heat(run) if run.tasks else None,
        "forgetting": _forgetting(summary) if run.evaluated > 1 and not run.has_no_stream else None,
        "fewer_tasks": _fewer_tasks(run),
        "routing": routing_section(run),
        "choices": choice_part(run),
        "experts_why": _experts_why(run),
        "examples": examples(run),
        "losses": _losses(run),
        "timing": timing_text(run),
        "facts": facts(run),
        "recipe": run.recipe,
        "tables": _tables(run, summary),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "folder": run.root.name,
    }


def _lead(run: RunData) -> str:
    method = run.method or "unknown method"
    model = Path(run.manifest.model or "unknown model").name
    stream = run.stream.name if run.stream else "unknown stream"
    chunks = counted(run.planned, "chunk") if run.planned else "chunks"
    return f"{method} on {model}, {chunks} of {stream}, seed {run.seed_text}"


def _status(run: RunData) -> str:
    done = run.evaluated if run.state.done is None else run.state.done
    if run.finished:
        return f"Finished: {done} of {run.planned} chunks"
    planned = f" of {run.planned}" if run.planned else ""
    return f"Still going on: {done}{planned} chunks done, numbers are those of now"


def _measured(run: RunData) -> str:
    last = metrics.last_by_task(run.matrix.values) if run.tasks else np.zeros(0)
    missing = [t for t, value in zip(run.tasks, last, strict=True) if math.isnan(value)]
    if missing:
        return f"Not measured after chunk {run.evaluated}: {', '.join(missing)}."
    return f"{counted(len(run.tasks), 'task')}, last evaluated chunk {run.evaluated}."


def _fewer_tasks(run: RunData) -> str:
    """Return after which chunks a mean is over fewer tasks; empty: after none."""
    tested = np.isfinite(run.matrix.values).sum(axis=1).tolist()
    rows = [f"{run.chunk_label(c)} ({n})" for c, n in enumerate(tested) if 0 < n < len(run.tasks)]
    if not rows:
        return ""
    return (
        f"Not all of the {len(run.tasks)} tasks are tested each time: after {a_few(rows)} the mean"
        " is over fewer, and may change with nothing learned or lost."
    )


def _plus_minus(summary: Summary) -> str:
    known = (n for key, n in summary.total.items() if key != "majority" and not math.isnan(n.value))
    if any(math.isnan(number.stderr) for number in known):
        why = "where prediction files that a number needs cannot be read or do not fit matrix.csv"
        return f"{ONE_RUN_NOTE}; no ± {why}, or a task has one test sample"
    return ONE_RUN_NOTE


def _cards(run: RunData, summary: Summary) -> list[Card]:
    if not summary.total:
        return []
    numbers = {"base": [row.base for row in summary.tasks],
               "majority": [row.majority for row in summary.tasks]}  # fmt: skip

    def of(key: str) -> str:
        known = sum(not math.isnan(number.value) for number in numbers[key])
        return f", {known} of {len(run.tasks)} tasks" if 0 < known < len(run.tasks) else ""

    rows = [
        ("last", "Last", f"mean over tasks after chunk {run.evaluated}", True),
        ("average", "Average", "over chunks and tasks", True),
        ("lost", "Lost since best", "best minus last, mean over tasks; no gain cancels it", True),
        ("base", "Base model", f"before the stream{of('base')}", True),
        ("forgetting", "Forgetting", "best earlier chunk minus last, tasks seen before it", False),
        (
            "backward",
            "Backward transfer",
            "since first exposure, tasks seen before the last chunk",
            False,
        ),
        ("forward", "Forward transfer", "just before first exposure, tasks after chunk 1", False),
        ("majority", "Majority answer", f"best constant answer{of('majority')}", False),
    ]
    if run.has_no_stream:
        rows = [row for row in rows if row[0] in ("last", "base", "majority")]
    return [_card(summary.total[key], name, note, main) for key, name, note, main in rows]


def _card(number: Number, name: str, note: str, main: bool) -> Card:
    known = not math.isnan(number.value) and not math.isnan(number.stderr)
    stderr = percent(number.stderr) if known else ""
    missing = "" if not math.isnan(number.value) else "not known yet: "
    return Card(name, percent(number.value), stderr, missing + note, main)


def _accuracy_lines(run: RunData) -> list[Series]:
    """Return the scores of every task over all planned chunks, the mean of several last."""
    a = run.matrix.values
    many = len(run.tasks) > MOST_COLOURED
    lines = [
        Series(task, a[:, i].tolist(), "many" if many else colour(i))
        for i, task in enumerate(run.tasks)
    ]
    if len(run.tasks) > 1:  # the mean of one task is that task
        lines.append(Series("mean", metrics.mean_over(a).tolist(), "mean"))
    blank = [math.nan] * (max(run.planned, len(a) - 1) + 1 - len(a))
    return [Series(s.name, [*s.values, *blank], s.style) for s in lines]


def _entries(run: RunData, lines: Sequence[Series]) -> list[Entry]:
    """Return the legend; where every task has a plot of its own, of the bars below alone."""
    if len(run.tasks) <= MOST_LINES:
        return legend(lines)
    return legend(lines[:-1]) if run.composition() else []


def _accuracy(run: RunData, lines: Sequence[Series]) -> Chart:
    mean = metrics.mean_over(run.matrix.values)
    title = (
        f"Accuracy of {counted(len(run.tasks), 'task')} after each of "
        f"{counted(len(mean) - 1, 'chunk')}; the mean goes"
        f" from {percent(float(mean[0]))} to {percent(float(mean[-1]))} percent."
    )
    chunks = len(lines[-1].values)
    if len(run.tasks) <= MOST_LINES:
        return line_chart(title, lines, range(chunks), "chunk", "Score, %")
    *tasks, middle = lines
    grey = Series("mean", middle.values, "many")
    panels = [(s.name, [grey, Series(s.name, s.values, s.style)]) for s in tasks]
    return small_multiples(title, [("mean over tasks", [middle]), *panels], chunks)


def composition_chart(run: RunData, done: int) -> tuple[Chart, list[Entry]]:
    """Return what the chunks of a stream are made of, with the colours of the tasks."""
    chunks = run.composition()
    tasks = dict.fromkeys([*run.tasks, *(t for c in chunks for t in c)])
    entries = [Entry(task, colour(i)) for i, task in enumerate(tasks)]
    title = f"Share of each task among the samples of {counted(len(chunks), 'chunk')}."
    return composition(title, chunks, entries, done), entries


def _heat(run: RunData) -> Chart:
    a = run.matrix.values
    columns = ["base", *(str(c) for c in range(1, len(a)))]
    tasks = counted(len(run.tasks), "task")
    title = f"Scores of {tasks} (rows) after each chunk (columns), in percent."
    return heat_map(title, a.T, run.tasks, columns, "after chunk", framed=partial(held, run))


def held(run: RunData, row: int, chunk: int) -> bool:
    """Tell whether a chunk held the task of a row; of a period's test set: is of that period."""
    chunks = run.composition()
    if run.stream is None or not 1 <= chunk <= len(chunks):
        return False
    test = run.stream.task(run.tasks[row])
    return chunk == (test.chunk or chunk) and chunks[chunk - 1].get(test.trained_as, 0) > 0


def _forgetting(summary: Summary) -> Chart:
    numbers = [(row.task, row.forgetting) for row in summary.tasks]
    items = [Bar(t, n.value, n.value - n.stderr, n.value + n.stderr) for t, n in numbers]
    known = [item for item in items if not math.isnan(item.value)]
    worst = max(known, key=lambda item: item.value, default=None)
    tail = f"; most by {worst.name}, {percent(worst.value)} points" if worst else ""
    title = f"Forgetting of {counted(len(items), 'task')}{tail}."
    return bars(title, items, "points lost since the best chunk")


def _experts_why(run: RunData) -> str:
    method = run.manifest.method
    if run.manifest.protocol == "pool":
        return "Each question went to one adapter; which one is shown below."
    if method and run.manifest.tuner is None:
        return f"The method {method} has no routed experts."
    return "No chunk has a routing.json that can be read (the tuner writes it while evaluating)."


def _losses(run: RunData) -> list[Figure]:
    wanted = [("Language-model loss", ("loss",)), ("Routing-stability loss", STABILITY_KEYS)]
    plots = []
    for name, keys in wanted:
        line = curve(run, keys)
        if line is not None:
            first, last = line.values[0], line.values[-1]
            title = f"{name}: {first:.3g} at the first step, {last:.3g} at the last."
            series = [Series(name, line.values, "many"), Series(name, line.smooth, "c0")]
            chart = line_chart(
                title, series, line.steps, "optimizer step", "", lambda v: f"{v:g}",
                height=210.0, marks=line.borders, from_zero=True, most=line.usual,
            )  # fmt: skip
            plots.append(Figure(name, chart, [curve_table(name, line)]))
    return plots


def _tables(run: RunData, summary: Summary) -> dict[str, Table | None]:
    return {
        "matrix": matrix_table(run),
        "means": mean_table(run),
        "weights": weights_table(run),
        "composition": composition_table(run),
        "tasks": task_table(summary),
        "timing": timing_table(run),
        "published": published_table(run),
        "form": form_table(run),
    }

"""From a run's data to the page: what each section of the template is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from eval import metrics
from eval.report import charts
from eval.report.charts import NARROW, WIDE, Bar, Series, percent
from eval.report.data import RunData
from eval.report.numbers import Number, Summary, summarise
from eval.report.samples import stories
from eval.report.svg import colour
from eval.report.tables import (
    Table,
    composition_table,
    curve_table,
    expert_tables,
    facts,
    matrix_table,
    separation_table,
    task_table,
    timing_table,
    timing_text,
)
from eval.report.training import STABILITY_KEYS, curve

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
MOST_COLOURED = 16
MOST_LAYERS = 48
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Chart:
    """One plot for a screen and the same for a phone."""

    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class Card:
    """One headline number."""

    name: str
    value: str
    stderr: str
    note: str
    main: bool = False


def render(run: RunData) -> str:
    """Return the HTML page of a run: one file that needs nothing else."""
    folder = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    # The style sheet is our own file; quotes in it must not become entities.
    context = page_context(run) | {"css": Markup(css)}
    return environment.get_template("report.html.j2").render(context)


def page_context(run: RunData) -> dict[str, Any]:
    """Return everything that the template shows, ready for print."""
    summary = summarise(run)
    scored = bool(run.tasks)
    return {
        "run": run,
        "lead": _lead(run),
        "status": _status(run),
        "gaps": run.gaps,
        "cards": _cards(run, summary),
        "measured": _measured(run),
        "failed": summary.failed,
        "accuracy": _accuracy(run) if scored else None,
        "legend": _legend(run),
        "composition": _composition(run) if scored and run.composition() else None,
        "heat": _heat(run) if scored else None,
        "forgetting": _forgetting(summary) if run.evaluated > 1 else None,
        "experts": _experts(run),
        "experts_why": _experts_why(run),
        "stories": stories(run),
        "losses": _losses(run),
        "timing": timing_text(run),
        "facts": facts(run),
        "recipe": run.recipe,
        "tables": _tables(run, summary),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "folder": run.root.name,
    }


def _both(draw: Callable[[float], Markup]) -> Chart:
    return Chart(draw(WIDE), draw(NARROW))


def _lead(run: RunData) -> str:
    recipe = run.manifest.get("recipe") or {}
    method = str(recipe.get("method", "unknown method"))
    model = Path(str((recipe.get("model") or {}).get("path", "unknown model"))).name
    stream = run.stream.manifest.get("name", "") if run.stream else "unknown stream"
    chunks = f"{run.planned} chunks" if run.planned else "chunks"
    return f"{method} on {model}, {chunks} of {stream}, seed {run.manifest.get('seed', 'unknown')}"


def _status(run: RunData) -> str:
    done = int(run.state.get("done", run.evaluated))
    if run.finished:
        return f"Finished: {done} of {run.planned} chunks"
    planned = f" of {run.planned}" if run.planned else ""
    return f"Still going on: {done}{planned} chunks done, numbers are those of now"


def _measured(run: RunData) -> str:
    last = metrics.last_by_task(run.matrix.values) if run.tasks else np.zeros(0)
    missing = [t for t, value in zip(run.tasks, last, strict=True) if math.isnan(value)]
    if missing:
        return f"Not measured after chunk {run.evaluated}: {', '.join(missing)}."
    return f"{len(run.tasks)} tasks, last evaluated chunk {run.evaluated}."


def _cards(run: RunData, summary: Summary) -> list[Card]:
    if not summary.total:
        return []
    rows = [
        ("last", "Last", f"mean over tasks after chunk {run.evaluated}", True),
        ("average", "Average", "over chunks and tasks", True),
        ("forgetting", "Forgetting", "best earlier chunk minus last", True),
        ("base", "Base model", "before the stream", True),
        ("backward", "Backward transfer", "since first exposure", False),
        ("forward", "Forward transfer", "just before first exposure", False),
        ("plasticity", "Plasticity", "best gain over the base", False),
        ("majority", "Majority answer", "best constant answer", False),
    ]
    return [_card(summary.total[key], name, note, main) for key, name, note, main in rows]


def _card(number: Number, name: str, note: str, main: bool) -> Card:
    known = not math.isnan(number.value) and not math.isnan(number.stderr)
    stderr = percent(number.stderr) if known else ""
    missing = "" if not math.isnan(number.value) else "not known yet: "
    return Card(name, percent(number.value), stderr, missing + note, main)


def _legend(run: RunData) -> list[dict[str, str]]:
    if len(run.tasks) > MOST_COLOURED:
        return [{"name": "mean", "class_": "mean"}, {"name": "one task each", "class_": "many"}]
    entries = [{"name": task, "class_": colour(i)} for i, task in enumerate(run.tasks)]
    return [*entries, {"name": "mean", "class_": "mean"}]


def _accuracy(run: RunData) -> Chart:
    a = run.matrix.values
    many = len(run.tasks) > MOST_COLOURED
    lines = [
        Series(task, a[:, i].tolist(), "many" if many else colour(i))
        for i, task in enumerate(run.tasks)
    ]
    mean = metrics.mean_over(a)
    lines.append(Series("mean", mean.tolist(), "mean"))
    chunks = max(run.planned, len(a) - 1)
    blank = [math.nan] * (chunks + 1 - len(a))
    lines = [Series(s.name, [*s.values, *blank], s.class_) for s in lines]
    title = (
        f"Accuracy of {len(run.tasks)} tasks after each of {len(a) - 1} chunks; the mean goes from"
        f" {percent(float(mean[0]))} to {percent(float(mean[-1]))} percent."
    )
    x = [float(c) for c in range(chunks + 1)]
    return _both(
        lambda width: charts.line_chart(title, lines, x, width, "chunk", "Score, %", y_max=1.0)
    )


def _composition(run: RunData) -> Chart:
    chunks = run.composition()
    title = f"Share of each task among the samples of {len(chunks)} chunks."
    order = [*run.tasks, *(t for c in chunks for t in c if t not in run.tasks)]
    tasks = list(dict.fromkeys(order))
    return _both(lambda w: charts.composition(title, chunks, tasks, w, run.evaluated))


def _heat(run: RunData) -> Chart:
    a, chunks = run.matrix.values, run.composition()
    columns = ["base", *(str(c) for c in range(1, len(a)))]

    def held(row: int, column: int) -> bool:
        inside = 1 <= column <= len(chunks)
        return inside and chunks[column - 1].get(run.tasks[row], 0) > 0

    title = f"Scores of {len(run.tasks)} tasks (rows) after each chunk (columns), in percent."
    return _both(
        lambda w: charts.heat_map(title, a.T, run.tasks, columns, w, "after chunk", outlined=held)
    )


def _forgetting(summary: Summary) -> Chart:
    items = [Bar(r.task, r.forgetting.value, r.forgetting.stderr) for r in summary.tasks]
    known = [item for item in items if not math.isnan(item.value)]
    worst = max(known, key=lambda item: item.value, default=None)
    tail = f"; most by {worst.name}, {percent(worst.value)} points" if worst else ""
    title = f"Forgetting of {len(items)} tasks{tail}."
    return _both(lambda width: charts.bars(title, items, width))


def _experts(run: RunData) -> Mapping[str, Any] | None:
    if not run.routing:
        return None
    chunk = max(run.routing)
    routing = run.routing[chunk]
    if not routing.tasks:
        return None
    names = [f"E{e + 1}" for e in range(routing.use.shape[2])]
    by_task = routing.use.mean(axis=1)
    layers, by_layer = layer_rows(routing.layers, routing.use.mean(axis=0))
    high = max(float(by_task.max()), float(by_layer.max()), 1e-9)
    tasks_title = f"Expert shares of {len(routing.tasks)} tasks after chunk {chunk}."
    layers_title = f"Expert shares in {len(layers)} layers after chunk {chunk}."
    return {
        "chunk": chunk,
        "layers": len(routing.layers),
        "lead": _separation(run, chunk),
        "separation": _nmi_chart(run) if len(run.routing) > 1 else None,
        "by_task": _both(
            lambda w: charts.heat_map(
                tasks_title, by_task, routing.tasks, names, w, "expert", high=high
            )
        ),
        "by_layer": _both(
            lambda w: charts.heat_map(layers_title, by_layer, layers, names, w, "expert", high=high)
        ),
    }


def _nmi_chart(run: RunData) -> Chart:
    chunks = sorted(run.routing)
    values = [float(metrics.mean_over(run.routing[c].nmi)) for c in chunks]
    title = (
        f"Mutual information between task and expert set: {values[0]:.2f} after chunk {chunks[0]},"
        f" {values[-1]:.2f} after chunk {chunks[-1]}."
    )
    series = [Series("NMI", values, "c0")]

    def draw(width: float) -> Markup:
        return charts.line_chart(
            title, series, [float(c) for c in chunks], width, "chunk", "NMI(task, expert set)",
            show=lambda v: f"{v:.1f}", y_max=1.0, height=190.0, name_lines=False,
        )  # fmt: skip

    return _both(draw)


def _separation(run: RunData, chunk: int) -> str:
    routing = run.routing[chunk]
    nmi = float(metrics.mean_over(routing.nmi))
    text = (
        "How well the instruction separates tasks: normalised mutual information between task and"
        f" chosen expert set is {nmi:.2f} (mean over layers; 0: the sets say nothing about the"
        " task, 1: they name it)."
    )
    first = min(run.routing)
    if first != chunk:
        earlier = float(metrics.mean_over(run.routing[first].nmi))
        text += f" After chunk {first} it was {earlier:.2f}."
    if routing.unknown_rows:
        text += f" {routing.unknown_rows:.0f} rows had a text of no test set and are left out."
    return text


def _experts_why(run: RunData) -> str:
    method = (run.manifest.get("recipe") or {}).get("method")
    if method and method != "strlora":
        return f"The method {method} has no routed experts."
    return "No chunk has a routing.json that can be read (the tuner writes it while evaluating)."


def layer_rows(names: Sequence[str], shares: Array) -> tuple[list[str], Array]:
    """Return row names and shares (rows, experts); a deep model's layers are averaged by block."""
    if len(names) <= MOST_LAYERS:
        return [short_layer(name) for name in names], shares
    blocks = [short_layer(name).split()[0] for name in names]
    order = list(dict.fromkeys(blocks))
    means = [shares[[b == block for b in blocks]].mean(axis=0) for block in order]
    return [f"block {block}" for block in order], np.stack(means)


def short_layer(name: str) -> str:
    """Return a layer's name without what all layers share: "0 q_proj"."""
    parts = name.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number} {parts[-1]}".strip()


def _losses(run: RunData) -> list[dict[str, Any]]:
    wanted = [("Language-model loss", ("loss",)), ("Routing-stability loss", STABILITY_KEYS)]
    found = []
    for name, keys in wanted:
        line = curve(run, keys)
        if line is not None:
            chart = _loss_chart(name, line.steps, line.values, line.borders)
            found.append({"name": name, "chart": chart, "table": curve_table(name, line)})
    return found


def _loss_chart(
    name: str, steps: Sequence[float], values: Sequence[float], borders: Sequence[float]
) -> Chart:
    title = f"{name}: {values[0]:.3g} at the first step, {values[-1]:.3g} at the last."
    series = [Series(name, list(values), "c0")]

    def draw(width: float) -> Markup:
        return charts.line_chart(
            title, series, list(steps), width, "optimizer step", "", show=lambda v: f"{v:g}",
            height=210.0, name_lines=False, marks=borders,
        )  # fmt: skip

    return _both(draw)


def _tables(run: RunData, summary: Summary) -> dict[str, Table | None]:
    tables: dict[str, Table | None] = {
        "matrix": matrix_table(run),
        "composition": composition_table(run),
        "tasks": task_table(summary),
        "timing": timing_table(run),
        "separation": separation_table(run),
    }
    return tables | expert_tables(run)

"""The tables behind the plots, as text ready for print."""

from __future__ import annotations

import math
from typing import Any

from eval import metrics
from eval.charts.figure import Table
from eval.charts.lines import percent
from eval.report.data import RunData
from eval.report.numbers import Number, Summary
from eval.report.training import Curve

MOST_ROWS = 60


def with_error(number: Number) -> str:
    """Return "61.3 ± 1.6", or the value alone, or a dash."""
    if math.isnan(number.value) or math.isnan(number.stderr):
        return percent(number.value)
    return f"{percent(number.value)} ± {percent(number.stderr)}"


def matrix_table(run: RunData) -> Table:
    """Return a[chunk, task] in percent, one row a chunk, the mean behind."""
    rows = []
    for chunk, values in enumerate(run.matrix.values):
        name = "base model" if chunk == 0 else f"chunk {chunk}"
        mean = float(metrics.mean_over(values))
        rows.append([name, *(percent(float(v)) for v in values), percent(mean)])
    return Table("Score after each chunk, in percent", ["after", *run.tasks, "mean"], rows)


def mean_table(run: RunData) -> Table:
    """Return the mean over tasks after each chunk, with the best and the worst task."""
    rows = []
    for chunk, values in enumerate(run.matrix.values):
        known = [(float(v), task) for v, task in zip(values, run.tasks, strict=True) if v == v]
        ends = [f"{task} {percent(v)}" for v, task in (max(known), min(known))] if known else []
        name = "base model" if chunk == 0 else f"chunk {chunk}"
        rows.append([name, percent(float(metrics.mean_over(values))), *(ends or ["–", "–"])])  # noqa: RUF001
    caption = "Mean score after each chunk, in percent; the matrix below has every task"
    return Table(caption, ["after", "mean", "best task", "worst task"], rows)


def composition_table(run: RunData) -> Table | None:
    """Return the samples by task, one row a chunk; None without a stream."""
    chunks = run.composition()
    if not chunks:
        return None
    tasks = list(dict.fromkeys([*run.tasks, *(t for c in chunks for t in c)]))
    rows = [
        [f"chunk {n}", *(str(chunk.get(task, 0)) for task in tasks)]
        for n, chunk in enumerate(chunks, start=1)
    ]
    return Table("Training samples by task", ["chunk", *tasks], rows)


def task_table(summary: Summary) -> Table:
    """Return every task's numbers with standard errors."""
    head = [
        "task",
        "scorer",
        "samples",
        "failed",
        "first chunk",
        "majority",
        "base",
        "best",
        "last",
    ]
    head += ["forgetting", "backward transfer", "forward transfer"]
    rows = [
        [
            row.task,
            row.scorer,
            str(row.samples),
            str(row.failed),
            "never" if row.first is None else str(row.first),
            percent(row.majority.value),
            *map(with_error, (row.base, row.best, row.last)),
            *map(with_error, (row.forgetting, row.backward, row.forward)),
        ]
        for row in summary.tasks
    ]
    return Table("All tasks, scores in percent; failed: over all chunks", head, rows)


def published_table(run: RunData) -> Table | None:
    """Return our last scores beside what the published scripts print for the same answers."""
    published = run.last_scores.get("published")
    ours = run.last_scores.get("tasks")
    if not isinstance(published, dict) or not isinstance(ours, dict):
        return None
    crashes, theirs = published.get("crashes") or {}, published.get("tasks") or {}
    rows = []
    for task, entry in ours.items():
        cider = f"CIDEr {entry['cider']:.1f}" if entry.get("cider") is not None else ""
        crash = f"would crash: {crashes[task]}" if task in crashes else ""
        notes = [cider, f"{entry['cut']} cut off" if entry.get("cut") else "", crash]
        value = theirs.get(task)
        shown = "–" if value is None else f"{value:.1f}"  # noqa: RUF001
        score = math.nan if entry.get("score") is None else float(entry["score"])
        rows.append([task, percent(score), shown, "; ".join(n for n in notes if n)])
    mean = published.get("mean")
    if mean is not None:
        rows.append(["mean of the nine published tasks", "", f"{mean:.1f}", ""])
    caption = f"Scores as the published scripts print them, after chunk {run.evaluated}"
    return Table(caption, ["task", "score, %", "published script", "note"], rows)


def curve_table(name: str, curve: Curve) -> Table:
    """Return a thinned curve, at most `MOST_ROWS` rows."""
    step = max(1, math.ceil(len(curve.steps) / MOST_ROWS))
    pairs = list(zip(curve.steps, curve.values, strict=True))[::step]
    rows = [[f"{s:g}", f"{v:.4g}"] for s, v in pairs]
    return Table(f"{name} by optimizer step", ["step", name.lower()], rows)


def timing_table(run: RunData) -> Table | None:
    """Return steps, seconds and peak memory by chunk, the sums below; None without state.json."""
    records = run.records
    if not records:
        return None
    keys = ("steps", "train_seconds", "eval_seconds")
    rows = [[_chunk_name(r), *(_amount(r.get(key)) for key in keys), _memory(run, r)]
            for r in records]  # fmt: skip
    totals = [sum(float(r.get(key) or 0) for r in records) for key in keys]
    rows.append(["total", *map(_amount, totals), ""])
    head = ["chunk", "steps", "training, s", "evaluation, s", "training's peak memory, GiB"]
    return Table("Steps, wall time and peak memory by chunk", head, rows)


def _memory(run: RunData, record: dict[str, Any]) -> str:
    """Return the most memory that training a chunk held: an accelerator's, else main memory."""
    logged = [line.get("memory(GiB)") for line in run.training.get(record.get("index", -1), [])]
    known = [float(value) for value in logged if isinstance(value, int | float)]
    if not known and isinstance(record.get("train_memory_gib"), int | float):
        known = [float(record["train_memory_gib"])]
    return f"{max(known):.2f}" if known else "–"  # noqa: RUF001


def timing_text(run: RunData) -> str:
    """Return the run's wall time in one sentence, empty without state.json."""
    records = run.records
    if not records:
        return ""
    train = sum(float(r.get("train_seconds") or 0) for r in records)
    evaluation = sum(float(r.get("eval_seconds") or 0) for r in records)
    steps = sum(int(r.get("steps") or 0) for r in records)
    return (
        f"{steps} optimizer steps in {duration(train)} of training, {duration(evaluation)} of"
        " evaluation, process start-up included."
    )


def duration(seconds: float) -> str:
    """Return a time for people: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _chunk_name(record: dict[str, Any]) -> str:
    return "base model" if record.get("index") == 0 else str(record.get("index"))


def _amount(value: Any) -> str:
    return "–" if value is None else f"{float(value):.0f}"  # noqa: RUF001


def facts(run: RunData) -> list[tuple[str, str]]:
    """Return what made the run, as (name, value): recipe, seed, versions, code, data, machine."""
    m = run.manifest
    if not m:
        return []
    recipe, git, data = m.get("recipe") or {}, m.get("git") or {}, m.get("data") or {}
    listed: list[tuple[str, Any]] = [
        ("Method", run.method or None),
        ("Tuner", _inline(m.get("tuner") or recipe.get("tuner"))),
        ("Model", (recipe.get("model") or {}).get("path")),
        ("Stream", f"{data.get('name', '')} {str(data.get('sha256', ''))[:12]}".strip()),
        ("Seed", m.get("seed")),
        ("Processes", m.get("processes")),
        ("Global batch", m.get("global_batch")),
        ("Code", _inline(git)),
        ("Versions", _inline(m.get("versions"))),
        ("Machine", _inline(m.get("hardware"))),
        ("Started", m.get("started")),
    ]
    return [(name, str(value)) for name, value in listed if value not in (None, "")]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
    return "" if value is None else str(value)

"""The tables behind the plots, as text ready for print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from eval import metrics
from eval.charts.figure import Table, duration, percent, ratio
from eval.predictions import chrf_of_few
from eval.report.data import RunData
from eval.report.loss_curves import Curve, peak_memory
from eval.report.numbers import Number, Summary
from eval.run_files import ChunkState, JsonObject, Manifest

MOST_ROWS = 60
FORM = ("score", "blind to form", "form only", "lost since best", "blind", "in form")


def with_error(number: Number) -> str:
    """Return "61.3 ± 1.6", or the value alone, or a dash."""
    if math.isnan(number.value) or math.isnan(number.stderr):
        return percent(number.value)
    return f"{percent(number.value)} ± {percent(number.stderr)}"


def matrix_table(run: RunData) -> Table:
    """Return a[chunk, task] in percent, one row a chunk, the mean behind."""
    rows = []
    for chunk, values in enumerate(run.matrix.values):
        name = run.chunk_label(chunk)
        mean = float(metrics.mean_over(values))
        rows.append([name, *(percent(float(v)) for v in values), percent(mean)])
    return Table("Score after each chunk, in percent", ["after", *run.tasks, "mean"], rows)


def weights_table(run: RunData) -> Table | None:
    """Return the scores of both sets of weights in percent, two rows a chunk, their averages last.

    Only chunks count after which both were evaluated. None where one set was.
    """
    if run.other_weights is None:
        return None
    other, beside = run.other_weights
    names = {"fast": "slow weights (the adapter)", "slow": "fast weights (the adapter)"}
    sets = [(names[other], run.matrix.values), (f"{other} weights", beside.values)]
    both = [c for c, row in enumerate(beside.values) if c and not np.isnan(row).all()]
    rows: list[list[str]] = []
    means: dict[str, list[float]] = {}
    for chunk in both:
        for name, values in sets:
            mean = float(metrics.mean_over(values[chunk]))
            means.setdefault(name, []).append(mean)
            cells = [percent(float(value)) for value in (*values[chunk], mean)]
            rows.append([run.chunk_label(chunk), name, *cells])
    blank = [""] * len(run.tasks)
    for name, found in means.items():
        rows.append(["mean of these", name, *blank, percent(sum(found) / len(found))])
    caption = "Both sets of weights after the same chunks, scores in percent"
    return Table(caption, ["after", "weights", *run.tasks, "mean"], rows)


def mean_table(run: RunData) -> Table:
    """Return the mean over tasks after each chunk, with the best and the worst task."""
    rows = []
    for chunk, values in enumerate(run.matrix.values):
        known = [
            (float(v), task) for v, task in zip(values, run.tasks, strict=True) if not math.isnan(v)
        ]
        ends = [f"{task} {percent(v)}" for v, task in (max(known), min(known))] if known else []
        name = run.chunk_label(chunk)
        rows.append([name, percent(float(metrics.mean_over(values))), *(ends or ["–", "–"])])  # noqa: RUF001
    caption = "Mean score after each chunk, in percent; the matrix below has every task"
    return Table(caption, ["after", "mean", "best task", "worst task"], rows)


def composition_table(run: RunData) -> Table | None:
    """Return the samples by task, one row a chunk; None without a stream."""
    chunks = run.composition()
    if not chunks:
        return None
    periods = {name for name, test in run.stream.tests.items() if test.of} if run.stream else set()
    named = dict.fromkeys([*run.tasks, *(t for c in chunks for t in c)])
    tasks = [task for task in named if task not in periods]  # whose samples have the task's name
    rows = [
        [run.chunk_label(n), *(str(chunk.get(task, 0)) for task in tasks)]
        for n, chunk in enumerate(chunks, start=1)
    ]
    return Table("Training samples by task", ["chunk", *tasks], rows)


def task_table(summary: Summary) -> Table:
    """Return every task's numbers with standard errors."""
    head = ["task", "scorer", "samples", "failed", "first chunk", "majority", "base", "best"]
    head += ["last", "forgetting", "backward transfer", "forward transfer"]
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
    if run.last_scores is None:
        return None
    published, ours = run.last_scores["published"], run.last_scores["tasks"]
    crashes, theirs = published["crashes"], published["tasks"]
    rows = []
    for task, entry in ours.items():
        cider = entry.get("cider")
        raw = "" if cider is None else f"CIDEr {cider:.1f}"
        crash = crashes.get(task, "")
        cut = f"{entry['cut']} cut off" if entry.get("cut") else ""
        unfinished = entry.get("unfinished")
        thoughts = f"{unfinished} thoughts without an end" if unfinished else ""
        notes = [raw, cut, thoughts, crash]
        value = theirs.get(task)
        shown = "–" if value is None else f"{value:.1f}"  # noqa: RUF001
        score = math.nan if entry["score"] is None else entry["score"]
        rows.append([task, percent(score), shown, "; ".join(n for n in notes if n)])
    mean = published["mean"]
    if mean is not None:
        rows.append(["mean of the published tasks", "", f"{mean:.1f}", ""])
    caption = f"Scores as the published scripts print them, after chunk {run.evaluated}"
    return Table(caption, ["task", "score, %", "published script", "note"], rows)


def form_losses(run: RunData, chunks: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Return how much of each task's loss is form alone, in 0..1, as `FORM` names it.

    Tasks without a blind score are left out; without all predictions since chunk 1 a blind loss is
    NaN.

    Args:
        run: the run.
        chunks: those that count, the last of them as the end; 0, the base model, is no best chunk.
    """
    losses: dict[str, tuple[float, ...]] = {}
    for column, task in enumerate(run.tasks):
        last = run.scored.get((chunks[-1], task))
        if last is None or math.isnan(last.lenient):
            continue
        trained = [c for c in chunks if c > 0 and not run.has_no_stream]
        official = {c: float(run.matrix.values[c, column]) for c in trained}
        seen = {c: score for c, score in official.items() if not math.isnan(score)}
        blind = [run.scored[c, task].lenient if (c, task) in run.scored else math.nan for c in seen]
        lost = max(seen.values(), default=math.nan) - last.score
        # max() would pass over a NaN.
        known = math.nan if any(map(math.isnan, blind)) else max(blind, default=math.nan)
        gap, known = last.lenient - last.score, known - last.lenient
        losses[task] = (last.score, last.lenient, gap, lost, known, lost - known)
    return losses


def form_table(run: RunData) -> Table | None:
    """Return the blind scores, and how much of each task's loss since its best is form alone.

    None where the predictions have no blind scores.
    """
    losses = form_losses(run, range(run.evaluated + 1))
    if not losses:
        return None
    rows = [[task, *map(percent, values)] for task, values in losses.items()]
    rows.append(["mean", *(percent(fmean(c)) for c in zip(*losses.values(), strict=True))])
    caption = f"Form or knowledge, in percent, after chunk {run.evaluated}"
    return Table(caption, ["task", *FORM], rows)


def small_captions(run: RunData) -> dict[str, float]:
    """Return the last captions' chrF in 0..1 by task whose test set is too small for CIDEr."""
    if run.stream is None:
        return {}
    folder = run.chunk(run.evaluated) / "predictions"
    asked = [task for chunk, task in run.scored if chunk == run.evaluated]
    found = {task: chrf_of_few(folder, run.stream, task) for task in asked}
    return {task: chrf for task, chrf in found.items() if chrf is not None}


def caption_note(run: RunData, task: str, chrf: str) -> str:
    """Return what is to be said of captions whose test set is too small for CIDEr."""
    return (
        f"{task}: the test set ({len(run.scored[run.evaluated, task].ids)} pictures) is too small"
        " for CIDEr, which weighs words by how rare they are in it: words that stand with every"
        f" picture earn 0. chrF (characters) of the same captions, of 100: {chrf}."
    )


def curve_table(name: str, curve: Curve) -> Table:
    """Return a thinned curve, at most `MOST_ROWS` rows."""
    step = max(1, math.ceil(len(curve.steps) / MOST_ROWS))
    pairs = list(zip(curve.steps, curve.values, strict=True))[::step]
    rows = [[f"{s:g}", f"{v:.4g}"] for s, v in pairs]
    return Table(f"{name} by optimizer step", ["step", name.lower()], rows)


def timing_table(run: RunData) -> Table | None:
    """Return steps, seconds and peak memory by chunk, the sums below; None without state.json."""
    records = run.state.chunks
    if not records:
        return None
    spent = [(r.steps, r.train_seconds, r.eval_seconds) for r in records]
    rows = [[_chunk_name(r), *map(_amount, amounts), ratio(peak_memory(run, [r]), 2)]
            for r, amounts in zip(records, spent, strict=True)]  # fmt: skip
    totals = [sum(amount or 0 for amount in column) for column in zip(*spent, strict=True)]
    rows.append(["total", *map(_amount, totals), ""])
    head = ["chunk", "steps", "training, s", "evaluation, s", "training's peak memory, GiB"]
    return Table("Steps, wall time and peak memory by chunk", head, rows)


def timing_text(run: RunData) -> str:
    """Return the run's wall time in one sentence, empty without state.json."""
    records = run.state.chunks
    if not records:
        return ""
    train = sum(record.train_seconds or 0 for record in records)
    evaluation = sum(record.eval_seconds or 0 for record in records)
    steps = sum(record.steps or 0 for record in records)
    return (
        f"{steps} optimizer steps in {duration(train)} of training, {duration(evaluation)} of"
        " evaluation, process start-up included."
    )


def _chunk_name(record: ChunkState) -> str:
    return "base model" if record.index == 0 else str(record.index)


def _amount(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"  # noqa: RUF001


def facts(run: RunData) -> list[tuple[str, str]]:
    """Return what made the run, as (name, value): recipe, seed, versions, code, data, machine."""
    m = run.manifest
    if m == Manifest():
        return []
    tuner = m.tuner or m.recipe.get("tuner")
    listed: list[tuple[str, object]] = [
        ("Method", run.method or None),
        ("Tuner", _inline(tuner) if isinstance(tuner, dict) else tuner),
        ("Model", m.model),
        ("Stream", f"{m.stream_name} {m.stream_sha256[:12]}".strip()),
        ("Goes on from", m.start.get("source")),
        ("Brought along", ", ".join(m.start.get("carried", ()))),
        ("Missing of it", ", ".join(m.start.get("missing", ()))),
        ("Seed", None if m.seed is None else run.seed_text),
        ("Processes", m.processes),
        ("Global batch", m.global_batch),
        ("Code", code_text(m.git)),
        ("Versions", _inline(m.versions)),
        ("Machine", machine_text(m.hardware)),
        ("Started", m.started),
    ]
    return [(name, str(value)) for name, value in listed if value not in (None, "")]


def code_text(git: JsonObject) -> str:
    """Return the commit for people: "ceeee9e2db", "ceeee9e2db with local changes", "unknown"."""
    sha = str(git.get("sha") or "")[:10]
    if not sha:
        return "unknown"
    return f"{sha} with local changes" if git.get("dirty") else sha


def machine_text(hardware: JsonObject) -> str:
    """Return the machine for people: "4 x NVIDIA H100, 96 CPU cores (x86_64), 1000 GiB"."""
    listed = hardware.get("gpus")
    gpus = [str(g.get("name", g)) if isinstance(g, dict) else str(g)
            for g in (listed if isinstance(listed, list) else [])]  # fmt: skip
    parts = [f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)]
    if cores := hardware.get("cores"):
        kind = hardware.get("machine")
        parts.append(f"{cores} CPU cores{f' ({kind})' if kind else ''}")
    if memory := hardware.get("memory_gib"):
        parts.append(f"{memory:g} GiB")
    return ", ".join(parts) or str(hardware.get("cpu") or "unknown")


def _inline(values: JsonObject) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)

"""The headline numbers of a run and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np

from data_prep.files import Record, read_jsonl
from eval import metrics
from eval.constant_answers import best_constant
from eval.metrics import Array, Statistic
from eval.outcome import Settings, TaskOutcome, sentences
from eval.predictions import check_lines
from eval.report.data import UNREADABLE, Gap, RunData, without_folders
from eval.run_files import PredictionLine, read_object
from eval.significance import rests_on_samples

REPLICATES = 500
IN_CARDS = ("last", "average", "lost", "forgetting", "backward", "forward")


@dataclass(frozen=True)
class Number:
    """A value in 0..1 (or a difference of such) with its standard error; NaN = not known."""

    value: float
    stderr: float = math.nan


@dataclass(frozen=True)
class TaskRow:
    """One task's numbers: base and majority, last, best, and what became of it."""

    task: str
    scorer: str
    samples: int
    failed: int
    base: Number
    majority: Number
    first: int | None
    best: Number
    last: Number
    forgetting: Number
    backward: Number
    forward: Number


@dataclass(frozen=True)
class Summary:
    """The run's numbers: `total[key]` over all tasks, one `TaskRow` a task."""

    total: dict[str, Number]
    tasks: list[TaskRow]
    failed: int


def summarise(run: RunData) -> Summary:
    """Return the headline numbers of a run, standard errors by bootstrap over test samples."""
    a, first = run.matrix.values, run.first_seen()
    if a.size == 0:
        return Summary({}, [], 0)
    errors = _errors_of(run)

    def number(statistic: Statistic) -> Number:
        return Number(float(statistic(a)), float(errors(statistic)))

    def total_of(key: str) -> Number:
        if run.has_no_stream and key != "last":
            return Number(math.nan)
        return number(lambda m: metrics.SCORE[key].mean(m, first))

    total = {key: total_of(key) for key in IN_CARDS}
    total["base"] = number(lambda m: metrics.mean_over(m[..., 0, :]))
    majority = np.array([_majority(run, task) for task in run.tasks])
    total["majority"] = Number(float(metrics.mean_over(majority)))
    rows = _task_rows(run, errors, first, majority)
    return Summary(total, rows, sum(scored.failed for scored in run.scored.values()))


def _errors_of(run: RunData) -> Callable[[Statistic], Array]:
    """Return what gives a statistic's standard error; NaN where its samples are not all there.

    Nor has it one where a task that it needs has a single sample.
    """
    samples = [run.sample_scores(task) for task in run.tasks]
    aggregates = [run.aggregate(task) for task in run.tasks]
    real = metrics.redrawn(metrics.sample_matrix(samples, aggregates), samples)
    drawn = metrics.bootstrap_matrices(samples, aggregates, REPLICATES)

    def errors(statistic: Statistic) -> Array:
        whole = rests_on_samples(statistic, run.matrix.values, real)
        return np.where(whole, metrics.standard_error(statistic, drawn), np.nan)

    return errors


def _majority(run: RunData, task: str) -> float:
    """Return the best constant answer's score, as the run recorded it where its recipe scores."""
    if run.stream is not None and run.manifest.block("eval").get("scorer"):
        with suppress(*UNREADABLE):  # the report names what it could not read
            base = read_object(run.chunk(0) / "scores.json")
            if (known := base["tasks"][task].get("constant")) is not None:
                return float(known)
    try:
        return best_constant(run.stream, task) if run.stream else math.nan
    except UNREADABLE as error:  # a damaged chunk, which may hold other tasks' answers, too
        gap = Gap("Best constant answers", without_folders(str(error), run))
        run.gaps += [] if gap in run.gaps else [gap]
        return math.nan


def _task_rows(
    run: RunData,
    errors_of: Callable[[Statistic], Array],
    first: list[int | None],
    majority: Array,
) -> list[TaskRow]:
    by_task: dict[str, Statistic] = {
        "base": lambda m: m[..., 0, :],
        "best": lambda m: metrics.max_over(m[..., 1:, :], axis=-2),
    }

    def scores_of(key: str) -> Statistic:
        return lambda m: metrics.SCORE[key].by_task(m, first)

    by_task |= {key: scores_of(key) for key in ("last", "forgetting", "backward", "forward")}
    values = {key: f(run.matrix.values) for key, f in by_task.items()}
    errors = {key: errors_of(f) for key, f in by_task.items()}
    rows = []
    for i, task in enumerate(run.tasks):
        numbers = {k: Number(float(values[k][i]), float(errors[k][i])) for k in values}
        rows.append(
            TaskRow(
                task=task,
                scorer=run.stream.task(task).scorer if run.stream else "",
                samples=int(run.matrix.samples[:, i].max(initial=0)),
                failed=sum(s.failed for (_, name), s in run.scored.items() if name == task),
                majority=Number(float(majority[i])),
                first=first[i],
                **numbers,
            )
        )
    return rows


def outcome_text(run: RunData, summary: Summary) -> str:
    """Return the paragraph on what the run came to; empty before anything was evaluated."""
    a, chunk = run.matrix.values, metrics.last_row(run.matrix.values) if run.tasks else 0
    if chunk == 0 or run.manifest.protocol == "zero_shot":
        return ""
    outcomes = []
    for i, row in enumerate(summary.tasks):
        trained = a[1 : chunk + 1, i]
        known = np.isfinite(trained).any()
        lines = prediction_lines(run, chunk, row.task)
        outcomes.append(
            TaskOutcome(
                task=row.task,
                base=row.base.value,
                constant=row.majority.value,
                best=row.best.value,
                best_chunk=int(np.nanargmax(trained)) + 1 if known else 0,
                last=row.last.value,
                answers=[line["prediction"] for line in lines],
                cut=sum(line.get("finish_reason") == "length" for line in lines),
                one_gold=len({line["gold"] for line in lines}) == 1,
            )
        )
    schedule = run.manifest.block("schedule")
    first = schedule.get("first")
    given = (
        schedule.get("epochs"),
        first.get("learning_rate") if isinstance(first, dict) else None,
        run.manifest.block("eval").get("max_new_tokens"),
    )
    settings = Settings(*(float(v) if isinstance(v, int | float) else None for v in given))
    losses = [logged_losses(run.training[c]) for c in sorted(run.training) if c <= chunk]
    in_stream = not run.has_no_stream
    return " ".join(sentences(chunk, run.planned, outcomes, losses, settings, in_stream))


def logged_losses(lines: Sequence[Record]) -> list[float]:
    """Return the language-model losses of a chunk's log."""
    return [float(line["loss"]) for line in lines if isinstance(line.get("loss"), int | float)]


def prediction_lines(run: RunData, chunk: int, task: str) -> list[PredictionLine]:
    """Return the lines of a prediction file; none where it cannot be read."""
    path = run.chunk(chunk) / "predictions" / f"{task}.jsonl"
    try:
        lines = cast(list[PredictionLine], read_jsonl(path))
        check_lines(path, lines)
        return lines
    except (OSError, ValueError):  # the report names what it could not read
        return []

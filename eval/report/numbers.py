"""The headline numbers of a run and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval import metrics
from eval.constant_answers import best_constant
from eval.report.data import RunData
from eval.scorers.registry import scorer_of

Array = NDArray[np.float64]
REPLICATES = 500
SEED = 0


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
    drawn = _draw(run)
    statistics: dict[str, Callable[[Array], Array]] = {
        "last": metrics.last,
        "average": metrics.average,
        "forgetting": lambda m: metrics.forgetting(m, first),
        "backward": lambda m: metrics.backward_transfer(m, first),
        "forward": lambda m: metrics.forward_transfer(m, first),
        "plasticity": metrics.plasticity,
        "base": lambda m: metrics.mean_over(m[..., 0, :]),
    }
    total = {key: _number(f, a, drawn) for key, f in statistics.items()}
    majority = np.array([_majority(run, task) for task in run.tasks])
    total["majority"] = Number(float(metrics.mean_over(majority)))
    rows = _task_rows(run, a, drawn, first, majority)
    return Summary(total, rows, sum(scored.failed for scored in run.scored.values()))


def _draw(run: RunData) -> Array:
    samples = [run.sample_scores(task) for task in run.tasks]
    aggregates = [_aggregate(run, task) for task in run.tasks]
    return metrics.bootstrap_matrices(samples, aggregates, REPLICATES, SEED)


def _aggregate(run: RunData, task: str) -> Callable[[Array], Array]:
    """Return what turns a task's mean sample score into its score: captions are clipped CIDEr."""
    return scorer_of(run.stream, task).of_mean if run.stream else np.asarray


def _number(statistic: Callable[[Array], Array], a: Array, drawn: Array) -> Number:
    return Number(float(statistic(a)), float(metrics.standard_error(statistic, drawn)))


def _majority(run: RunData, task: str) -> float:
    return best_constant(run.stream, task) if run.stream else math.nan


def _task_rows(
    run: RunData, a: Array, drawn: Array, first: list[int | None], majority: Array
) -> list[TaskRow]:
    by_task: dict[str, Callable[[Array], Array]] = {
        "base": lambda m: m[..., 0, :],
        "best": lambda m: metrics.max_over(m[..., 1:, :], axis=-2),
        "last": metrics.last_by_task,
        "forgetting": lambda m: metrics.forgetting_by_task(m, first),
        "backward": lambda m: metrics.backward_transfer_by_task(m, first),
        "forward": lambda m: metrics.forward_transfer_by_task(m, first),
    }
    values = {key: f(a) for key, f in by_task.items()}
    errors = {key: metrics.standard_error(f, drawn) for key, f in by_task.items()}
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

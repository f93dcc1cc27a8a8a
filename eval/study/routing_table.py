"""Does routing that moves go with forgetting: measures of routing beside what was forgotten."""

from __future__ import annotations

import math

import numpy as np
import scipy  # whose parts load when they are used

from eval.charts.figure import percent, ratio
from eval.metrics import Array, forgetting_by_task, mean_over
from eval.significance import over_runs
from eval.study.groups import Study, by_stream
from eval.study.run_csv import KeptRun
from eval.study.tables import UNKNOWN, markdown

MOVES = {"kept_sets_changed": "kept sets that change", "drift": "drift"}
FEWEST = 3  # tasks of which a rank correlation says anything
NOTHING = "No committed run has measures of routing yet; the CSVs of routed methods hold them now."


def table(study: Study) -> str:
    """Return each routed method's measures, and how they go with forgetting inside its runs."""
    rows = []
    for group in study.groups:
        if not any(np.isfinite(run.routing["nmi"]).any() for run in group.runs):
            continue
        nmi = [float(mean_over(run.routing["nmi"].ravel())) for run in group.runs]
        row = [group.name, str(group.n), ratio(float(mean_over(np.array(nmi))), 2)]
        row.append(_overlap(group.runs))
        row += [_mean(group.runs, name) for name in MOVES]
        for name in MOVES:
            found = {(run.stream_seed, run.seed): correlation(run, name) for run in group.runs}
            row.append(_with_interval(by_stream(found)))
        rows.append(row)
    if not rows:
        return NOTHING
    head = ["method", "n", "NMI of task and kept set", "overlap of tasks", *MOVES.values()]
    head += [f"{name} and forgetting" for name in MOVES.values()]
    return (
        f"{markdown(head, rows)}\n\nMeans over chunks and tasks, in percent but for NMI. "
        "Overlap: expert weight that two tasks share. From one recorded chunk to the next: kept "
        "sets that change, and drift, the share of a task's expert weight that moved. The "
        "last two: Spearman's rank correlation over the tasks of a run, mean over the n runs with "
        f"its 95 % t interval; of runs with {FEWEST} tasks or more that can forget."
    )


def correlation(run: KeptRun, measure: str) -> float:
    """Return the rank correlation, over tasks, of what moved and what was forgotten.

    NaN where fewer than three tasks have both, or one of the two is the same for all.
    """
    moved = _by_task(run, measure)
    forgotten = forgetting_by_task(run.values, run.first)
    known = np.isfinite(moved) & np.isfinite(forgotten)
    # Differences of scores that are alike differ in their last bits, which would rank them.
    moved, forgotten = moved[known].round(9), forgotten[known].round(9)
    if known.sum() < FEWEST or np.ptp(moved) == 0 or np.ptp(forgotten) == 0:
        return math.nan
    return float(scipy.stats.spearmanr(moved, forgotten).statistic)


def _by_task(run: KeptRun, measure: str) -> Array:
    """Return a measure's mean over the chunks after each task's first, (tasks)."""
    values = run.routing[measure].copy()
    for task, first in enumerate(run.first):
        values[: len(values) if first is None else first + 1, task] = np.nan
    return mean_over(values, axis=0)


def _overlap(runs: list[KeptRun]) -> str:
    values = np.concatenate([run.routing["overlap"].ravel() for run in runs])
    return percent(float(mean_over(values)))


def _mean(runs: list[KeptRun], measure: str) -> str:
    return percent(float(mean_over(np.concatenate([_by_task(run, measure) for run in runs]))))


def _with_interval(values: list[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return UNKNOWN
    low, high = over_runs(known).interval
    mean = f"{float(np.mean(known)):+.2f}"
    return mean if math.isnan(low) else f"{mean} [{low:+.2f}, {high:+.2f}]"

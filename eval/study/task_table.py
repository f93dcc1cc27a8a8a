"""Where a lead comes from: the preset beside LoRA with slow weights, task by task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval.charts.figure import counted, percent
from eval.metrics import Array, last_by_task, mean_over
from eval.significance import holm, mean_of_each, paired_t, t_interval
from eval.study.goals import PRESET, SLOW_LORA
from eval.study.groups import read_study, shared_runs
from eval.study.run_csv import KeptRun
from eval.study.tables import NOTHING, ends, markdown, p_value, signed

Score = Callable[[Array], Array]  # of a[chunk, task], by task
SCORES: dict[str, Score] = {"Last": last_by_task, "Avg": lambda a: mean_over(a[1:], axis=0)}


def table(folder: Path) -> str:
    """Return both methods' scores of each task, and the differences over the runs both have."""
    groups = {group.name: group for group in read_study(folder).groups}
    if PRESET not in groups or SLOW_LORA not in groups:
        return NOTHING
    pairs = shared_runs(groups[PRESET], groups[SLOW_LORA])
    if not pairs:
        return NOTHING
    tasks = sorted(set.intersection(*(set(run.tasks) for pair in pairs for run in pair)))
    streams = {run.stream_seed for run, _ in pairs}
    rows = [[task, str(len(streams))] for task in tasks]
    for by_task in SCORES.values():
        both = [_of_task(pairs, task, by_task) for task in tasks]
        ps = holm([paired_t(*values.T.tolist()) for values in both])
        for row, values, p in zip(rows, both, ps, strict=True):
            gaps = (values[:, 0] - values[:, 1]).tolist()
            means = [percent(mean) for mean in values.mean(axis=0).tolist()]
            row += [*means, signed(float(np.mean(gaps))), ends(t_interval(gaps)), p_value(p)]
    head = ["task", "n"]
    for title in SCORES:
        head += [f"{title}: signed", "slow LoRA", "difference", "95 % interval", "p (Holm)"]
    return (
        f"{markdown(head, rows)}\n\n{PRESET} and {SLOW_LORA}, over the runs that share the seeds "
        "of stream and model, in percent and points; Avg: of the task's score over all evaluated "
        f"chunks. Paired t tests, p corrected over {counted(len(tasks), 'task')} (Holm)."
    )


def _of_task(pairs: list[tuple[KeptRun, KeptRun]], task: str, by_task: Score) -> Array:
    """Return a score of one task, (n, 2): the mean of each stream's pairs."""
    streams = [run.stream_seed for run, _ in pairs]
    sides = (
        [float(by_task(run.values)[run.tasks.index(task)]) for run in side]
        for side in zip(*pairs, strict=True)
    )
    return np.array([mean_of_each(side, streams) for side in sides]).T

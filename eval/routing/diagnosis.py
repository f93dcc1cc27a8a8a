"""What routing says about the stream: overlap of tasks and drift.

Pure functions of the `Routing` of one or of all evaluated chunks. A task or chunk that was not
recorded is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.metrics import mean_over
from eval.routing.record import Routing

Array = NDArray[np.float64]
Course = Mapping[int, Routing]  # by chunk


def overlap(use: Array) -> Array:
    """Return how much of their expert weight two tasks share, mean over layers: (T, T), 0..1.

    sum_e min(use_a, use_b), one minus the total variation distance. 1: the same experts with the
    same weights; 0: no expert in common.

    Args:
        use: (T, L, E), experts sum to 1.
    """
    return mean_over(np.minimum(use[:, None], use[None]).sum(axis=-1))


def overlap_with_others(use: Array) -> Array:
    """Return each task's mean overlap with the other tasks, (T,); NaN below two tasks."""
    square = overlap(use)
    np.fill_diagonal(square, np.nan)
    return mean_over(square)


def off_diagonal(square: Array) -> float:
    """Return the mean of a (T, T) matrix off its diagonal; NaN below two tasks."""
    outside = square[~np.eye(len(square), dtype=bool)]
    return float(mean_over(outside)) if outside.size else float("nan")


def drift(course: Course, tasks: Sequence[str]) -> Array:
    """Return how far each task's routing moved since the recorded chunk before: (chunks, T).

    One minus the overlap of the task with itself, 0: unmoved, 1: all weight on other experts.
    The first row is NaN: nothing was before. Only layers that both chunks have are compared.
    """
    chunks = sorted(course)
    moved = np.full((len(chunks), len(tasks)), np.nan)
    for row in range(1, len(chunks)):
        before, after = course[chunks[row - 1]], course[chunks[row]]
        if before.layers != after.layers or before.experts != after.experts:
            continue
        for column, task in enumerate(tasks):
            if task in before.tasks and task in after.tasks:
                pair = [r.use[r.tasks.index(task)] for r in (before, after)]
                moved[row, column] = 1 - float(mean_over(np.minimum(*pair).sum(axis=-1)))
    return moved


def kept_changes(course: Course, tasks: Sequence[str]) -> Array:
    """Return the share of kept expert sets that changed since the recorded chunk before.

    The sets that the same test instructions keep are compared, every layer and every question
    counting once; an instruction that both chunks did not record, or whose rows kept different
    sets, is left out.

    Returns:
        (chunks, T), 0..1; NaN where nothing can be compared, as in the first row.
    """
    chunks = sorted(course)
    changed = np.full((len(chunks), len(tasks)), np.nan)
    for row in range(1, len(chunks)):
        before, after = course[chunks[row - 1]], course[chunks[row]]
        if before.layers != after.layers:
            continue
        old = {(i.task, i.text): i.kept for i in before.instructions}
        for column, task in enumerate(tasks):
            pairs = [
                (a != b, i.rows)
                for i in after.instructions
                if i.task == task
                # Not strict: records of before November 2026 have no kept sets.
                for a, b in zip(old.get((task, i.text), ()), i.kept, strict=False)
                if a is not None and b is not None
            ]
            if pairs:
                moved, rows = zip(*pairs, strict=True)
                changed[row, column] = np.average(moved, weights=rows)
    return changed

"""How sure the numbers of a comparison are: spreads, and tests between two methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.compare.runs import Comparable, Entry, Method
from eval.metrics import (
    SCORE,
    STREAM_SCORES,
    Array,
    First,
    bootstrap_matrices,
    last_row,
    permuted_matrices,
    redrawn,
    sample_matrix,
)
from eval.report.data import Gap
from eval.significance import (
    NO_SPREAD,
    Spread,
    mcnemar,
    mean_of_each,
    over_runs,
    over_samples,
    paired_t,
    permutation_p,
    rests_on_samples,
    welch,
)

# The smallest p is 1 in so many, and Holm multiplies it by the number of comparisons.
PERMUTATIONS = 9999
LAST = STREAM_SCORES[0].key


class Result(NamedTuple):
    """The test of one column: difference (first minus second), how it was tested, and p."""

    difference: float
    kind: str
    p: float


def column_values(a: Array, tasks: Sequence[str], first: First) -> dict[str, Array]:
    """Return every score of a matrix by column key: `last`, and `last/VQAv2` for one task.

    Args:
        a: (..., chunks + 1, tasks).
        tasks: names of the columns of `a`.
        first: for each task the first chunk that held it.
    """
    values: dict[str, Array] = {}
    for score in STREAM_SCORES:
        values[score.key] = score.mean(a, first)
        by_task = score.by_task(a, first)
        values |= {f"{score.key}/{task}": by_task[..., i] for i, task in enumerate(tasks)}
    return values


def values_by_seed(loaded: Comparable, method: Method) -> dict[str, list[float]]:
    """Return for every column the values of the method's runs, or of its streams.

    Without a stream only the last scores have a value.
    """
    rows = [column_values(e.values, loaded.tasks, e.first) for e in method.entries]
    no_stream = any(entry.run.has_no_stream for entry in method.entries)

    def known(key: str) -> list[float]:
        return [math.nan if no_stream and not is_last(key) else float(row[key]) for row in rows]

    return {key: mean_of_each(known(key), method.draws) for key in rows[0]}


def is_last(key: str) -> bool:
    """Return whether a column holds last scores, of all tasks or of one."""
    return key.split("/")[0] == LAST


def spreads(loaded: Comparable, method: Method) -> dict[str, Spread]:
    """Return how sure every column is: over runs, else by bootstrap over test samples."""
    values = values_by_seed(loaded, method)
    if len(method.entries) > 1:
        return {key: over_runs(numbers) for key, numbers in values.items()}
    entry = method.entries[0]
    drawn = bootstrap_matrices(entry.samples, loaded.aggregates)
    columns = column_values(drawn, loaded.tasks, entry.first)
    # Joint training has no scores over a stream, whatever a bootstrap of its matrix would give.
    known = {key for key, numbers in values.items() if math.isfinite(numbers[0])}
    known &= _sampled(loaded, entry, more_than_one=True)
    return {
        key: over_samples(numbers, values[key][0], SCORE[key.split("/")[0]].lowest)
        if key in known
        else NO_SPREAD
        for key, numbers in columns.items()
    }


def without_samples(loaded: Comparable) -> list[Gap]:
    """Return a gap for each run that has a score which its test samples do not give."""
    gaps: list[Gap] = []
    if all(len(method.entries) > 1 for method in loaded.methods):
        return gaps  # over runs no test asks for samples
    for entry in (entry for method in loaded.methods for entry in method.entries):
        found = _sampled(loaded, entry)
        known = column_values(entry.values, loaded.tasks, entry.first)
        scores = STREAM_SCORES[:1] if entry.run.has_no_stream else STREAM_SCORES
        lacking = [s.title for s in scores if s.key not in found and math.isfinite(known[s.key])]
        if lacking:
            why = "prediction files that they need cannot be read or do not fit matrix.csv"
            what = f"{entry.run.folder}: no ± and no test over samples of {', '.join(lacking)}"
            gaps.append(Gap(what, why))
        found -= _sampled(loaded, entry, more_than_one=True)
        single = [s.title for s in scores if s.key in found and math.isfinite(known[s.key])]
        if single:
            why = "a task that they need has a single test sample, which says nothing of a spread"
            gaps.append(Gap(f"{entry.run.folder}: no ± of {', '.join(single)}", why))
    return gaps


def _sampled(
    loaded: Comparable,
    entry: Entry,
    known: NDArray[np.bool_] | None = None,
    more_than_one: bool = False,
) -> set[str]:
    """Return the columns whose values are those of the run's test samples (in known cells).

    With `more_than_one` none that needs a task of a single sample, which says nothing of a spread.
    """

    def statistic(a: Array) -> Array:
        return np.array(list(column_values(a, loaded.tasks, entry.first).values()))

    real = sample_matrix(entry.samples, loaded.aggregates)
    real = real if known is None else np.where(known, real, np.nan)
    real = redrawn(real, entry.samples) if more_than_one else real
    found = rests_on_samples(statistic, entry.values, real)
    keys = column_values(entry.values, loaded.tasks, entry.first)
    return {key for key, whole in zip(keys, found, strict=True) if whole}


def differences(loaded: Comparable, first: Method, second: Method) -> dict[str, Result]:
    """Return the difference of two methods in every column, tested.

    Over runs where both have two or more: paired where they share seeds and streams, else Welch.
    Else over the test samples that both were given: McNemar's exact test for the last score of one
    task with right and wrong answers, a paired permutation test for everything else; a method's
    sample scores are means over its seeds.
    """
    one, other = values_by_seed(loaded, first), values_by_seed(loaded, second)
    gaps = {key: float(np.mean(one[key]) - np.mean(other[key])) for key in one}
    if len(first.entries) > 1 and len(second.entries) > 1:
        test = _paired_runs(first, second) or (lambda a, b: ("welch", welch(a, b)))
        return {key: Result(gap, *test(one[key], other[key])) for key, gap in gaps.items()}
    p_values = _paired(loaded, first, second)
    none = "none", math.nan
    return {
        key: Result(gap, *(p_values.get(key, none) if math.isfinite(gap) else none))
        for key, gap in gaps.items()
    }


def _paired_runs(
    first: Method, second: Method
) -> Callable[[Sequence[float], Sequence[float]], tuple[str, float]] | None:
    """Return the paired test of two methods' values by run; None unless their seeds are equal."""
    if len({frozenset(entry.replicate for entry in m.entries) for m in (first, second)}) > 1:
        return None
    ours, theirs = (list(dict.fromkeys(m.draws)) for m in (first, second))
    order = [theirs.index(draw) for draw in ours]
    return lambda a, b: ("paired", paired_t(a, [b[i] for i in order]))


def _paired(loaded: Comparable, first: Method, second: Method) -> dict[str, tuple[str, float]]:
    keys = None
    if len({(e.run.manifest.stream_sha256, *e.rows) for e in _entries(first, second)}) > 1:
        # Another stream: only what a run ends with can be compared.
        first, second = _ended(first), _ended(second)
        keys = {LAST, *(f"{LAST}/{task}" for task in loaded.tasks)}
    entries = _entries(first, second)
    # A run may have no prediction files of a task any more, only its matrix.csv.
    whole = [len({e.samples[i].shape[1] for e in entries}) == 1 for i in range(len(loaded.tasks))]
    one, other = _mean_samples(first, whole), _mean_samples(second, whole)
    one, other = _both_known(one, other), _both_known(other, one)
    p_values = _permuted(loaded, one, other, entries[0].first)
    for task, before, after in zip(loaded.tasks, one, other, strict=True):
        exact = _mcnemar(before, after)
        if exact is not None:
            p_values[f"{LAST}/{task}"] = ("mcnemar", exact)
    known = np.isfinite(sample_matrix(one, loaded.aggregates))
    tested = set.intersection(*(_sampled(loaded, entry, known) for entry in entries))
    return {key: p_values[key] for key in (tested if keys is None else tested & keys)}


def _entries(first: Method, second: Method) -> list[Entry]:
    return [*first.entries, *second.entries]


def _both_known(ours: Sequence[Array], theirs: Sequence[Array]) -> list[Array]:
    """Return our sample scores without what the other method lacks."""
    return [np.where(np.isfinite(b), a, np.nan) for a, b in zip(ours, theirs, strict=True)]


def _mean_samples(method: Method, whole: Sequence[bool]) -> list[Array]:
    """Return for each task the sample scores (chunks + 1, n), means over the seeds.

    None, n = 0, of a task that is not whole.
    """
    of_tasks = zip(*(entry.samples for entry in method.entries), strict=True)
    return [
        np.mean(of_task, axis=0) if there else np.zeros((len(of_task[0]), 0))
        for there, of_task in zip(whole, of_tasks, strict=True)
    ]


def _ended(method: Method) -> Method:
    """Return a method cut to the base model's row and the last evaluated one of its runs."""
    entries = []
    for entry in method.entries:
        rows = [0, last_row(entry.values)]
        samples = [of_task[rows] for of_task in entry.samples]
        entries.append(replace(entry, values=entry.values[rows], samples=samples))
    return replace(method, entries=entries)


def _permuted(
    loaded: Comparable, one: Sequence[Array], other: Sequence[Array], first: First
) -> dict[str, tuple[str, float]]:
    real = [sample_matrix(samples, loaded.aggregates) for samples in (one, other)]
    observed = _differences(loaded, real[0], real[1], first)
    drawn: dict[str, list[Array]] = {key: [] for key in observed}
    for left, right in permuted_matrices(one, other, loaded.aggregates, PERMUTATIONS):
        for key, values in _differences(loaded, left, right, first).items():
            drawn[key].append(values)
    return {
        key: ("samples", permutation_p(float(observed[key]), batches))
        for key, batches in drawn.items()
    }


def _differences(loaded: Comparable, left: Array, right: Array, first: First) -> dict[str, Array]:
    ours = column_values(left, loaded.tasks, first)
    theirs = column_values(right, loaded.tasks, first)
    return {key: ours[key] - theirs[key] for key in ours}


def _mcnemar(one: Array, other: Array) -> float | None:
    """Return the exact p value of the last rows, None where scores are not 0 and 1."""
    before, after = one[last_row(one)], other[last_row(other)]
    if not np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        return None
    return mcnemar(before, after)

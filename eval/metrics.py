"""Stream scores: pure functions of a[chunk, task].

`a` is (..., chunks + 1, tasks): row 0 the base model before the stream, row c the model after chunk
c, NaN = not evaluated and never 0; leading axes (bootstrap replicates, seeds) are carried through.
C is the last row in which anything was evaluated.

The published definitions know one task a chunk: Chaudhry et al. 2018 (eq. 3 and 4) take forgetting
over the tasks before the last, Lopez-Paz and Ranzato 2017 (eq. 3 and 4) backward transfer over the
tasks before the last and forward transfer over the tasks after the first: T - 1 tasks each. Here a
task may come again. c_i is the FIRST chunk that held task i, whatever comes later, and takes the
task's place in the order: forgetting and backward transfer are over the tasks with c_i < C, forward
transfer over those with 1 < c_i <= C. With one task a chunk these are the published numbers.

A task's value is NaN where it is left out by definition or a number that it needs is missing;
means run over the tasks that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
First = Sequence[int | None]


def mean_over(values: Array, axis: int = -1) -> Array:
    """Return the mean over `axis` of the numbers that exist; NaN where there is none."""
    # np.nanmean warns where nothing is known, which is usual in a run that is still going on.
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    result = np.full(np.shape(total), np.nan)
    return np.asarray(np.divide(total, count, out=result, where=count > 0))


def max_over(values: Array, axis: int) -> Array:
    """Return the largest number over `axis`; NaN where there is none."""
    filled = np.where(np.isfinite(values), values, -np.inf)
    # `initial` allows for no rows at all, as long as only the base model is evaluated.
    best = filled.max(axis=axis, initial=-np.inf)
    return np.where(np.isfinite(best), best, np.nan)


def last_row(a: Array) -> int:
    """Return C, the last chunk with an evaluation (0: only the base model, or nothing)."""
    others = tuple(axis for axis in range(a.ndim) if axis != a.ndim - 2)
    evaluated = np.isfinite(a).any(axis=others)
    return int(np.flatnonzero(evaluated)[-1]) if evaluated.any() else 0


def _row(a: Array, chunk: int) -> Array:
    if 0 <= chunk < a.shape[-2]:
        return np.asarray(a[..., chunk, :])
    return np.full((*a.shape[:-2], a.shape[-1]), np.nan)


def last_by_task(a: Array) -> Array:
    """Return a[C, i]: (..., tasks). NaN before the first chunk was evaluated."""
    chunk = last_row(a)
    return _row(a, chunk if chunk > 0 else -1)


def last(a: Array) -> Array:
    """Return Last = mean_i a[C, i]: (...)."""
    return mean_over(last_by_task(a))


def average(a: Array) -> Array:
    """Return Avg = mean_c mean_i a[c, i] over the evaluated chunks c >= 1: (...)."""
    return mean_over(mean_over(a[..., 1:, :]))


def _among(values: Array, first: First, lowest: int, highest: int) -> Array:
    """Return `values` (..., tasks), NaN for tasks whose first chunk is not in lowest..highest."""
    inside = [chunk is not None and lowest <= chunk <= highest for chunk in first]
    return np.where(np.array(inside, dtype=bool), values, np.nan)


def forgetting_by_task(a: Array, first: First) -> Array:
    """Return f_i = max_{1 <= c < C} a[c, i] - a[C, i] of the tasks with c_i < C: (..., tasks).

    Chaudhry et al. 2018, eq. 3. Negative where the task still grew. Not defined, NaN: a task that
    came first in the last chunk, and one that the stream never taught. A task that comes again
    keeps its c_i; its best chunk may be one in which it came again, and where chunk C teaches it
    once more, f_i is what is left of the loss after that. The base model (row 0) is no chunk.

    Args:
        a: the matrix.
        first: for each task c_i, the first chunk (from 1) that held it, None: never.
    """
    chunk = last_row(a)
    best = max_over(a[..., 1:chunk, :], axis=-2)
    return _among(best - last_by_task(a), first, 1, chunk - 1)


def forgetting(a: Array, first: First) -> Array:
    """Return the mean forgetting over the tasks with c_i < C (eq. 4): (...)."""
    return mean_over(forgetting_by_task(a, first))


def _at_first(a: Array, first: First, shift: int) -> Array:
    """Return a[c_i + shift, i] for every task: (..., tasks); NaN for a task never seen."""
    columns = [
        np.full(a.shape[:-2], np.nan) if chunk is None else _row(a, chunk + shift)[..., task]
        for task, chunk in enumerate(first)
    ]
    return np.stack(columns, axis=-1) if columns else np.full((*a.shape[:-2], 0), np.nan)


def backward_transfer_by_task(a: Array, first: First) -> Array:
    """Return a[C, i] - a[c_i, i] of the tasks with c_i < C: (..., tasks).

    Lopez-Paz and Ranzato 2017, eq. 3. A task that came first in the last chunk would add a 0 that
    is no transfer: NaN. For a task that comes again it is the change since its first chunk, what
    later chunks of the same task taught included.

    Args:
        a: the matrix.
        first: for each task c_i, the first chunk (from 1) that held it, None: never.
    """
    values = last_by_task(a) - _at_first(a, first, 0)
    return _among(values, first, 1, last_row(a) - 1)


def forward_transfer_by_task(a: Array, first: First) -> Array:
    """Return a[c_i - 1, i] - a[0, i] of the tasks with 1 < c_i <= C: (..., tasks).

    Lopez-Paz and Ranzato 2017, eq. 4, with the base model's score for that of a random
    initialisation. A task of chunk 1 would add a 0 that is no transfer: NaN. A task that comes
    again counts once, before its first chunk.
    """
    values = _at_first(a, first, -1) - _row(a, 0)
    return _among(values, first, 2, last_row(a))


def plasticity_by_task(a: Array) -> Array:
    """Return max_{c >= 1} a[c, i] - a[0, i]: (..., tasks)."""
    return max_over(a[..., 1:, :], axis=-2) - _row(a, 0)


def lost_by_task(a: Array) -> Array:
    """Return max(0, max_{1 <= c <= C} a[c, i] - a[C, i]) = best minus last: (..., tasks).

    Unlike forgetting it is never negative: the mean over tasks cannot hide one task's loss behind
    another's gain.
    """
    return max_over(a[..., 1:, :], axis=-2) - last_by_task(a)


def _since_first(values: Array, first: First, start: int, delay: int) -> Array:
    """Return `values` (..., chunks from `start`, tasks), NaN before chunk c_i + `delay`."""
    chunks = np.arange(start, start + values.shape[-2])[:, None]
    begin = np.array([np.inf if chunk is None else chunk + delay for chunk in first])
    return np.where(chunks >= begin, values, np.nan)


def seen_scores(a: Array, first: First) -> Array:
    """Return a[c, i] of the tasks with c_i <= c, else NaN: (..., chunks, tasks)."""
    return _since_first(a[..., 1 : last_row(a) + 1, :], first, 1, 0)


def _forgetting_after_each(a: Array, first: First) -> Array:
    """Return after each chunk c >= 2 the forgetting of tasks with c_i < c: (..., C - 1, tasks)."""
    scores = a[..., 1 : last_row(a) + 1, :]
    # Filled, since one NaN would be carried on into all later chunks.
    best = np.maximum.accumulate(np.where(np.isfinite(scores), scores, -np.inf), axis=-2)
    best = np.where(np.isfinite(best), best, np.nan)
    return _since_first(best[..., :-1, :] - scores[..., 1:, :], first, 2, 1)


def mean_average_accuracy(a: Array, first: First) -> Array:
    """Return MAA = mean over chunks c of the mean of a[c, i] over the tasks with c_i <= c: (...).

    CoIN (Chen et al. 2024): with one task a chunk, 1/T sum_j 1/j sum_{i <= j} a[j, i].
    """
    return mean_over(mean_over(seen_scores(a, first)))


def coin_backward_by_task(a: Array, first: First) -> Array:
    """Return a[C, i] - a[c_i, i] of the tasks with c_i <= C: (..., tasks).

    CoIN (Chen et al. 2024) divides by all T tasks, so that a task of the last chunk counts as 0;
    Lopez-Paz and Ranzato leave it out (`backward_transfer_by_task`).
    """
    return _among(last_by_task(a) - _at_first(a, first, 0), first, 1, last_row(a))


def mean_forgetting(a: Array, first: First) -> Array:
    """Return MAF = mean over chunks c >= 2 of the forgetting as it stood after chunk c: (...).

    Our reading of StrCVIT's 'mean average forgetting', whose formula we could not find: after each
    chunk the mean over the tasks with c_i < c of the best score before c minus the score at c.
    """
    return mean_over(mean_over(_forgetting_after_each(a, first)))


@dataclass(frozen=True)
class StreamScore:
    """One score over a stream: its name, and how it is made of a[chunk, task].

    Attributes:
        key: short name, used in files.
        title: name in tables.
        by_task: (a, first) -> (..., tasks).
        higher_is_better: False where less is better.
        total: (a, first) -> (...), where it is not the mean of `by_task`.
        headline: whether it stands in the first table.
        lowest: of a score with a best chunk in it, the least that it can be (`over_samples`).
    """

    key: str
    title: str
    by_task: Callable[[Array, First], Array]
    higher_is_better: bool = True
    total: Callable[[Array, First], Array] | None = None
    headline: bool = False
    lowest: float | None = None

    def mean(self, a: Array, first: First) -> Array:
        """Return the score over all tasks: (...)."""
        return mean_over(self.by_task(a, first)) if self.total is None else self.total(a, first)


STREAM_SCORES = (
    StreamScore("last", "Last", lambda a, _: last_by_task(a), headline=True),
    # Chunks differ in what was evaluated: Avg is the mean of the chunks' means, not of the tasks'.
    # StrCVIT's 'mean average performance', by our reading, is the same number.
    StreamScore(
        "average",
        "Avg (MAP)",
        lambda a, _: mean_over(a[..., 1:, :], axis=-2),
        total=lambda a, _: average(a),
        headline=True,
    ),
    StreamScore(
        "lost", "Lost since best", lambda a, _: lost_by_task(a), False, headline=True, lowest=0.0
    ),
    StreamScore("forgetting", "Forgetting", forgetting_by_task, False, lowest=-1.0),
    StreamScore(
        "maf",
        "MAF",
        lambda a, first: mean_over(_forgetting_after_each(a, first), -2),
        False,
        mean_forgetting,
        lowest=-1.0,
    ),
    StreamScore("backward", "Backward transfer", backward_transfer_by_task),
    StreamScore("bwt", "BWT (CoIN)", coin_backward_by_task),
    StreamScore("forward", "Forward transfer", forward_transfer_by_task),
    StreamScore("plasticity", "Plasticity", lambda a, _: plasticity_by_task(a), lowest=-1.0),
    StreamScore(
        "maa",
        "MAA (CoIN)",
        lambda a, first: mean_over(seen_scores(a, first), -2),
        total=mean_average_accuracy,
    ),
)
SCORE = {score.key: score for score in STREAM_SCORES}
# Pairs at a time: all coins at once would be a row of n numbers for each of 9,999 replicates.
BATCH = 500


def bootstrap_matrices(
    samples: Sequence[Array],
    aggregates: Sequence[Callable[[Array], Array]],
    replicates: int = 1000,
    seed: int = 0,
) -> Array:
    """Return matrices drawn again from the test samples: (replicates, chunks + 1, tasks).

    The same drawn samples are used in every chunk, so differences between chunks stay paired. One
    sample alone would be drawn again and again, as if nothing were unsure: its task is NaN.

    Args:
        samples: for each task the sample scores (chunks + 1, n), a row of NaN = not evaluated.
        aggregates: for each task what turns mean sample scores into the task's score.
        replicates: how many matrices.
        seed: of the random generator.
    """
    generator = np.random.default_rng(seed)
    chunks = samples[0].shape[0] if samples else 0
    drawn = np.full((replicates, chunks, len(samples)), np.nan)
    for task, scores in enumerate(samples):
        n = scores.shape[1]
        if n < 2:
            continue
        # How often each sample is drawn is all that a mean needs: one product then does all chunks.
        weights = generator.multinomial(n, np.full(n, 1.0 / n), size=replicates) / n
        rows = np.isfinite(scores).all(axis=1)
        drawn[:, rows, task] = aggregates[task](weights @ scores[rows].T)
    return drawn


def sample_matrix(
    samples: Sequence[Array], aggregates: Sequence[Callable[[Array], Array]]
) -> Array:
    """Return a[chunk, task] of sample scores, given as for `bootstrap_matrices`; NaN: none."""
    columns = [
        aggregate(of_task.mean(axis=1)) if of_task.size else np.full(len(of_task), np.nan)
        for aggregate, of_task in zip(aggregates, samples, strict=True)
    ]
    return np.stack(columns, axis=-1)


def redrawn(real: Array, samples: Sequence[Array]) -> Array:
    """Return the cells of `sample_matrix` that `bootstrap_matrices` has, too; the others NaN."""
    alone = np.array([of_task.shape[1] < 2 for of_task in samples], dtype=bool)
    return np.where(alone, np.nan, real)


def permuted_matrices(
    first: Sequence[Array],
    second: Sequence[Array],
    aggregates: Sequence[Callable[[Array], Array]],
    replicates: int = 1000,
    seed: int = 0,
) -> Iterator[tuple[Array, Array]]:
    """Yield pairs of matrices of two runs in which samples changed sides at random.

    For every test sample a coin decides whether the two runs' scores of it, in all chunks at once,
    change places. If the runs do not differ, every such pair is as likely as the real one: the
    null distribution of a paired permutation test, for any statistic of the matrices.

    Args:
        first: of the first run, for each task the sample scores (chunks + 1, n), as for
            `bootstrap_matrices`; a chunk that one run lacks is NaN in both results.
        second: of the second run, the same samples in the same order.
        aggregates: for each task what turns mean sample scores into the task's score.
        replicates: how many pairs in all.
        seed: of the random generator.

    Yields:
        Two arrays (at most `BATCH`, chunks + 1, tasks).

    Raises:
        ValueError: a task has other samples in the second run.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, replicates, BATCH):
        size = min(BATCH, replicates - start)
        sides = [
            _swap(generator, one, other, aggregate, size)
            for one, other, aggregate in zip(first, second, aggregates, strict=True)
        ]
        yield (
            np.stack([side[0] for side in sides], axis=-1),
            np.stack([side[1] for side in sides], axis=-1),
        )


def _swap(
    generator: np.random.Generator,
    first: Array,
    second: Array,
    aggregate: Callable[[Array], Array],
    size: int,
) -> tuple[Array, Array]:
    """Return one task's columns of both runs: (size, chunks + 1) each."""
    if first.shape != second.shape:
        raise ValueError(f"scores of shape {first.shape} and {second.shape} cannot be paired")
    n = first.shape[1]
    drawn = np.full((2, size, len(first)), np.nan)
    rows = (np.isfinite(first) & np.isfinite(second)).all(axis=1)
    if n and rows.any():
        coins = generator.integers(0, 2, size=(size, n)).astype(np.float64)
        # Swapping a sample moves both means by its share of the gap, the one up and the other down.
        moved = coins @ (second[rows] - first[rows]).T / n
        drawn[0][:, rows] = aggregate(first[rows].mean(axis=1) + moved)
        drawn[1][:, rows] = aggregate(second[rows].mean(axis=1) - moved)
    return drawn[0], drawn[1]


def standard_error(statistic: Statistic, drawn: Array) -> Array:
    """Return the standard deviation of `statistic` over the drawn matrices (the first axis)."""
    values = statistic(drawn)
    count = np.isfinite(values).sum(axis=0)
    spread = np.sqrt(mean_over((values - mean_over(values, axis=0)) ** 2, axis=0))
    # One replicate less in the divisor, as for any sample.
    return np.where(count > 1, spread * np.sqrt(count / np.maximum(count - 1, 1)), np.nan)

"""What stands behind the plus-minus sign, and tests: what a difference between numbers is worth.

Runs (seeds, stream seeds): standard deviation, t intervals, paired or Welch's t test. Test samples:
percentile bootstrap, McNemar's exact test for right and wrong answers, a paired permutation test
for any other score or statistic. Many comparisons: Holm's correction. Nothing is assumed where
nothing is known: too few numbers give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # whose parts load when they are used
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
# Two permuted differences that should be equal may differ in their last bits.
TIE = 1e-12


class Interval(NamedTuple):
    """A confidence interval; NaN where there is none."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Return half the length: what stands behind the plus-minus sign."""
        return (self.high - self.low) / 2


NO_INTERVAL = Interval(math.nan, math.nan)
# What `--spread` puts behind the plus-minus sign of a mean over runs.
SPREADS = {
    "std": "standard deviation over runs (n - 1)",
    "sem": "standard error of the mean over runs",
    "ci95": "half of the 95 % t interval of the mean over runs",
}
# One run has no spread over seeds: the same three, over the test samples that it was scored on.
ONE_RUN = {
    "std": "standard error over test samples (bootstrap)",
    "sem": "standard error over test samples (bootstrap)",
    "ci95": "half of the 95 % interval over test samples (bootstrap)",
}
ONE_RUN_NOTE = (
    f"±: one {ONE_RUN['std']}, since there is one run; how much seeds differ is not in it"
)


@dataclass(frozen=True)
class Spread:
    """How sure a mean is; NaN where nothing is known.

    Attributes:
        std: standard deviation over runs; over test samples where there is one run.
        sem: standard error of the mean.
        interval: the 95 % interval of the mean.
        over: `runs` or `samples`; empty: nothing is known.
    """

    std: float = math.nan
    sem: float = math.nan
    interval: Interval = NO_INTERVAL
    over: str = ""

    def half(self, kind: str) -> float:
        """Return what stands behind the plus-minus sign, by a name of `SPREADS`."""
        halves = {"std": self.std, "sem": self.sem, "ci95": self.interval.half_width}
        return halves[kind]


NO_SPREAD = Spread()


def over_runs(values: Sequence[float]) -> Spread:
    """Return the spread of two or more runs; nothing is known below two."""
    known = _finite(values)
    if len(known) < 2:
        return NO_SPREAD
    return Spread(
        float(known.std(ddof=1)), float(scipy.stats.sem(known)), t_interval(values), over="runs"
    )


def mean_of_each(values: Sequence[float], draws: Sequence[object]) -> list[float]:
    """Return the mean of the values of each draw, in the order of its first value.

    Runs with other seeds of the model on one stream share its chunks and its tests: as draws of
    their own they would narrow every interval. NaN is left out; a draw of nothing else is NaN.
    """
    by_draw: dict[object, list[float]] = {}
    for draw, value in zip(draws, values, strict=True):
        by_draw.setdefault(draw, []).append(value)
    known = [_finite(of_one) for of_one in by_draw.values()]
    return [float(of_one.mean()) if len(of_one) else math.nan for of_one in known]


def over_samples(drawn: Array, measured: float = math.nan, lowest: float | None = None) -> Spread:
    """Return the spread of the one run's statistic over bootstrap replicates.

    Drawing samples again adds noise to every chunk, and so lifts the best of them: the replicates
    of a difference to a best chunk lie above what was measured. Their interval is moved until their
    median is the measured value (correction of the median bias), within `lowest` to 1.

    Args:
        drawn: (replicates,).
        measured: the statistic of the real samples.
        lowest: of a statistic with a best chunk in it, the least that it can be; None: has none.
    """
    interval = percentile_interval(drawn)
    if not math.isfinite(interval.low):
        return NO_SPREAD
    if lowest is not None:
        moved = np.array(interval) + measured - np.median(drawn)
        interval = Interval(*np.clip(moved, lowest, 1.0).tolist())
    # The spread of bootstrap replicates is already the standard error of the statistic.
    error = float(drawn.std(ddof=1))
    return Spread(error, error, interval, over="samples")


def t_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % t interval of the mean of a few runs (seeds); NaN below two numbers."""
    known = _finite(values)
    if len(known) < 2:
        return NO_INTERVAL
    # scipy's t.interval is NaN where all runs are equal; here it is the point where they agree.
    mean = float(known.mean())
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * scipy.stats.sem(known))
    return Interval(mean - reach, mean + reach)


def percentile_interval(drawn: Array) -> Interval:
    """Return the 95 % percentile bootstrap interval of drawn values of a statistic: (replicates,).

    NaN unless every replicate has a value: a statistic that often does not exist has no interval.
    """
    if drawn.size < 2 or not np.isfinite(drawn).all():
        return NO_INTERVAL
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p value of Welch's t test between the seeds of two methods.

    NaN below two seeds a side. Where neither side has any spread, of which a t test can say
    nothing, the exact permutation test: two runs a side prove nothing by being equal.
    """
    one, other = _finite(first), _finite(second)
    if len(one) < 2 or len(other) < 2:
        return math.nan
    if np.ptp(one) <= TIE and np.ptp(other) <= TIE:
        if abs(one.mean() - other.mean()) <= TIE:
            return 1.0
        # As far apart are this arrangement and, with as many runs a side, its mirror.
        return (1 + (len(one) == len(other))) / math.comb(len(one) + len(other), len(one))
    # Of moments: scipy.stats.ttest_ind warns of cancellation where one side has no spread.
    sides = [(side.mean(), side.std(ddof=1), len(side)) for side in (one, other)]
    return float(scipy.stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue)


def paired_t(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p value of the paired t test between runs that share seed and stream.

    NaN below two pairs. Where the differences have no spread, of which a t test can say nothing,
    the exact sign test of them.
    """
    gaps = _finite(np.subtract(first, second).tolist())
    if len(gaps) < 2:
        return math.nan
    # Equal gaps have one sign: of the 2^n ways to sign them, two are as extreme.
    if np.ptp(gaps) <= TIE:
        return 1.0 if abs(gaps.mean()) <= TIE else 2.0 ** (1 - len(gaps))
    return float(scipy.stats.ttest_1samp(gaps, 0.0).pvalue)


def mcnemar(first: Array, second: Array) -> float:
    """Return the two-sided p value of McNemar's exact test on 0/1 scores of the same samples.

    Only samples that one run gets right and the other wrong count; under the null hypothesis each
    is a fair coin (binomial with p = 1/2).

    Raises:
        ValueError: other scores than 0 and 1, or a different number of samples.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape}: not the same samples")
    if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        raise ValueError("McNemar's test needs scores of 0 and 1; use a permutation test")
    only_first = int(((first == 1) & (second == 0)).sum())
    only_second = int(((first == 0) & (second == 1)).sum())
    fewer, both = min(only_first, only_second), only_first + only_second
    return float(scipy.stats.binomtest(fewer, both).pvalue) if both else 1.0


def permutation_p(observed: float, drawn: Iterable[Array]) -> float:
    """Return the two-sided p value of a permutation test, the real arrangement counted in.

    Args:
        observed: the real difference.
        drawn: batches of differences under permutation, (batch,) each.

    Returns:
        (1 + number at least as large) / (1 + number drawn), NaN where a difference is NaN.
    """
    if not math.isfinite(observed):
        return math.nan
    count = larger = 0
    for batch in drawn:
        if not np.isfinite(batch).all():
            return math.nan
        count += len(batch)
        larger += int((np.abs(batch) >= abs(observed) - TIE).sum())
    return (1 + larger) / (1 + count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the given order (Holm 1979).

    A comparison is significant at level a if its adjusted value is at most a; the chance of any
    false one in the whole family then stays below a. NaN (no test was possible) stays NaN and does
    not count.
    """
    known = [i for i, p in enumerate(p_values) if math.isfinite(p)]
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        # Never below that of a smaller p: the order of the values stays.
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def rests_on_samples(
    statistic: Callable[[Array], Array], a: Array, real: Array
) -> NDArray[np.bool_]:
    """Return whether a statistic of a[chunk, task] is that of the test samples behind it.

    Where it needs a cell whose samples are missing, or give another score than `a` has, bootstrap
    and permutation are of another number: there is no spread and no p.

    Args:
        statistic: of a matrix.
        a: the scores of matrix.csv.
        real: the same cells, made of the samples; NaN = they are missing.
    """
    # Every score a little apart: a missing one may happen to be the mean of all the others.
    apart = a + 1e-3 * np.random.default_rng(0).random(a.shape)
    seen = np.where(np.isfinite(real), apart, np.nan)
    whole = np.isclose(statistic(apart), statistic(seen), rtol=0, atol=1e-9, equal_nan=True)
    # matrix.csv has six digits.
    same = np.isclose(statistic(a), statistic(real), rtol=0, atol=2e-6, equal_nan=True)
    return np.asarray(whole & same)


def _finite(values: Sequence[float]) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]

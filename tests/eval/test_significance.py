"""Intervals and tests against scipy.stats, against enumeration, and by properties."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval import metrics
from eval.significance import (
    Spread,
    holm,
    mcnemar,
    over_runs,
    over_samples,
    paired_t,
    percentile_interval,
    permutation_p,
    t_interval,
    welch,
)

NAN = math.nan
P_VALUES = st.lists(st.floats(0, 1, allow_subnormal=False) | st.just(NAN), max_size=12)
FEW = st.lists(st.integers(0, 1000).map(lambda x: x / 1000), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(values=FEW)
def test_t_interval_is_that_of_scipy(values: list[float]) -> None:
    found = t_interval([*values, NAN])
    error = stats.sem(values)
    if error == 0:
        assert found == pytest.approx((values[0], values[0]))
    else:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert found == pytest.approx(expected, abs=1e-12)


def test_t_interval_of_three_seeds_by_hand() -> None:
    # t(2 degrees, 97.5 %) = 4.3027; mean 0.5, standard error 0.1 / sqrt(3).
    found = t_interval([0.4, 0.5, 0.6])
    assert found.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert all(math.isnan(x) for x in t_interval([0.5]))


@settings(max_examples=60, deadline=None)
@given(first=FEW, second=FEW)
def test_welch_is_that_of_scipy(first: list[float], second: list[float]) -> None:
    found = welch(first, second)
    assert found == pytest.approx(welch(second, first), nan_ok=True)
    if max(np.ptp(first), np.ptp(second)) > 1e-9:
        assert found == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert math.isnan(welch(first, [0.5]))


def test_what_stands_behind_the_sign_by_hand() -> None:
    # Deviations of -0.1, 0 and 0.1: standard deviation 0.1, error 0.1 / sqrt(3), t = 4.3027.
    found = over_runs([0.4, 0.5, NAN, 0.6])
    assert found.over == "runs"
    assert found.half("std") == pytest.approx(0.1)
    assert found.half("sem") == pytest.approx(0.1 / math.sqrt(3))
    assert found.half("ci95") == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert over_runs([0.5]) == Spread()
    drawn = np.array([0.1, 0.2, 0.3])
    one = over_samples(drawn)
    assert (one.std, one.sem, one.over) == (pytest.approx(0.1), pytest.approx(0.1), "samples")
    assert over_samples(np.array([0.1, NAN])) == Spread()


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_the_paired_test_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    one, other = map(list, zip(*pairs, strict=True))
    found = paired_t([*one, NAN], [*other, 0.5])
    assert found == pytest.approx(paired_t(other, one))
    if np.ptp(np.subtract(one, other)) > 1e-9:
        assert found == pytest.approx(stats.ttest_rel(one, other).pvalue)


def test_the_paired_test_without_spread() -> None:
    assert paired_t([0.5, 0.6], [0.5, 0.6]) == 1.0
    # Both signs up: one of the two arrangements of four that are as far from 0.
    assert paired_t([0.6, 0.7], [0.5, 0.6]) == 0.5
    assert paired_t([0.6, 0.7, 0.8], [0.5, 0.6, 0.7]) == 0.25
    assert math.isnan(paired_t([0.6], [0.5]))


def test_welch_without_spread() -> None:
    assert welch([0.5, 0.5], [0.5, 0.5]) == 1.0
    # Of the six ways to share out four runs two are as far apart; of the ten for five runs one.
    assert welch([0.5, 0.5], [0.6, 0.6]) == pytest.approx(2 / 6)
    assert welch([0.5, 0.5], [0.6, 0.6, 0.6]) == pytest.approx(1 / 10)


def test_a_side_without_spread_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # t = -0.1 / sqrt(0.005 / 2) = -2 with one degree of freedom: p = 1 - 2 atan(2) / pi.
        found = welch([0.5, 0.5], [0.55, 0.65])
    assert found == pytest.approx(1 - 2 * math.atan(2) / math.pi)


BITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(pairs=BITS)
def test_mcnemar_is_the_binomial_test_of_the_discordant(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs, dtype=float).T
    wins, losses = int((first > second).sum()), int((second > first).sum())
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_refuses_what_it_cannot_test() -> None:
    with pytest.raises(ValueError, match="scores of 0 and 1"):
        mcnemar(np.array([0.5]), np.array([1.0]))
    with pytest.raises(ValueError, match="not the same samples"):
        mcnemar(np.array([1.0]), np.array([1.0, 0.0]))


@settings(max_examples=100, deadline=None)
@given(p_values=P_VALUES, seed=st.integers(0, 99))
def test_holm(p_values: list[float], seed: int) -> None:
    adjusted = holm(p_values)
    known = sorted(p for p in p_values if not math.isnan(p))
    for p, found in zip(p_values, adjusted, strict=True):
        if math.isnan(p):
            assert math.isnan(found)
            continue
        # Once more, by its definition: the largest (m - j) p_(j) up to this rank, cut at 1.
        steps = [(len(known) - j) * q for j, q in enumerate(known) if q <= p]
        assert found == pytest.approx(min(1.0, max(steps)))
        assert p <= found <= 1
    order = np.random.default_rng(seed).permutation(len(p_values))
    shuffled = holm([p_values[i] for i in order])
    np.testing.assert_allclose(shuffled, [adjusted[i] for i in order])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_percentile_interval() -> None:
    assert percentile_interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))
    assert math.isnan(percentile_interval(np.array([0.1, NAN, 0.2])).low)


def test_the_interval_of_a_difference_to_a_best_holds_what_was_measured() -> None:
    """Replicates 0.100 to 1.100, median 0.6: moved by hand to a measured 0.2, and cut at 0."""
    drawn = 0.1 + np.arange(1001) / 1000
    assert over_samples(drawn).interval == pytest.approx((0.125, 1.075))
    assert over_samples(drawn, 0.2, -1.0).interval == pytest.approx((-0.275, 0.675))
    assert over_samples(drawn, 0.2, 0.0).interval == pytest.approx((0.0, 0.675))
    assert over_samples(drawn, 0.2, 0.0).std == over_samples(drawn).std


def _plain(mean: np.ndarray) -> np.ndarray:
    return mean


def _p(first: np.ndarray, second: np.ndarray, statistic: metrics.Statistic, draws: int) -> float:
    real = [statistic(s.mean(axis=1)[:, None]) for s in (first, second)]
    pairs = metrics.permuted_matrices([first], [second], [_plain], draws, seed=1)
    return permutation_p(float(real[0] - real[1]), (statistic(a) - statistic(b) for a, b in pairs))


def test_permutation_agrees_with_the_exact_test() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.2, 0.4):
        first = (rng.random((2, 60)) < 0.4).astype(float)
        second = (rng.random((2, 60)) < 0.4 + shift).astype(float)
        exact = mcnemar(first[1], second[1])
        assert _p(first, second, metrics.last, 4000) == pytest.approx(exact, abs=0.03)


def test_permutation_against_all_arrangements() -> None:
    """All 2^8 swaps of eight samples, for a statistic that is not a mean: forgetting."""
    rng = np.random.default_rng(3)
    first, second = rng.random((3, 8)), rng.random((3, 8))
    observed = abs(_forgetting(first) - _forgetting(second))
    count = 0
    for coins in itertools.product([False, True], repeat=8):
        left = np.where(coins, second, first)
        right = np.where(coins, first, second)
        count += abs(_forgetting(left) - _forgetting(right)) >= observed - 1e-12
    found = _p(first, second, lambda a: metrics.forgetting(a, [1]), 8000)
    assert found == pytest.approx(count / 2**8, abs=0.02)


def _forgetting(samples: np.ndarray) -> float:
    means = samples.mean(axis=1)
    return float(means[1:-1].max() - means[-1])


def test_permutation_is_symmetric_and_level_under_the_null() -> None:
    rng = np.random.default_rng(5)
    p_values = []
    for _ in range(200):
        first, second = rng.random((2, 30)), rng.random((2, 30))
        p = _p(first, second, metrics.last, 199)
        assert p == _p(second, first, metrics.last, 199)
        p_values.append(p)
    # Of 200 true null hypotheses about 5 % may be refused; 20 would be far out (p < 0.002).
    assert 1 <= sum(p <= 0.05 for p in p_values) < 20


def test_what_was_not_measured_has_no_p() -> None:
    gap = np.full((2, 5), NAN)
    assert math.isnan(_p(gap, gap, metrics.last, 10))
    assert math.isnan(permutation_p(0.1, [np.array([0.1, NAN])]))
    with pytest.raises(ValueError, match="cannot be paired"):
        list(metrics.permuted_matrices([gap], [gap[:, :4]], [_plain], 1))


def test_one_sided_matrices_are_the_real_ones_when_nothing_moves() -> None:
    scores = np.array([[0.0, 1.0, 1.0], [0.5, 0.5, 1.0]])
    for left, right in metrics.permuted_matrices([scores], [scores], [_plain], 3):
        np.testing.assert_allclose(left[:, :, 0], [scores.mean(axis=1)] * 3)
        np.testing.assert_allclose(left, right)

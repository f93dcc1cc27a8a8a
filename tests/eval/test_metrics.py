"""Stream scores against plain loops, by hand, and by properties that must hold for any matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from eval import metrics

NAN = math.nan
# Base model, then three chunks; task 1 comes in chunk 2, task 2 was never seen or measured.
A = np.array(
    [
        [0.10, 0.20, NAN],
        [0.90, 0.30, NAN],
        [0.60, 0.80, NAN],
        [0.50, 0.85, NAN],
    ]
)
FIRST = [1, 2, None]
FUNCTIONS = (
    metrics.last, metrics.average, lambda a: metrics.forgetting(a, [1] * a.shape[-1]),
    lambda a: metrics.SCORE["plasticity"].mean(a, []),
)  # fmt: skip


def test_by_hand() -> None:
    assert metrics.last(A) == pytest.approx(0.675)
    assert metrics.average(A) == pytest.approx((0.6 + 0.7 + 0.675) / 3)
    np.testing.assert_allclose(metrics.forgetting_by_task(A, FIRST), [0.4, -0.05, NAN])
    assert metrics.forgetting(A, FIRST) == pytest.approx(0.175)
    np.testing.assert_allclose(metrics.backward_transfer_by_task(A, FIRST), [-0.4, 0.05, NAN])
    np.testing.assert_allclose(metrics.forward_transfer_by_task(A, FIRST), [NAN, 0.1, NAN])
    np.testing.assert_allclose(metrics.plasticity_by_task(A), [0.8, 0.65, NAN])


# (what, a[chunk, task] in percent, c_i, forgetting, backward, forward), each worked by hand.
BY_HAND = [
    (
        # RaptorMai/online-continual-learning#23, Continvvm/continuum#281: the last task is no part.
        # Forgetting: a 80 - 30 = 50, b 80 - 60 = 20. Backward: a 30 - 80, b 60 - 80.
        # Forward: b 10 - 0, c 10 - 0.
        "one task a chunk",
        [[0, 0, 0], [80, 10, 10], [50, 80, 10], [30, 60, 80]],
        [1, 2, 3],
        (50 + 20) / 2,
        (-50 - 20) / 2,
        (10 + 10) / 2,
    ),
    (
        # arthurdouillard/dytox#12: after the second of two tasks the first has a number.
        "two tasks",
        [[5, 5], [90, 15], [60, 70]],
        [1, 2],
        90 - 60,
        60 - 90,
        15 - 5,
    ),
    (
        # Task a comes in chunks 1 and 3, and is best after 3: 85 - 70. Its backward transfer is
        # since chunk 1: 70 - 80. b: 75 - 50 and 50 - 75.
        "a task that comes again",
        [[0, 0], [80, 20], [40, 75], [85, 60], [70, 50]],
        [1, 2],
        (15 + 25) / 2,
        (-10 - 25) / 2,
        20,
    ),
    (
        # Task a comes again in the last chunk: 80 - 90 is growth, c = 3 first came there.
        "a task that the last chunk teaches again",
        [[0, 0, 0], [80, 20, 0], [40, 70, 0], [90, 50, 60]],
        [1, 2, 3],
        (-10 + 20) / 2,
        (10 - 20) / 2,
        (20 + 0) / 2,
    ),
    (
        # Best before its own chunk (65 at chunk 1, taught in 2): equation 3 takes every l < k.
        "best before it was taught",
        [[0, 0], [80, 65], [70, 60], [60, 50]],
        [1, 2],
        (20 + 15) / 2,
        (-20 - 10) / 2,
        65,
    ),
    # Nothing was seen before the only chunk; two tasks of one chunk have no order.
    ("one chunk", [[0, 0], [80, 20]], [1, 1], NAN, NAN, NAN),
    # The stream never taught task b: neither number is about it.
    ("never taught", [[0, 30], [80, 40], [60, 10]], [1, None], 20, -20, NAN),
    # The run stands after chunk 2 of 3: T is 2 so far, and c has no number yet.
    ("in progress", [[0, 0, 9], [80, 10, 9], [50, 80, 9]], [1, 2, 3], 30, -30, 10),
]


@pytest.mark.parametrize(
    ("what", "a", "first", "forgetting", "backward", "forward"), BY_HAND, ids=lambda v: str(v)[:40]
)
def test_published_definitions_by_hand(
    what: str, a: list, first: list, forgetting: float, backward: float, forward: float
) -> None:
    matrix = np.array(a, dtype=float)
    assert metrics.forgetting(matrix, first) == pytest.approx(forgetting, nan_ok=True)
    assert metrics.SCORE["backward"].mean(matrix, first) == pytest.approx(backward, nan_ok=True)
    assert metrics.SCORE["forward"].mean(matrix, first) == pytest.approx(forward, nan_ok=True)


def test_a_run_that_has_only_begun() -> None:
    base_only = A[:1]
    assert math.isnan(metrics.last(base_only))
    assert math.isnan(metrics.average(base_only))
    assert math.isnan(metrics.forgetting(A[:2], FIRST))
    assert metrics.last(A[:2]) == pytest.approx(0.6)
    assert math.isnan(metrics.last(np.zeros((0, 2))))


def test_a_skipped_evaluation_is_left_out() -> None:
    skipped = A.copy()
    skipped[2] = NAN
    assert metrics.average(skipped) == pytest.approx((0.6 + 0.675) / 2)
    assert math.isnan(metrics.backward_transfer_by_task(skipped, FIRST)[1])
    unfinished = np.vstack([A, np.full((2, 3), NAN)])
    assert metrics.last(unfinished) == pytest.approx(0.675)
    assert metrics.forgetting(unfinished, FIRST) == pytest.approx(0.175)


def test_the_input_is_left_alone() -> None:
    before = A.copy()
    for f in FUNCTIONS:
        f(A)
    np.testing.assert_array_equal(A, before)


def test_coin_and_strcvit_by_hand() -> None:
    """One task a chunk, three of each: CoIN's formulas, and MAF as we read it."""
    a = np.array([[0.0, 0.1, 0.2], [0.8, 0.1, 0.2], [0.6, 0.7, 0.3], [0.9, 0.5, 0.6]])
    first = [1, 2, 3]
    # After chunk 1: 0.8; after 2: (0.6 + 0.7) / 2; after 3: (0.9 + 0.5 + 0.6) / 3.
    assert metrics.mean_average_accuracy(a, first) == pytest.approx((0.8 + 0.65 + 2.0 / 3) / 3)
    # (0.9 - 0.8) + (0.5 - 0.7) + 0, over all three tasks; Lopez-Paz and Ranzato: over two.
    bwt = metrics.SCORE["bwt"]
    assert bwt.mean(a, first) == pytest.approx(-0.1 / 3)
    assert metrics.SCORE["backward"].mean(a, first) == pytest.approx(-0.1 / 2)
    # After chunk 2: task 1 lost 0.2; after 3: task 1 gained 0.1, task 2 lost 0.2.
    assert metrics.mean_forgetting(a, first) == pytest.approx((0.2 + (-0.1 + 0.2) / 2) / 2)
    # No gain cancels a loss: task 2 alone lost, 0.2 of it, over three tasks.
    np.testing.assert_allclose(metrics.lost_by_task(a), [0.0, 0.2, 0.0])
    assert metrics.SCORE["lost"].mean(a, first) == pytest.approx(0.2 / 3)
    assert metrics.forgetting(a, first) == pytest.approx(0.05)


def _slow(a: np.ndarray, first: Sequence[int | None]) -> dict[str, float]:
    """The definitions once more, in plain loops."""
    chunks, tasks = len(a) - 1, a.shape[1]
    rows = [c for c in range(chunks + 1) if any(not math.isnan(x) for x in a[c])]
    last = rows[-1] if rows else 0

    def mean(values: list[float]) -> float:
        known = [v for v in values if not math.isnan(v)]
        return sum(known) / len(known) if known else NAN

    def best(values: list[float]) -> float:
        return max((v for v in values if not math.isnan(v)), default=NAN)

    end = [a[last, i] if last else NAN for i in range(tasks)]
    found = {
        "last": mean(end),
        "average": mean([mean(list(a[c])) for c in range(1, chunks + 1)]),
        "forgetting": mean(
            [
                best([a[c, i] for c in range(1, last)]) - end[i]
                for i, chunk in enumerate(first)
                if chunk is not None and chunk < last
            ]
        ),
        "plasticity": mean(
            [best([a[c, i] for c in range(1, chunks + 1)]) - a[0, i] for i in range(tasks)]
        ),
    }
    backward = [end[i] - a[c, i] for i, c in enumerate(first) if c is not None and c < last]
    forward = [
        a[c - 1, i] - a[0, i] for i, c in enumerate(first) if c is not None and 1 < c <= last
    ]

    def forgotten(c: int) -> float:
        before = [i for i, seen in enumerate(first) if seen is not None and seen < c]
        return mean([best([a[e, i] for e in range(1, c)]) - a[c, i] for i in before])

    def seen_at(c: int) -> list[int]:
        return [i for i, seen in enumerate(first) if seen is not None and seen <= c]

    return found | {
        "backward": mean(backward),
        "forward": mean(forward),
        "lost": mean([max(0.0, best([*a[1:, i]]) - end[i]) if end[i] == end[i] else NAN
                      for i in range(tasks)]),
        "mean_forgetting": mean([forgotten(c) for c in range(2, chunks + 1)]),
        "mean_average_accuracy": mean(
            [mean([a[c, i] for i in seen_at(c)]) for c in range(1, chunks + 1)]
        ),
        "bwt": mean([end[i] - a[first[i], i] for i in seen_at(last)]),
    }  # fmt: skip


BY_FIRST = ("forgetting", "accuracy")
SCORES = st.one_of(st.just(NAN), st.integers(0, 1000).map(lambda x: x / 1000))
MATRICES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=SCORES)


@settings(max_examples=150, deadline=None)
@given(a=MATRICES, data=st.data())
def test_against_plain_loops(a: np.ndarray, data: st.DataObject) -> None:
    chunk = st.one_of(st.none(), st.integers(1, 7))
    first = data.draw(st.lists(chunk, min_size=a.shape[1], max_size=a.shape[1]))
    for name, expected in _slow(a, first).items():
        if name in metrics.SCORE and not hasattr(metrics, name):
            continue  # below, by its name in tables
        f = getattr(metrics, name)
        found = float(f(a, first) if name.endswith(BY_FIRST) else f(a))
        assert found == pytest.approx(expected, nan_ok=True, abs=1e-12), name


@settings(max_examples=60, deadline=None)
@given(a=MATRICES, seed=st.integers(0, 99))
def test_the_order_of_tasks_does_not_matter(a: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(a.shape[1])
    for f in FUNCTIONS:
        assert float(f(a)) == pytest.approx(float(f(a[:, order])), nan_ok=True, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(a=MATRICES)
def test_a_column_never_measured_changes_nothing(a: np.ndarray) -> None:
    wider = np.hstack([a, np.full((len(a), 1), NAN)])
    for f in FUNCTIONS:
        assert float(f(a)) == pytest.approx(float(f(wider)), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(a=arrays(np.float64, (5, 3), elements=st.integers(0, 1000).map(lambda x: x / 1000)))
def test_growing_scores_are_never_forgotten(a: np.ndarray) -> None:
    growing = np.sort(a, axis=0)
    assert metrics.forgetting(growing, [1, 2, 3]) <= 0
    assert metrics.SCORE["backward"].mean(growing, [1, 2, 3]) >= 0
    assert metrics.forgetting(growing[[0, 4, 3, 2, 1]], [1, 2, 3]) >= 0


@settings(max_examples=60, deadline=None)
@given(a=MATRICES, data=st.data())
def test_the_table_of_scores_is_made_of_the_functions(a: np.ndarray, data: st.DataObject) -> None:
    chunk = st.one_of(st.none(), st.integers(1, 7))
    first = data.draw(st.lists(chunk, min_size=a.shape[1], max_size=a.shape[1]))
    slow = _slow(a, first)
    names = {"maf": "mean_forgetting", "maa": "mean_average_accuracy"}
    for score in metrics.STREAM_SCORES:
        by_task = score.by_task(a, first)
        assert by_task.shape == (a.shape[1],)
        expected = slow[names.get(score.key, score.key)]
        assert float(score.mean(a, first)) == pytest.approx(expected, nan_ok=True, abs=1e-12)
        if score.total is None or (score.key == "average" and np.isfinite(a).all()):
            mean = metrics.mean_over(by_task)
            assert float(mean) == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_leading_axes_are_carried_through() -> None:
    stack = np.stack([A, A[:, ::-1], A + 0.05])
    for f in FUNCTIONS:
        np.testing.assert_allclose(f(stack), [float(f(a)) for a in stack])


def _identity(mean: np.ndarray) -> np.ndarray:
    return mean


def test_bootstrap_errors_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    n = 400
    first, second = rng.random(n) < 0.3, rng.random(n) < 0.7
    samples = [np.stack([np.zeros(n), first, second]).astype(float)]
    drawn = metrics.bootstrap_matrices(samples, [_identity], 2000, seed=1)
    assert drawn.shape == (2000, 3, 1)
    expected = math.sqrt(second.mean() * (1 - second.mean()) / n)
    assert float(metrics.standard_error(metrics.last, drawn)) == pytest.approx(expected, rel=0.06)
    # Paired over chunks: the error of a difference is that of the samples' differences.
    difference = first.astype(float) - second
    expected = difference.std() / math.sqrt(n)
    found = float(metrics.standard_error(lambda a: metrics.forgetting(a, [1]), drawn))
    assert found == pytest.approx(expected, rel=0.06)
    again = metrics.bootstrap_matrices(samples, [_identity], 2000, seed=1)
    np.testing.assert_array_equal(drawn, again)


def test_bootstrap_of_what_was_not_measured_is_nan() -> None:
    samples = [np.stack([np.ones(5), np.full(5, NAN)]), np.zeros((2, 0))]
    drawn = metrics.bootstrap_matrices(samples, [_identity, _identity], 10)
    assert np.isnan(drawn[:, 1]).all()
    assert np.isnan(drawn[:, :, 1]).all()
    assert math.isnan(metrics.standard_error(metrics.last, drawn))
    alone = metrics.bootstrap_matrices([np.ones((2, 1))], [_identity], 10)
    assert np.isnan(alone).all(), "of one sample no spread is known, and it is not 0"

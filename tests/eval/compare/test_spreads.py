"""Intervals over test samples, on sample scores that are drawn here: no files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from eval.compare.differences import column_values, spreads, without_samples
from eval.compare.runs import Comparable, Entry, Method
from eval.run_files import Manifest

TASKS = [f"T{n}" for n in range(11)]


def test_every_score_lies_in_its_own_interval() -> None:
    """25 chunks that change nothing: the best of them is noise, and more so when drawn again."""
    rng = np.random.default_rng(5)
    samples = []
    for _ in TASKS:
        hard = rng.random(500)
        samples.append((0.6 * hard + 0.4 * rng.random((26, 500)) < 0.75).astype(float))
    values = np.stack([of_task.mean(axis=1) for of_task in samples], axis=-1)
    run: Any = SimpleNamespace(manifest=Manifest(), has_no_stream=False)
    first = [1] * len(TASKS)
    method = Method("lora", [Entry(run, values, samples, first)])
    found = spreads(Comparable([method], TASKS, [np.asarray] * len(TASKS)), method)
    measured = column_values(values, TASKS, first)
    assert 0.01 < measured["lost"] < 0.04
    for key, value in measured.items():
        if np.isfinite(value):
            low, high = found[key].interval
            assert low <= value <= high, (key, low, float(value), high)
    # Lost since best is never negative, and its interval is as wide as the replicates lie.
    assert min(s.interval.low for k, s in found.items() if k.startswith("lost")) == 0.0
    lost = found["lost"]
    assert 3.5 * lost.std < lost.interval.high - lost.interval.low < 4.3 * lost.std


def test_a_task_of_one_sample_has_no_spread_and_leaves_none_to_a_mean_with_it() -> None:
    """Drawn again it is always the same sample, which would make it the surest of all."""
    rng = np.random.default_rng(1)
    samples = [rng.integers(0, 2, (3, size)).astype(float) for size in (40, 1)]
    values = np.stack([of_task.mean(axis=1) for of_task in samples], axis=-1)
    run: Any = SimpleNamespace(manifest=Manifest(), has_no_stream=False, folder="tiny")
    method = Method("lora", [Entry(run, values, samples, [1, 1])])
    loaded = Comparable([method], ["many", "one"], [np.asarray] * 2)
    found = spreads(loaded, method)
    assert found["last/many"].std > 0
    assert {key: found[key].over for key in ("last/many", "last/one", "last", "average")} == {
        "last/many": "samples", "last/one": "", "last": "", "average": "",
    }  # fmt: skip
    (gap,) = without_samples(loaded)
    assert gap.what.startswith("tiny: no ± of Last, Avg (MAP), ")
    assert "a single test sample" in gap.why

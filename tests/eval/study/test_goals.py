"""The goals of the study and its three sentences, against values worked by hand."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from eval.significance import Interval
from eval.study import documents, goals, tables
from eval.study.groups import read_study
from tests.eval.study.test_study import keep

SLOW = "slow_weights={}"


def runs(folder: Path, method: str, levels: tuple[int, ...], **more: Any) -> None:
    """A run a stream, which scores the same in both tasks after every chunk: its Avg and Last."""
    for seed, level in enumerate(levels):
        keep(folder, method, seed, [(0, 0), *[(level, level)] * 3], **more)


def row(results: Path, where: str, against: str, title: str) -> goals.Row:
    """The one row of a goal."""
    (found,) = (
        row
        for row in goals.rows(results)
        if row.where == where and row.against.startswith(against) and title in row.goal
    )
    return found


def test_the_nearest_method_without_data_decides(tmp_path: Path) -> None:
    study = tmp_path / "tiny-study"
    runs(study, "strlora_signed", (70, 71, 72, 73, 74))
    runs(study, "strlora_signed", (75, 75, 75, 75, 75), settings="slow_weights=null")
    runs(study, "lora", (40, 40, 40, 40, 40))
    # 70 - 65, 71 - 65, 72 - 66, 73 - 66, 74 - 67: 5, 6, 6, 7, 7, mean 6.2, sd sqrt(0.7), and
    # t(0.975, 4) = 2.776: 6.2 +- 2.776 * sqrt(0.7 / 5) = 5.16 to 7.24.
    runs(study, "lora", (65, 65, 66, 66, 67), settings=SLOW)
    runs(study, "er", (90, 90, 90, 90, 90), keeps="500 samples")
    runs(study, "oracle", (95, 95, 95, 95, 95))
    found = row(tmp_path, "`tiny-study`", goals.NO_DATA, "Avg (MAP): at least +5.0")
    assert found.against.endswith("data (2 ran); nearest: LoRA + slow weights")
    assert (found.pairs, found.found, found.interval) == (5, "+6.2", "+5.2 to +7.2")
    assert found.verdict == "met"
    assert row(tmp_path, "`tiny-study`", goals.SLOW_LORA, "Last: at least +3.0").verdict == "met"
    for where in ("`mini-study`", "`ambiguous`"):
        assert row(tmp_path, where, goals.SLOW_LORA, "Avg").verdict == "not measured"
    assert "| Avg (MAP): at least +5.0 | `tiny-study` | LoRA + slow weights | 5 | +6.2 |" in (
        goals.table(tmp_path)
    )
    # 4 rows of tiny-study, 4 + 2 of mini-study, 2 of ambiguous, a step and a token.
    assert goals.summary(tmp_path) == (
        "of 14 goals that were set before: 4 met, 0 missed, 10 not measured"
    )


def test_level_with_replay_is_a_goal_of_nought(tmp_path: Path) -> None:
    study = tmp_path / "mini-study"
    runs(study, "strlora_signed", (70, 72))
    runs(study, "er", (71, 71), keeps="500 samples")
    found = row(tmp_path, "`mini-study`", "Replay (ER)", "Last: at least 0.0")
    # -1 and 1: mean 0, sd sqrt(2), t(0.975, 1) = 12.71: 0 +- 12.7.
    assert found[3:] == (2, "0.0", "−12.7 to +12.7", "met (not sure), fewer than 5 streams")


@pytest.mark.parametrize(
    ("reached", "low", "high", "expected"),
    [
        (0.05, 0.05, 0.05, "met"),
        (0.06, 0.04, 0.08, "met (not sure)"),
        (0.04, 0.02, 0.06, "missed (not sure)"),
        (0.02, 0.01, 0.03, "missed"),
        (0.09, math.nan, math.nan, "not measured"),
        (0.01, math.nan, math.nan, "not measured"),
        (math.nan, math.nan, math.nan, "not measured"),
    ],
)
def test_a_verdict_says_whether_the_interval_leaves_a_doubt(
    reached: float, low: float, high: float, expected: str
) -> None:
    assert goals.verdict(reached, 0.05, Interval(low, high)) == expected


@pytest.mark.parametrize(
    ("ours", "cells"),
    [
        # Ratios 1.00, 1.01, 1.02: mean 1.01, sd 0.01, t(0.975, 2) = 4.303: +- 0.0248.
        ([2.0, 2.02, 2.04], (3, "1.010 x", "0.985 to 1.035", "met (not sure)")),
        ([2.0, 2.0, 2.0], (3, "1.000 x", "1.000 to 1.000", "met")),
        ([2.2, 2.2, 2.2], (3, "1.100 x", "1.100 to 1.100", "missed")),
    ],
)
def test_times_are_compared_repeat_by_repeat(
    tmp_path: Path, ours: list[float], cells: tuple[object, ...]
) -> None:
    rounds = {"peft_lora": {"step": [2.0] * 3}, "strlora_signed": {"step": ours}}
    report = {"rounds": rounds, "settings": {"hidden": 2048}}
    path = tmp_path / goals.TIMES
    path.write_text(json.dumps(report), encoding="utf-8")
    step, token = goals.rows(tmp_path)[-2:]
    assert step[3:] == cells
    assert token.verdict == "not measured", "--new-tokens 0"
    rounds["peft_lora"]["decode"], rounds["strlora_signed"]["decode"] = [0.2] * 3, [0.21] * 3
    path.write_text(json.dumps(report), encoding="utf-8")
    assert goals.rows(tmp_path)[-2:] == [
        step,
        token._replace(pairs=3, found="1.050 x", interval="1.050 to 1.050", verdict="missed"),
    ]
    path.write_text(json.dumps(report | {"settings": {"hidden": 64}}), encoding="utf-8")
    with pytest.raises(ValueError, match="found a hidden size of 64, expected 2048"):
        goals.rows(tmp_path)
    rounds["peft_lora"]["step"] = [2.0] * 2
    path.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ValueError, match="expected what `benchmarks/tuner_speed"):
        goals.rows(tmp_path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="expected what `benchmarks/tuner_speed"):
        goals.rows(tmp_path)


def test_a_method_that_is_given_the_task_is_no_winner(tmp_path: Path) -> None:
    runs(tmp_path, "lora", (50, 51))
    runs(tmp_path, "oracle", (90, 90))
    runs(tmp_path, "smolora", (80, 80), settings="tuner.sentence=template")
    study = read_study(tmp_path)
    assert [group.name for group in study.ranked()] == ["LoRA"]
    assert [group.runs[0].method for group in study.groups] == ["oracle", "smolora", "lora"]


def test_the_finding_is_three_sentences_on_the_streams_that_chose_nothing(tmp_path: Path) -> None:
    for seed in range(4):
        keep(tmp_path / "tiny", "lora", seed, [(0, 0), *[(80, 80)] * 3])
    study = tmp_path / "tiny-study"
    runs(study, "lora", (50, 52), settings=SLOW)
    runs(study, "er", (60, 66), keeps="500 samples")
    once = [(0, 0), (90, 90)]
    keep(study, "joint", 0, once, keeps="all data", first=("", ""), chunks=(0, 3))
    assert [each.folder.name for each in documents.studies(tmp_path)] == ["tiny", "tiny-study"]
    # 50 - 60, 52 - 66: -10, -14: mean -12, sd sqrt(8), +- 12.706 * 2 = 25.4.
    difference = "−12.0 (95 % interval −37.4 to +13.4)"
    first, second, third = documents._finding(tmp_path).split("\n")
    assert first.startswith("tiny-study: LoRA + slow weights is the only method without data")
    assert second == (
        "The best of those that keep old data, Replay (ER) (500 samples), has Avg 63.0, Last 63.0 "
        f"(n = 2); the leader's difference: Avg (MAP) {difference}, Last {difference}."
    )
    assert third == "Of 14 goals that were set before: 0 met, 0 missed, 14 not measured."
    assert tables.keepers(read_study(tmp_path / "tiny")) == (
        "no method that keeps old data has a score over a stream here"
    )


def test_what_ends_below_a_method_is_named_with_its_distance(tmp_path: Path) -> None:
    runs(tmp_path, "lora", (50, 54))
    runs(tmp_path, "moelora", (48, 50))
    runs(tmp_path, "er", (49, 56), keeps="500 samples")  # above in the mean
    runs(tmp_path, "oracle", (10, 10))  # given the task: a bound
    keep(tmp_path, "olora", 1, [(0, 0), (60, 60), (60, 60), (50, 50)])  # Avg 56.7, Last 50
    keep(tmp_path, "joint", 0, [(0, 0), (9, 9)], keeps="all data", first=("", ""), chunks=(0, 3))
    assert tables.below(read_study(tmp_path), "LoRA") == (
        "Mean Avg and mean Last below LoRA's on the same streams, untested: "
        "MoELoRA (−3.0 and −3.0, n = 2)."
    )
    assert tables.below(read_study(tmp_path), "EWC") == tables.NOTHING

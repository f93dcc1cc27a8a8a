"""Where a lead comes from, task by task, against values worked by hand."""

# ruff: noqa: RUF001

from __future__ import annotations

from pathlib import Path

from eval.study import tables, task_table
from tests.eval.study.test_study import keep

SLOW = "slow_weights={}"


def test_a_lead_is_told_task_by_task(tmp_path: Path) -> None:
    for seed, more in enumerate((4, 8)):
        keep(tmp_path, "strlora_signed", seed, [(0, 0), (60, 0), (70, 30), (80 + more, 60)])
        keep(tmp_path, "lora", seed, [(0, 0), (60, 0), (70, 0), (80, 30)], settings=SLOW)
    keep(tmp_path, "lora", 2, [(0, 0), *[(99, 99)] * 3], settings=SLOW)  # no partner
    text = task_table.table(tmp_path)
    # A, Last: 84 and 88 against 80: +4 and +8, mean 6, sd sqrt(8), t(0.975, 1) = 12.706, which
    # reaches 12.706 sqrt(8 / 2) = 25.4; t = 3, so p = 1 - 2 arctan(3) / pi = 0.205, twice that for
    # two tasks. Avg: (60 + 70 + 84) / 3 and (60 + 70 + 88) / 3 against 70: 4/3 and 8/3, the same t.
    # B: both runs 60 against 30, (0 + 30 + 60) / 3 = 30 against 10; without spread the sign test
    # decides, 2 of 4 signs: 0.5, and the larger of Holm's two stays as it is.
    assert text.splitlines()[2:4] == [
        "| A | 2 | 86.0 | 80.0 | +6.0 | −19.4 to +31.4 | 0.410 "
        "| 72.0 | 70.0 | +2.0 | −6.5 to +10.5 | 0.410 |",
        "| B | 2 | 60.0 | 30.0 | +30.0 | +30.0 to +30.0 | 0.500 "
        "| 30.0 | 10.0 | +20.0 | +20.0 to +20.0 | 0.500 |",
    ]
    assert "p corrected over 2 tasks (Holm)" in text


def test_without_a_shared_stream_there_is_no_table(tmp_path: Path) -> None:
    keep(tmp_path, "strlora_signed", 0, [(0, 0), *[(50, 50)] * 3])
    keep(tmp_path, "lora", 1, [(0, 0), *[(50, 50)] * 3], settings=SLOW)
    assert task_table.table(tmp_path) == tables.NOTHING


def test_without_both_methods_there_is_no_table(tmp_path: Path) -> None:
    keep(tmp_path, "strlora_signed", 0, [(0, 0), *[(50, 50)] * 3])
    assert task_table.table(tmp_path) == tables.NOTHING

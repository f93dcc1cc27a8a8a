"""Measures of routing beside forgetting, by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from eval.study import routing_table
from eval.study.groups import read_study
from eval.study.run_csv import COLUMNS, read_run

TASKS = "ABC"


def keep(
    folder: Path,
    seed: int,
    last: tuple[int, ...],
    moved: tuple[float, ...],
    first: int = 1,
    best: tuple[int, ...] = (80, 80, 80),
) -> Path:
    """Writes a run of two chunks: after the first the tasks score `best`, then `last`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"moelora-{seed}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for chunk, scores in ((0, (0, 0, 0)), (1, best), (2, last)):
            for task, score, share in zip(TASKS, scores, moved, strict=True):
                of_task = [chunk, task, first, score / 100, 80, 50, 10, "abc", "2 cores"]
                routing = [0.5, share, share / 2, 0.2] if chunk == 2 else [0.3, 0.9, 0.9, 0.5]
                rows.writerow(["moelora", 0, seed, "", "", "", "", *of_task, *routing])
    return path


def test_tasks_whose_routing_moved_more_forgot_more(tmp_path: Path) -> None:
    # Forgotten: 10, 20, 30; moved: 0.1, 0.3, 0.5: the same order. Chunk 1 is the tasks' own.
    keep(tmp_path, 0, (70, 60, 50), (0.1, 0.3, 0.5))
    # Forgotten: 30, 20, 10; ranks 3, 2, 1 beside 1, 3, 2: rho = 1 - 6 (4 + 1 + 1) / 24 = -0.5.
    keep(tmp_path, 1, (50, 60, 70), (0.1, 0.5, 0.3))
    runs = read_study(tmp_path).groups[0].runs
    found = [routing_table.correlation(run, "kept_sets_changed") for run in runs]
    assert found == pytest.approx([1.0, -0.5])
    # NMI: the mean of 0.3, 0.3 and 0.5; overlap: of 0.5, 0.5 and 0.2. Mean rho 0.25, sd 1.0607,
    # t(0.975, 1) = 12.706: +- 9.53.
    rho = "+0.25 [-9.28, +9.78]"
    row = f"| MoELoRA | 2 | 0.37 | 40.0 | 30.0 | 15.0 | {rho} | {rho} |"
    assert row in routing_table.table(read_study(tmp_path))


def test_what_cannot_be_ranked_is_not(tmp_path: Path) -> None:
    same = read_run(keep(tmp_path, 0, (70, 60, 50), (0.2, 0.2, 0.2)))
    assert math.isnan(routing_table.correlation(same, "drift"))
    new = read_run(keep(tmp_path, 1, (70, 60, 50), (0.1, 0.2, 0.3), first=2))
    assert math.isnan(routing_table.correlation(new, "drift")), "first in the last chunk"


def test_equal_forgetting_is_a_tie(tmp_path: Path) -> None:
    # 0.8 - 0.7 and 0.3 - 0.2 differ in their last bits. Ranks 1.5, 1.5, 3 beside 1, 2, 3.
    run = read_run(keep(tmp_path, 0, (70, 20, 50), (0.1, 0.2, 0.3), best=(80, 30, 80)))
    assert routing_table.correlation(run, "drift") == pytest.approx(math.sqrt(0.75))


def test_runs_without_measures_are_left_out(tmp_path: Path) -> None:
    path = keep(tmp_path, 0, (70, 60, 50), (0.1, 0.3, 0.5))
    older = [line.rsplit(",", 4)[0] for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join(older) + "\n", encoding="utf-8")
    assert routing_table.table(read_study(tmp_path)) == routing_table.NOTHING

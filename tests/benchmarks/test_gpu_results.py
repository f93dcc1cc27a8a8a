"""Results of the acceptance on a GPU: what counts as worse, the table, the page that shows it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import results

ROOT = Path(__file__).resolve().parents[2]
STORED = {
    "format": results.FORMAT, "step": "c", "date": "2026-11-27T00:00:00+00:00", "seconds": 1.0,
    "complete": True, "card": {"name": "Card", "driver": "driver 1"}, "versions": {"torch": "2"},
    "commit": {}, "settings": {}, "details": {},
    "figures": {"lora_step_s": 2.0, "gpu_peak_gib": 40.0, "tokens_per_s": 1000.0, "share": 0.5},
    "goals": [results.goal("share", 0.5, "at least", 0.9)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "value", "worse"),
    [
        ("lora_step_s", 2.29, False),
        ("lora_step_s", 2.31, True),
        ("gpu_peak_gib", 40.39, False),
        ("gpu_peak_gib", 40.41, True),
        ("tokens_per_s", 870.0, False),
        ("tokens_per_s", 869.0, True),
        ("tokens_per_s", 5000.0, False),
        ("lora_step_s", float("nan"), True),
        ("share", 0.01, False),
    ],
)
def test_worse_beyond_its_limit(figure, value, worse):
    new = copy.deepcopy(STORED)
    new["figures"][figure] = value
    lines = results.compare(new, STORED)
    assert bool(lines) is worse
    assert all(figure in line for line in lines)


def test_a_figure_that_is_gone_is_worse():
    new = copy.deepcopy(STORED)
    del new["figures"]["gpu_peak_gib"]
    assert results.compare(new, STORED) == ["c: gpu_peak_gib was 40, now there is none"]


def test_another_card_is_not_compared(tmp_path):
    for name, card in (("stored", "Card"), ("new", "Other")):
        (tmp_path / name).mkdir()
        text = json.dumps({**STORED, "card": {"name": card}})
        (tmp_path / name / "c.json").write_text(text)
    worse, alone = results.compare_folders(tmp_path / "new", tmp_path / "stored")
    assert worse == []
    assert alone == ["c on Other: nothing stored to compare with"]


def test_the_table_shows_value_goal_and_verdict():
    text = results.table([STORED, {**STORED, "complete": False}])
    assert "| c, 2026-11-27 | lora step s | 2 |  |  |" in text
    assert "|  | share | 0.5 | at least 0.9 | **missed** |" in text
    assert "(stopped early)" in text


def test_the_readme_shows_the_stored_results():
    page = results.README.read_text("utf-8")
    assert results.with_table(page, results.table(results.read(results.STORED))) == page


@pytest.mark.slow
def test_two_cheap_steps_run_without_a_gpu(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "data_prep.mini", "--out", "data/mini-tiny", "--size", "tiny"]
        if not (ROOT / "data/mini-tiny/stream.json").is_file()
        else ["true"],
        cwd=ROOT,
        check=True,
    )
    done = subprocess.run(
        ["bash", "benchmarks/gpu/accept.sh", "--cpu", "--only", "d,e", "--results", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {result["step"]: result for result in results.read(tmp_path)}
    assert found.keys() == {"d_tuner", "e_evaluation"}
    assert all(result["complete"] for result in found.values())
    assert found["d_tuner"]["figures"]["strlora_step_to_lora"] > 0
    assert found["e_evaluation"]["figures"]["same_answers_share"] == 1

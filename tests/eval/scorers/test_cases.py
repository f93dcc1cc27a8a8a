"""Small files of real kinds of answers, each with the command that a user would run on it.

Inputs in tests/fixtures/cases/NN; the public report each stands for is named beside it.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CASES = ROOT / "tests" / "fixtures" / "cases"

# (folder, task, scores in the file's order)
SCORED = [
    ("08", "AD", [1, 1, 0, 1]),  # huggingface/lighteval#869, modelscope/evalscope#649
    ("09", "AD", [1, 1, 1, 1, 1, 1, 0]),  # ai-twinkle/Eval#156, jundot/omlx#3668
    ("10", "AD", [1, 1, 0]),  # CRIPAC-DIG/LogicCheckGPT#1
    ("11", "MLLM-CL/Math", [1, 1, 0]),  # open-compass/opencompass#2647
    ("12", "OCRVQA", [0, 0, 0, 1]),  # openai/whisper#2849, kurianbenoy/whisper_normalizer#25
    ("13", "TextCaps", [0]),  # tylin/coco-caption#9, salaniz/pycocoevalcap#18
    ("14", "Grounding", [1, 1]),  # modelscope/ms-swift#99
    ("19", "ChartQA", [0, 0]),  # google-research/pix2struct#35
]


def run_module(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("folder", "task", "scores"), SCORED, ids=[case[0] for case in SCORED])
def test_the_command(folder: str, task: str, scores: list[int]) -> None:
    done = run_module("eval.score", "--task", task, CASES / folder / "answers.jsonl")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["score"] for line in found] == scores
    if folder == "13":
        assert found[0]["chrf"] == 1.0
        assert "too small for CIDEr" in done.stderr
        assert "chrF (characters) of the same captions: 100.00 of 100" in done.stderr


def test_forgetting_is_over_tasks_before_the_last(tmp_path: Path) -> None:
    """RaptorMai/online-continual-learning#23, Continvvm/continuum#281; by hand in test_metrics."""
    case, stream, run = CASES / "07", tmp_path / "stream", tmp_path / "run"
    run_module(
        "data_prep.compose", "--source", case / "tasks", "--mixture", case / "mix.json",
        "--out", stream, "--workers", 1,
    )  # fmt: skip
    shutil.copytree(case / "run", run)
    run_module("eval.report", run, "--stream", stream)
    run_module("eval.compare", run, "--out", tmp_path / "compare")
    with (tmp_path / "compare" / "compare.csv").open(encoding="utf-8") as file:
        values = {r["column"]: r["value"] for r in csv.DictReader(file) if r["method"] == "lora"}
    expected = {"forgetting": 35.0, "backward": -35.0, "forward": 10.0}
    for column, percent in expected.items():
        # The table may hold parts of one or percent; the report's page always says percent.
        assert float(values[column]) in (
            pytest.approx(percent), pytest.approx(percent / 100),
        )  # fmt: skip
    page = (run / "report.html").read_text("utf-8")
    assert "35.0" in page

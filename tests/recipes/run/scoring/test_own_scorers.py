"""Scorers that a recipe names: tried before the run, hashed, and used again on recorded answers."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.compare.runs import load_methods
from eval.report.data import load_run
from eval.report.numbers import summarise
from recipes.cli import main
from recipes.config.schema import Recipe
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.scoring.named_scorers import scorer_problems
from tests.recipes import fake_host
from tests.recipes.fork import Fork, write_to

FIRST_LETTER = """
import re

def score(answer, record):
    return bool(re.match(record["gold"][0], answer)) / 2
"""


def run(recipe: Path, *words: str) -> tuple[int, str]:
    """Run the orchestrator with the stand-in host, as a fork; return exit code and output."""
    log = recipe.with_suffix(".log")
    log.unlink(missing_ok=True)

    def life() -> None:
        write_to(log)
        sys.stdout = sys.stderr = log.open("a", encoding="utf-8", buffering=1)
        fake_host.install()
        if code := main(["run", str(recipe), *words]):
            os._exit(code)

    return Fork(life).wait(), log.read_text("utf-8")


def scores(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "matrix.csv").open(encoding="utf-8") as file:
        return {(row["chunk"], row["task"]): float(row["score"]) for row in csv.DictReader(file)}


def by_hand(folder: Path, chunk: int, task: str) -> float:
    """What FIRST_LETTER gives, worked out from the prediction file."""
    text = (folder / f"chunks/{chunk:03d}/predictions/{task}.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return sum(line["prediction"][0] == line["gold"][0] for line in lines) / 2 / len(lines)


def test_a_run_is_judged_by_the_recipe_s_function_and_again_when_it_changes(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, folder, own = toy_yaml(), tmp_path / "run", tmp_path / "mine.py"
    own.write_text(FIRST_LETTER)
    code, text = run(recipe, f"eval.scorer={{VQAv2: '{own}:score'}}")
    assert code == 0, text
    told = scores(folder)
    for chunk in range(3):
        assert told[str(chunk), "VQAv2"] == pytest.approx(by_hand(folder, chunk, "VQAv2"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    sha256 = hashlib.sha256(own.read_bytes()).hexdigest()
    assert manifest["scorers"] == {f"{own}:score": sha256}

    # Who reads the run knows its scorer by name, and never runs it.
    own.write_text("raise SystemExit('run by a reader')")
    read = load_run(folder)
    rows = {row.task: row for row in summarise(read).tasks}
    assert (rows["VQAv2"].scorer, rows["Fin"].scorer) == (f"{own}:score", "exact")
    base = json.loads((folder / "chunks/000/scores.json").read_text("utf-8"))
    assert rows["VQAv2"].majority.value == base["tasks"]["VQAv2"]["constant"] <= 0.5
    assert rows["Fin"].majority.value == 0.25  # stream.json's
    assert not [gap for gap in read.gaps if "redictions" in gap.what]

    # The same command on a changed file: no answer is asked for again, all are judged again.
    own.write_text(FIRST_LETTER.replace("/ 2", "/ 4"))
    code, text = run(recipe, f"eval.scorer={{VQAv2: '{own}:score'}}")
    assert code == 0, text
    assert "the recorded answers are scored again" in text
    assert "evaluating" not in text
    again = scores(folder)
    for (index, task), value in told.items():
        assert again[index, task] == pytest.approx(value / 2 if task == "VQAv2" else value)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert sha256[:8] in manifest["sessions"][-1]["changes"]["eval.scorer"]
    code, text = run(recipe, f"eval.scorer={{VQAv2: '{own}:score'}}")
    assert (code, "nothing to do" in text) == (0, True)

    # Back to the stream's scorers, by another change of the recipe.
    code, text = run(recipe)
    assert code == 0, text
    assert "scorers" not in manifest or not load_run(folder).manifest.scorers
    assert scores(folder)["1", "Fin"] == told["1", "Fin"]
    assert main(["status", str(recipe)]) == 0


def test_a_scorer_that_fails_in_the_run_keeps_the_answers(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, own = toy_yaml(), tmp_path / "mine.py"
    right = "def score(answer, record):\n    return float(answer == record['gold'])\n"
    fails = "    if answer not in ('', record['gold']): raise ValueError('never seen')\n"
    own.write_text(right.replace("    return", f"{fails}    return"))
    code, text = run(recipe, f"eval.scorer={own}:score")
    assert code == 1
    assert "ValueError('never seen'). The answers are kept: correct the scorer" in text
    assert "Traceback" not in text
    answers = (tmp_path / "run/chunks/000/answers.jsonl").read_bytes()
    own.write_text(right)
    code, text = run(recipe, f"eval.scorer={own}:score")
    assert code == 0, text
    assert f"continuing after {len(answers.splitlines())} of" in text
    assert scores(tmp_path / "run")["2", "Fin"] <= 1


WRONG = {
    "no_file.py:score": "no file",
    "mine.py:scores": "has no function 'scores'; did you mean 'score'?",
    "mine.py:broken": "sample 'VQAv2-test-000000': KeyError('wanted')",
    "mine.py:one": "must take two arguments, the answer and the record",
    "mine.py:percent": "returned 100, expected a number from 0 to 1",
    "mine.py:nothing": "returned None, expected a number from 0 to 1",
    "exat": "eval.scorer: found 'exat', expected one of",
    "mine.py": "a function of your own is",
}
MINE = """
def score(answer, record): return 1.0
def broken(answer, record): return record["wanted"]
def one(answer): return 1.0
def percent(answer, record): return 100
def nothing(answer, record): pass
"""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_scorer_is_told_before_the_run(
    name: str, toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    recipe = toy(f"eval.scorer={tmp_path / name if ':' in name else name}")
    try:
        problems = list(scorer_problems(recipe, open_recipe_stream(recipe)))
    except RuntimeError as error:
        problems = [str(error)]
    assert len(problems) == 1, name  # once, not for every task
    assert WRONG[name] in problems[0]


def test_a_task_that_the_stream_does_not_have(toy: Callable[..., Recipe]) -> None:
    with pytest.raises(RuntimeError, match=r"eval\.scorer: VQA is not in .*VQAv2, Fin"):
        open_recipe_stream(toy("eval.scorer={VQA: exact}"))


def test_runs_judged_by_different_scorers_are_not_compared(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    own = tmp_path / "mine.py"
    own.write_text(FIRST_LETTER)
    recipe = toy_yaml()
    for name, words in (("a", []), ("b", [f"eval.scorer={{VQAv2: '{own}:score'}}"])):
        code, text = run(recipe, f"run_dir={tmp_path / name}", *words)
        assert code == 0, text
    compared = load_methods([tmp_path / "a", tmp_path / "b"])
    assert compared.tasks == ["Fin"]
    assert any("different scorers" in gap.why for gap in compared.gaps)

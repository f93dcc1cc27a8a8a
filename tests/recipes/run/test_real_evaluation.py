"""The real `swift infer`: killed in the middle it goes on, and a question that fails is shown."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from recipes.config.loading import load_recipe
from recipes.processes.host_process import HostProcess
from recipes.processes.process_tree import kill_group
from recipes.run import evaluation
from recipes.run.chunk_data import open_recipe_stream
from recipes.run_folder.layout import RunLayout
from tests.recipes.real_host import BASE, host_worker, needs_host
from tests.recipes.toy import SCORERS, recipe_values, write_recipe, write_stream

TASKS = list(SCORERS)
TESTS = 20

pytestmark = [pytest.mark.slow, needs_host]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class KilledOnce(Exception):
    """Raised by the tick once enough answers are there."""


def test_killed_it_goes_on_and_a_broken_picture_is_an_error(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=1, samples=4, tests=TESTS)
    (stream / "images" / "Fin-test-000003.png").write_bytes(b"no picture")
    values = recipe_values(stream, tmp_path / "run", BASE)
    values["data"]["chunks"] = 1
    values["eval"] |= {"batch_size": 2, "max_new_tokens": 6}
    recipe = load_recipe(str(write_recipe(tmp_path / "toy.yaml", values)))
    layout, opened = RunLayout(tmp_path / "run"), open_recipe_stream(recipe)
    answers = layout.answers(0)

    first = evaluation.prepare(recipe, layout, opened, TASKS, 0)
    assert (first.answered, first.total) == (0, 2 * TESTS)
    assert first.command is not None
    process = HostProcess(first.command, layout.eval_log(0), host_worker())

    def tick() -> None:
        if answers.is_file() and answers.read_bytes().count(b"\n") >= 4:
            kill_group(process.pid, signal.SIGKILL)
            raise KilledOnce

    with pytest.raises(KilledOnce):
        process.wait(tick)
    before = lines_of(answers)
    assert 4 <= len(before) < 2 * TESTS

    second = evaluation.prepare(recipe, layout, opened, TASKS, 0)
    assert (second.answered, second.total) == (len(before), 2 * TESTS)
    assert len(lines_of(layout.prompts)) == 2 * TESTS - len(before)
    assert second.command is not None
    assert HostProcess(second.command, layout.eval_log(0), host_worker()).wait(lambda: None) == 0
    assert lines_of(answers)[: len(before)] == before

    scores = evaluation.score(recipe, layout, opened, TASKS, 0)
    assert scores["tasks"]["Fin"]["failed"] == 1
    assert scores["tasks"]["VQAv2"]["failed"] == 0
    predictions = {
        line["id"]: line
        for task in TASKS
        for line in lines_of(layout.predictions(0) / f"{task}.jsonl")
    }
    assert len(predictions) == 2 * TESTS
    broken = predictions.pop("Fin-test-000003")
    assert (broken["prediction"], broken["finish_reason"]) == (None, "error")
    assert "UnidentifiedImageError" in broken["error"]
    assert {line["finish_reason"] for line in predictions.values()} <= {"stop", "length"}
    for line in predictions.values():
        assert isinstance(line["prediction"], str)
        assert line["prompt"]
        assert line["gold"]


def test_two_processes_leave_the_answers_of_both(tmp_path: Path) -> None:
    """Five questions in blocks of four: of the last block one process gets none."""
    stream = write_stream(tmp_path / "stream", chunks=1, samples=4, tests=5)
    values = recipe_values(stream, tmp_path / "run", BASE)
    values["data"]["chunks"] = 1
    values["schedule"] |= {"per_device_batch": 2}
    values["eval"] |= {"batch_size": 2}
    values["launcher"] |= {"nproc": 2}
    recipe = load_recipe(str(write_recipe(tmp_path / "toy.yaml", values)))
    layout, opened = RunLayout(tmp_path / "run"), open_recipe_stream(recipe)
    questions = evaluation.prepare(recipe, layout, opened, TASKS[:1], 0)
    assert questions.command is not None
    assert HostProcess(questions.command, layout.eval_log(0)).wait(lambda: None) == 0
    assert len(lines_of(layout.answers(0))) == questions.total == 5
    evaluation.score(recipe, layout, opened, TASKS[:1], 0)
    lines = lines_of(layout.predictions(0) / f"{TASKS[0]}.jsonl")
    assert [line["error"] for line in lines if "error" in line] == []

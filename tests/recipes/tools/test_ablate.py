"""`python -m recipes.ablate` with a stand-in host: every switch once, resumable, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import ablate
from recipes.processes import host_process
from recipes.processes.command import Command
from recipes.processes.run_lock import RunLock
from tests.recipes.fake_host import fork
from tests.recipes.fake_run import finish
from tests.recipes.fork import Fork

NAMES = ["stage1_off", "stage2_uniform", *(f"without_expert_{e}" for e in range(4))]


@pytest.fixture
def run(
    toy_yaml: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[dict[str, str]]]:
    """A finished run of the stand-in host, and what every later host process is told."""
    code, _, err = finish(toy_yaml(method="strlora"), FAKE_STEP_SECONDS="0")
    assert code == 0, err
    told: list[dict[str, str]] = []

    def start(command: Command, log: Path, output: object) -> Fork:
        adapter = command.arguments[command.arguments.index("--adapters") + 1]
        told.append({**command.environment, "adapters": adapter})
        return fork(command, log)

    monkeypatch.setattr(host_process, "start_process", start)
    return tmp_path / "run", told


def test_every_switch_once(run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, told = run
    before = (folder / "matrix.csv").read_bytes()
    assert ablate.main([str(folder)]) == 0
    asked = list(dict.fromkeys(command["STRLORA_ABLATION"] for command in told))
    assert asked == NAMES
    assert {command["adapters"] for command in told} == {str(folder / "chunks/002/adapter")}
    found = json.loads((folder / "ablation.json").read_text("utf-8"))
    assert (found["chunk"], [a["name"] for a in found["ablations"]]) == (2, NAMES)
    assert set(found["intact"]["tasks"]) == {"VQAv2", "Fin"}
    assert all(a["cost"] == pytest.approx(found["intact"]["score"] - a["score"], abs=2e-6)
               for a in found["ablations"])  # fmt: skip
    assert (folder / "matrix.csv").read_bytes() == before, "the run's own scores must stay"
    assert "What each part is worth" in (folder / "report.html").read_text("utf-8")

    # What is there is not evaluated again; what is missing is.
    (folder / "ablation" / "stage2_uniform" / "scores.json").unlink()
    told.clear()
    assert ablate.main([str(folder)]) == 0
    assert {command["STRLORA_ABLATION"] for command in told} == {"stage2_uniform"}


def ablation(folder: Path) -> dict[str, Any]:
    """ablation.json: names, and the questions of each of its tasks."""
    found = json.loads((folder / "ablation.json").read_text("utf-8"))
    questions = {task: entry["n"] for task, entry in found["intact"]["tasks"].items()}
    return {"names": [entry["name"] for entry in found["ablations"]], "questions": questions}


def test_other_questions_are_asked_anew_and_not_compared(run) -> None:
    folder, told = run
    assert ablate.main([str(folder), "eval.tasks=[Fin]", "eval.limit=2", "--only", *NAMES[:2]]) == 0
    assert ablation(folder) == {"names": NAMES[:2], "questions": {"Fin": 2}}
    told.clear()
    assert ablate.main([str(folder), "--only", NAMES[0]]) == 0
    assert ablation(folder) == {"names": NAMES[:1], "questions": {"VQAv2": 4, "Fin": 4}}
    assert ablate.main([str(folder)]) == 0
    assert [command["STRLORA_ABLATION"] for command in told] == NAMES, "each once"
    assert ablation(folder) == {"names": NAMES, "questions": {"VQAv2": 4, "Fin": 4}}


def test_answers_of_a_killed_ablation_of_an_earlier_chunk_are_not_taken(run) -> None:
    folder, _ = run
    side = folder / "ablation" / NAMES[0]
    assert ablate.main([str(folder), "--only", NAMES[0]]) == 0
    lines = [
        json.loads(line)
        for task in ("VQAv2", "Fin")
        for line in (side / "predictions" / f"{task}.jsonl").read_text("utf-8").splitlines()
    ]
    assert {line["prediction"] for line in lines} != {"of chunk 1"}
    # As one leaves it that was killed after three answers while chunk 1 was the newest.
    prompts = [json.loads(line) for line in (side / "test_prompts.jsonl").read_text().splitlines()]
    left = [{**prompt, "response": "of chunk 1"} for prompt in prompts[:3]]
    (side / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
    (side / "scores.json").unlink()
    (side / "asked.json").write_text((side / "asked.json").read_text().replace(": 2,", ": 1,", 1))
    assert ablate.main([str(folder), "--only", NAMES[0]]) == 0
    answers = [
        json.loads(line)["prediction"]
        for task in ("VQAv2", "Fin")
        for line in (side / "predictions" / f"{task}.jsonl").read_text("utf-8").splitlines()
    ]
    assert answers == [line["prediction"] for line in lines]


def test_tasks_that_the_chunk_was_not_asked_are_named(run, capsys) -> None:
    folder, told = run
    (folder / "chunks/002/predictions/Fin.jsonl").unlink()
    assert ablate.main([str(folder), "eval.tasks=[Fin]"]) == 1
    assert "no answers of Fin" in capsys.readouterr().err
    assert told == []


def test_refusals(run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, told = run
    assert ablate.main([str(folder), "--only", "stage3_off"]) == 1
    assert (
        "expected some of stage1_off, stage2_uniform, without_expert_0" in capsys.readouterr().err
    )
    assert ablate.main([str(tmp_path / "nowhere")]) == 1
    assert "not a run folder" in capsys.readouterr().err
    with RunLock(folder / "run.lock"):
        assert ablate.main([str(folder), "--only", "stage1_off"]) == 1
    assert "is being worked on" in capsys.readouterr().err
    recipe = folder / "recipe.yaml"
    on_cpu = recipe.read_text("utf-8")
    assert "cpu: true" in on_cpu
    recipe.write_text(on_cpu.replace("cpu: true", "cpu: false"), "utf-8")
    assert ablate.main([str(folder)]) == 1
    assert "GPUs: launcher.nproc asks for 1, here are 0" in capsys.readouterr().err
    recipe.write_text(on_cpu, "utf-8")
    recipe.write_text(recipe.read_text("utf-8").replace("method: strlora", "method: lora"), "utf-8")
    assert ablate.main([str(folder)]) == 1
    assert "has no router" in capsys.readouterr().err
    assert told == []

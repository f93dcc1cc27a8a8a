"""The loop over a stream, with a stand-in host: killed anywhere, it ends the same."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import REPO
from recipes.processes.run_lock import RunLock, RunLocked, read_holder
from recipes.run_folder.state import load_state
from tests.recipes.fake_run import finish
from tests.recipes.toy import recipe_values, write_recipe, write_stream

SEEDS = [0]
if os.environ.get("FULL_FAULTS") == "1":  # make faults
    SEEDS = list(range(10))


def start(recipe: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the orchestrator as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.recipes.fake_run", str(recipe), *overrides],
        cwd=REPO,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_and_end(recipe: Path, **environment: str) -> tuple[int, str, str]:
    """The same to its end; `finish` spares the start of a program."""
    process = start(recipe, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def result(run: Path) -> dict[str, str]:
    """What must not depend on where the run was killed."""
    kept = ["matrix.csv", "chunks/001/train_metrics.jsonl", "chunks/002/train_metrics.jsonl"]
    kept += [f"chunks/00{i}/adapter/adapter_model.safetensors" for i in (1, 2)]
    kept += [
        f"chunks/00{i}/predictions/{task}.jsonl" for i in (0, 1, 2) for task in ("Fin", "VQAv2")
    ]
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in kept}


@pytest.fixture
def recipe(toy_yaml: Callable[..., Path]) -> Path:
    return toy_yaml()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_whole_run_leaves_what_is_promised(recipe: Path, run_dir: Path) -> None:
    code, out, err = start_and_end(recipe, FAKE_REPORT="1")
    assert code == 0, err
    assert "accuracy" in (run_dir / "report.html").read_text(encoding="utf-8").lower()
    state = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))
    assert (state["done"], state["finished"]) == (2, True)
    assert [chunk["index"] for chunk in state["chunks"]] == [0, 1, 2]
    assert all(chunk["steps"] == 3 for chunk in state["chunks"][1:])
    assert all(chunk["train_memory_gib"] > 0 for chunk in state["chunks"][1:])
    with (run_dir / "matrix.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["chunk"], row["task"], row["n"]) for row in rows] == [
        (str(chunk), task, "4") for chunk in range(3) for task in ("VQAv2", "Fin")
    ]
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    for key in (
        "chunk_seeds",
        "environment",
        "git",
        "versions",
        "recipe",
        "data",
        "model",
        "seed",
        "processes",
        "global_batch",
    ):
        assert key in manifest
    for cost, chunk in zip(manifest["chunks"], state["chunks"], strict=True):
        seconds = round(chunk["train_seconds"] + chunk["eval_seconds"], 1)
        assert (cost["chunk"], cost["wall_seconds"]) == (chunk["index"], seconds)
        assert cost["wall_seconds"] > 0
    for name in ("report.html", "recipe.yaml", "chunks/001/train.log", "chunks/002/scores.json"):
        assert (run_dir / name).is_file(), name
    assert not (run_dir / "chunks" / "001" / "host").exists()
    assert not (run_dir / "chunks" / "001" / "answers.jsonl").exists()
    assert "chunk 2/2 trained: 3 steps" in out
    assert "finished: 2 chunks" in out


def test_answers_that_the_host_lost_are_told(recipe: Path, run_dir: Path) -> None:
    code, out, err = finish(recipe, "data.chunks=1", FAKE_LOST_ANSWERS="3")
    assert code == 0, err
    told = "warning: the host left 3 of 8 questions without an answer"
    assert out.count(told) == 2, "the base model's and chunk 1's"
    scores = json.loads((run_dir / "chunks" / "001" / "scores.json").read_text(encoding="utf-8"))
    assert sum(task["failed"] for task in scores["tasks"].values()) == 3


def test_a_finished_run_says_so_quickly(recipe: Path, run_dir: Path) -> None:
    finish(recipe)
    before = result(run_dir)
    before_times = os.times()
    code, out, _ = start_and_end(recipe)
    after = os.times()
    assert code == 0
    # Processor time, not wall time: a busy machine must not fail the test.
    spent = after.children_user - before_times.children_user
    assert spent + after.children_system - before_times.children_system < 5
    assert "is finished" in out
    assert result(run_dir) == before


def kill_at_random_moments(recipe: Path, times: int, draw: random.Random) -> None:
    """Starts the run again and again; every time it is killed, or asked to stop, at some moment."""
    for _ in range(times):
        process = start(recipe, FAKE_STEP_SECONDS="0.05")
        try:
            process.wait(timeout=draw.uniform(0.8, 3.5))
        except subprocess.TimeoutExpired:
            process.send_signal(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        process.communicate()
        if process.returncode == 0:
            break


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_moments_it_ends_the_same(
    recipe: Path, run_dir: Path, tmp_path: Path, seed: int
) -> None:
    code, _, err = finish(recipe)
    assert code == 0, err
    expected = result(run_dir)
    run_dir.rename(tmp_path / "undisturbed")
    kill_at_random_moments(recipe, 6, random.Random(seed))
    code, _, err = finish(recipe)
    assert code == 0, err
    assert result(run_dir) == expected


def test_killed_inside_a_chunk_it_resumes_from_the_newest_checkpoint(
    recipe: Path, run_dir: Path
) -> None:
    process = start(recipe, FAKE_STEP_SECONDS="0.4")
    wait_for(run_dir / "chunks" / "002" / "host" / "checkpoint-1" / "trainer_state.json")
    process.kill()
    process.communicate()
    code, out, err = finish(recipe)
    assert code == 0, err
    assert "continuing after chunk 1" in out
    assert "resuming at step" in out
    log = (run_dir / "chunks" / "002" / "train.log").read_text(encoding="utf-8")
    assert "--resume_from_checkpoint" in log
    assert "chunk 1/2 training" not in out


def test_killed_inside_an_evaluation_only_the_rest_is_asked(
    recipe: Path, run_dir: Path, tmp_path: Path
) -> None:
    code, _, err = finish(recipe)
    assert code == 0, err
    expected = result(run_dir)
    run_dir.rename(tmp_path / "undisturbed")
    answers = run_dir / "chunks" / "000" / "answers.jsonl"
    process = start(recipe, FAKE_STEP_SECONDS="8")  # an answer a second
    wait_for(answers)
    while answers.read_bytes().count(b"\n") < 2:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    answered = answers.read_bytes().count(b"\n")
    assert 2 <= answered < 8
    with answers.open("a", encoding="utf-8") as file:
        file.write('{"response": "re')  # a line that was being written
    code, out, err = finish(recipe)
    assert code == 0, err
    assert f"continuing after {answered} of 8 answers" in out
    assert result(run_dir) == expected

    # Killed after the last answer of chunk 2: nothing is asked again.
    chunk = run_dir / "chunks" / "002"
    files = [chunk / "predictions" / f"{task}.jsonl" for task in ("VQAv2", "Fin")]
    rows = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
    with (chunk / "answers.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            turns = [{"role": "user", "content": f"<image>{row['prompt']}"}]
            line = {"response": row["prediction"], "messages": turns, "images": row["images"]}
            file.write(json.dumps(line | {"finish_reason": "stop"}) + "\n")
    shutil.rmtree(chunk / "predictions")
    path = run_dir / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["chunks"][2]["evaluated"] = False
    path.write_text(json.dumps({**state, "done": 1, "finished": False}), encoding="utf-8")
    log = (chunk / "eval.log").read_bytes()
    code, out, err = finish(recipe)
    assert code == 0, err
    assert "continuing after 8 of 8 answers" in out
    assert (chunk / "eval.log").read_bytes() == log
    assert result(run_dir) == expected


def child_of(lock: Path) -> int:
    """The host process that an orchestrator has started, once it has noted it."""
    deadline = time.monotonic() + 60
    while not (child := read_holder(lock).get("child")):
        assert time.monotonic() < deadline  # the child may be faster than the note
        time.sleep(0.01)
    return child


def test_a_killed_orchestrator_takes_its_trainer_along(recipe: Path, run_dir: Path) -> None:
    process = start(recipe, FAKE_STEP_SECONDS="2")
    wait_for(run_dir / "chunks" / "001" / "host")
    child = child_of(run_dir / "run.lock")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_with_a_message(recipe: Path, run_dir: Path, number: signal.Signals) -> None:
    process = start(recipe, FAKE_STEP_SECONDS="1")
    wait_for(run_dir / "chunks" / "001" / "host")
    time.sleep(0.2)  # the record counts tenths of a second
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the same command continues" in err
    (record,) = [each for each in load_state(run_dir / "state.json").chunks if each.index == 1]
    assert not record.trained
    assert record.train_seconds > 0  # counts for the chunk's cost, whoever ends it


def test_a_failing_chunk_shows_the_cause_and_the_log(recipe: Path, run_dir: Path) -> None:
    code, _, err = finish(recipe, FAKE_FAIL_AT="2")
    assert code == 1
    assert "training chunk 1 ended with exit code 1" in err
    assert "ValueError: the loss is not a number" in err
    assert "Traceback" not in err
    assert str(run_dir / "chunks" / "001" / "train.log") in err
    code, out, _ = finish(recipe)
    assert code == 0
    assert "resuming at step 1 of 3" in out


def test_a_host_that_stops_early_is_no_success(recipe: Path) -> None:
    code, _, err = finish(recipe, FAKE_STOP_AT="2")
    assert code == 1
    assert "stopped after 2 of 3 steps without an error" in err
    code, _, err = finish(recipe, "run_dir=" + str(recipe.parent / "other"), FAKE_STOP_AT="0")
    assert code == 1
    assert "left no complete checkpoint" in err


def test_a_changed_recipe_is_refused_naming_the_keys(recipe: Path, run_dir: Path) -> None:
    finish(recipe)
    code, _, err = finish(recipe, "schedule.later.learning_rate=5e-4", "seed=3")
    assert code == 1
    assert "schedule.later.learning_rate: 0.001 in the run, 0.0005 now" in err
    assert "seed: 0 in the run, 3 now" in err
    assert "run_dir=" in err
    code, _, _ = finish(recipe, "eval.batch_size=2", "schedule.save_steps=7")
    assert code == 0


def test_changed_data_are_refused(recipe: Path, run_dir: Path, stream: Path) -> None:
    finish(recipe, FAKE_FAIL_AT="2")
    file = stream / "chunks" / "001.jsonl"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("red", "blue"), encoding="utf-8")
    code, _, err = finish(recipe)
    assert code == 1
    assert "001.jsonl was changed after the stream was made" in err
    file.write_text(text, encoding="utf-8")
    manifest = stream / "stream.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    code, _, err = finish(recipe)
    assert code == 1
    assert "stream.json has sha256" in err


def test_a_changed_base_model_is_refused(recipe: Path, model: Path) -> None:
    finish(recipe, FAKE_FAIL_AT="2")
    config = model / "config.json"  # as many bytes as before
    config.write_text(config.read_text("utf-8").replace("8", "9"), encoding="utf-8")
    code, _, err = finish(recipe)
    assert code == 1
    assert "the base model" in err
    assert "config.json" in err


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_altered_adapter_is_refused(recipe: Path, run_dir: Path, name: str) -> None:
    process = start(recipe, FAKE_STEP_SECONDS="0.4")
    wait_for(run_dir / "chunks" / "002" / "host")
    process.kill()
    process.communicate()
    file = run_dir / "chunks" / "001" / "adapter" / name
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    code, _, err = finish(recipe)
    assert code == 1
    assert f"{name} was changed after the chunk was recorded" in err


def test_a_damaged_state_file_is_named(recipe: Path, run_dir: Path) -> None:
    finish(recipe)
    (run_dir / "state.json").write_text("{", encoding="utf-8")
    code, _, err = finish(recipe)
    assert code == 1
    assert "state.json is damaged" in err


def test_a_folder_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, _, err = finish(recipe, f"run_dir={tmp_path / 'file' / 'run'}")
    assert code == 1
    assert "Traceback" not in err
    assert "Not a directory" in err


def test_two_orchestrators_on_one_run(recipe: Path, run_dir: Path) -> None:
    with RunLock(run_dir / "run.lock"):
        code, _, err = finish(recipe)
        assert code == 1
        assert f"is being worked on by process {os.getpid()}" in err
        with pytest.raises(RunLocked), RunLock(run_dir / "run.lock"):
            pass
    code, _, _ = finish(recipe)
    assert code == 0


def test_missing_things_are_told_before_anything_starts(
    recipe: Path, run_dir: Path, model: Path, stream: Path
) -> None:
    (model / "config.json").unlink()
    (stream / "stream.json").unlink()
    code, _, err = finish(recipe)
    assert code == 1
    assert "model:" in err
    assert "data:" in err
    assert not (run_dir / "manifest.json").exists()


def test_evaluation_every_second_chunk(tmp_path: Path, model: Path) -> None:
    stream = write_stream(tmp_path / "long", chunks=5, samples=4)
    values = recipe_values(stream, tmp_path / "run", model)
    values["data"]["chunks"] = 5
    values["eval"] |= {"every": 2, "tasks": ["Fin"], "limit": 3}
    code, _, err = finish(write_recipe(tmp_path / "five.yaml", values))
    assert code == 0, err
    rows = (tmp_path / "run" / "matrix.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["0", "2", "4", "5"]
    assert {tuple(row.split(",")[1::2]) for row in rows} == {("Fin", "3")}


def wait_for(path: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_killed_between_the_last_scores_and_the_count(recipe: Path, run_dir: Path) -> None:
    finish(recipe)
    path = run_dir / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, "done": 1, "finished": False}), encoding="utf-8")
    file = run_dir / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**manifest, "chunks": manifest["chunks"][:1]}), encoding="utf-8")
    code, _, err = finish(recipe)
    assert code == 0, err
    assert json.loads(path.read_text(encoding="utf-8")) == state
    assert json.loads(file.read_text(encoding="utf-8"))["chunks"] == manifest["chunks"]

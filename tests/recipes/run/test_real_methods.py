"""Every method through the real host: three chunks, undisturbed and killed once, end the same.

For each file of recipes/methods/ the same recipe runs twice, at the same time: once to its end,
once until orchestrator and trainer get SIGKILL inside a chunk, and then on by the same command.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from data_prep.files import read_json
from recipes.config.loading import load_recipe
from recipes.config.method import method_names
from recipes.processes.run_lock import read_holder
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from strlora_tuner.saved import WEIGHTS
from tests.faults.real import BASE, needs_host, parameters_of, result_of, rows_of
from tests.faults.test_kills import Kill
from tests.recipes.forked import ForkedRun
from tests.recipes.real_host import full_methods
from tests.recipes.toy import SCORERS, recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]
CHUNKS, STEPS, QUESTIONS = 3, 5, 4
FULL = os.environ.get("FULL_METHODS") == "1"
PATIENCE = 1800.0  # seconds that the moment may take to come on a busy machine
# Methods that CI kills as well: of one kind each in what they carry from chunk to chunk. The others
# run to their end alone; `make methods` (FULL_METHODS=1) kills all.
KILLED = ("branchlora", "er", "ewc", "mr_lora", "olora", "strlora")
# Methods whose evaluation says of which chunk a question took router, adapter or LoRA.
ROUTED_BY_CHUNK = ("branchlora", "hide_llava", "mr_lora")
# Another method at other settings of the schedule, or on fewer layers; `make methods` runs them.
ALIKE = ("lora_attention", "lora_fifth", "lora_tenth", "strlora_ewc")
# What makes the small stream ask something of a method, over its own defaults.
SMALL: dict[str, dict[str, Any]] = {
    "er": {"replay": {"memory": 7, "share": 0.5}},
    "er_equal": {"replay": {"memory": 7, "share": 0.5}},
    "mr_lora": {"pool": {"samples": 4, "epochs": 2, "fallback": "newest"}},
}


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods") / "stream"
    return write_stream(folder, chunks=CHUNKS, samples=4 * STEPS, tests=QUESTIONS)


@pytest.mark.parametrize("method", [m for m in method_names() if FULL or m not in ALIKE])
def test_a_method_runs_the_stream_and_goes_on_after_a_kill(
    method: str, stream: Path, tmp_path: Path
) -> None:
    path = make_recipe(method, stream, tmp_path)
    recipe, whole = load_recipe(str(path)), run_twice(path, tmp_path)
    assert all(learned(whole, chunk) for chunk in recipe.trained_chunks)
    different = {parameters_of(whole, chunk) for chunk in recipe.trained_chunks}
    assert len(different) == len(recipe.trained_chunks)
    assert whole.routing(CHUNKS).is_file() == recipe.routed
    assert whole.router_scores(CHUNKS).is_file() == (method in ROUTED_BY_CHUNK)
    if method == "er_equal":  # what plain LoRA takes over as many samples
        steps = [record.steps for record in load_state(whole.state).chunks if record.trained]
        assert steps == [STEPS] * CHUNKS
    if recipe.routed:
        groups = read_json(whole.routing(CHUNKS))["groups"]
        assert [(group["name"], group["rows"]) for group in groups] == [
            (task, QUESTIONS) for task in SCORERS
        ]


@full_methods
@pytest.mark.parametrize("method", ["er", "ewc", "lwf", "mr_lora"])
def test_two_processes_train_what_one_trains_and_go_on_after_a_kill(
    method: str, stream: Path, tmp_path: Path
) -> None:
    path = make_recipe(method, stream, tmp_path, processes=2)
    whole, single = run_twice(path, tmp_path), RunLayout(tmp_path / "single")
    words = ["launcher.nproc=1", "schedule.per_device_batch=4"]
    process = start(path, single.root, *words)
    assert process.wait() == 0, process.text()
    for chunk in range(1, CHUNKS + 1):
        one, two = (losses(layout.train_metrics(chunk)) for layout in (single, whole))
        assert two == pytest.approx(one, rel=2e-2, abs=1e-2), chunk


def run_twice(path: Path, folder: Path) -> RunLayout:
    """Runs a recipe undisturbed and killed, to the same end; returns the undisturbed run."""
    undisturbed = start(path, folder / "whole")
    if load_recipe(str(path)).method not in KILLED and not FULL:
        assert undisturbed.wait() == 0, undisturbed.text()
        return RunLayout(folder / "whole")
    run, moment = killed(path, folder)
    again = start(path, run)
    for process in (again, undisturbed):
        assert process.wait() == 0, f"{moment}: {process.text()}"
    whole, gone_on = RunLayout(folder / "whole"), RunLayout(run)
    assert result_of(gone_on) == result_of(whole), moment
    assert carried_of(gone_on) == carried_of(whole), moment
    stops = (0, CHUNKS)
    assert rows_of(whole) == [(str(c), task, str(QUESTIONS)) for c in stops for task in SCORERS]
    return whole


def make_recipe(method: str, stream: Path, folder: Path, processes: int = 1) -> Path:
    values = recipe_values(stream, folder / "run", BASE, method=method)
    values["data"]["chunks"] = CHUNKS
    # With dropout, so that a lost random state is seen; two processes draw other numbers than one.
    values["tuner"] |= {"dropout": 0.05 if processes == 1 else 0.0}
    values["schedule"] |= {"save_steps": 2, "per_device_batch": 4 // processes}
    values["eval"] |= {"every": CHUNKS, "batch_size": 2}
    values["launcher"] |= {"resident": processes == 1, "nproc": processes}
    return write_recipe(folder / f"{method}.yaml", values | SMALL.get(method, {}))


def start(recipe: Path, run: Path, *overrides: str) -> ForkedRun:
    return ForkedRun([str(recipe), f"run_dir={run}", *overrides], run.with_suffix(".log"))


def killed(path: Path, folder: Path) -> tuple[Path, str]:
    """A run that got SIGKILL at a moment drawn by the method's name; and which moment."""
    recipe = load_recipe(str(path))
    draw = random.Random(recipe.method)
    later = [chunk for chunk in recipe.trained_chunks if chunk > 1]
    # Step 1 comes before the first checkpoint, step 3 after it.
    chunk, step = draw.choice(later or [0]), draw.choice([1, 3, 3])
    kill = Kill("training" if later else "evaluating", chunk, "trainer", signal.SIGKILL)
    for attempt in range(5):
        run = folder / f"killed-{attempt}"
        process, layout = start(path, run), RunLayout(run)
        strike(kill, step, process, layout)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.text()
        if code and not is_over(kill, layout):
            return run, f"{kill} at step {step}"
        # else the machine was too busy to see the moment in time
    raise AssertionError(f"{kill} was missed every time")


def strike(kill: Kill, step: int, process: ForkedRun, layout: RunLayout) -> None:
    """Waits for the moment, or the run's end, and kills orchestrator and trainer."""
    deadline = time.monotonic() + PATIENCE
    while not kill.has_come(layout, step) and process.poll() is None:
        assert time.monotonic() < deadline, f"{kill} did not come: {process.text()}"
        time.sleep(0.0005)
    victims = [process.pid, read_holder(layout.lock).get("child")]
    if process.poll() is None:
        for pid in filter(None, victims):
            with suppress(ProcessLookupError):  # the trainer dies with the orchestrator
                os.kill(pid, kill.number)


def is_over(kill: Kill, layout: RunLayout) -> bool:
    """Whether what was to be interrupted had ended."""
    done = layout.adapter if kill.phase == "training" else layout.predictions
    return done(kill.chunk).is_dir()


def carried_of(layout: RunLayout) -> list[dict[str, Any]]:
    """What state.json says of each chunk, but for time, memory and energy.

    PEFT writes the set of LoRA's target modules in the order of their hashes: new in each process.
    """
    chunks = [asdict(record) for record in load_state(layout.state).chunks]
    for chunk in chunks:
        for kind in ("adapter_sha256", "router_sha256"):
            files = chunk[kind].items()
            chunk[kind] = {k: v for k, v in files if not k.endswith("adapter_config.json")}
    words = ("seconds", "gib", "joules")
    return [{k: v for k, v in c.items() if not k.endswith(words)} for c in chunks]


def learned(layout: RunLayout, chunk: int) -> bool:
    """Whether a chunk's adapter does anything: B starts at zero."""
    weights = load_file(layout.adapter(chunk) / WEIGHTS)
    return any(v.any() for k, v in weights.items() if re.search(r"(\.|lora_)B(\.|$)", k))


def losses(metrics: Path) -> list[float]:
    """The loss of every step."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return [float(json.loads(line)["loss"]) for line in lines]

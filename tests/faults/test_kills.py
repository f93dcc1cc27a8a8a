"""The real host, killed at seeded moments: every chunk ends bit for bit as in the undisturbed run.

In CI one stream gets four kills; `make faults` (FULL_FAULTS=1) adds 16 more to four other streams.
Starts take turns with and without `launcher.resident`, which must change nothing either.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from recipes.processes.process_tree import start_time
from recipes.processes.run_lock import read_holder
from recipes.run_folder.checkpoints import newest_checkpoint
from recipes.run_folder.layout import RunLayout
from tests.faults.real import BASE, needs_host, result_of, training_processes
from tests.recipes.forked import ForkedRun
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]
FULL = os.environ.get("FULL_FAULTS") == "1"
CHUNKS, STEPS = 3, 8
PATIENCE = 1800.0  # seconds that one moment may take to come on a busy machine


class Kill:
    """One moment of a run and who is killed there."""

    def __init__(self, phase: str, chunk: int, target: str, number: signal.Signals) -> None:
        self.phase, self.chunk, self.target, self.number = phase, chunk, target, number

    def __repr__(self) -> str:
        return f"{self.number.name}-{self.target}-{self.phase}-{self.chunk}"

    def has_come(self, layout: RunLayout, step: int) -> bool:
        """Whether the run is in the moment or, where nobody saw it pass, beyond it.

        `step` says how far into it, and is after the checkpoint from which this start goes on.
        """
        host, chunk = layout.host(self.chunk), layout.chunk(self.chunk)
        if self.phase == "training":  # with a trainer: else the lines are of the start before
            has_trained = lines_of(host / "logging.jsonl") >= step
            return (has_trained and bool(trainer_of(layout))) or recorded(layout, self.chunk)
        if self.phase == "saving":  # the host writes trainer_state.json last
            whole = {c: (c / "trainer_state.json").exists() for c in host.glob("checkpoint-*")}
            late = whole.get(host / f"checkpoint-{STEPS}", False)
            return late or not all(whole.values()) or recorded(layout, self.chunk)
        if self.phase == "between":
            return chunk.is_dir() and any(p.name.endswith("adapter") for p in chunk.iterdir())
        if self.phase == "evaluating":
            return lines_of(chunk / "answers.jsonl") >= 1 or (chunk / "scores.json").exists()
        assert self.phase == "state"
        return any(layout.root.glob(".state.json.*")) or recorded(layout, self.chunk)


def lines_of(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def recorded(layout: RunLayout, chunk: int) -> bool:
    """Whether state.json says that the chunk was trained."""
    try:
        state = json.loads(layout.state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return any(c["trained"] for c in state["chunks"] if c["index"] == chunk)


def make_recipe(folder: Path, processes: int) -> Path:
    """A stream of three chunks of eight steps, every chunk evaluated."""
    stream = write_stream(folder / "stream", chunks=CHUNKS, samples=4 * STEPS, tests=6)
    values = recipe_values(stream, folder / "run", BASE, method="strlora")
    values["data"]["chunks"] = CHUNKS
    values["tuner"] |= {"dropout": 0.05}  # so that a lost random state is seen
    values["model"] |= {"aligner": "multi_modal_projector"}
    values["schedule"] |= {"save_steps": 2, "per_device_batch": 4 // processes}
    values["eval"] |= {"batch_size": 2}
    # Two resident ranks under a fork abort; test_real_resident.py kills them under a program.
    values["launcher"] |= {"nproc": processes, "resident": processes == 1}
    return write_recipe(folder / "kills.yaml", values)


def start(recipe: Path, run: Path, *overrides: str) -> ForkedRun:
    return ForkedRun([str(recipe), f"run_dir={run}", *overrides])


def to_the_end(recipe: Path, run: Path, *overrides: str) -> str:
    """Runs to the end and returns what was printed."""
    process = start(recipe, run, *overrides)
    assert process.wait(3600) == 0, process.text()
    return process.text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Any]]:
    """(recipe, result) of a run that nothing disturbs, with one process or two."""
    known: dict[int, tuple[Path, Any]] = {}

    def get(processes: int) -> tuple[Path, Any]:
        if processes not in known:
            folder = tmp_path_factory.mktemp(f"undisturbed-{processes}")
            recipe = make_recipe(folder, processes)
            to_the_end(recipe, folder / "run")
            known[processes] = recipe, result_of(RunLayout(folder / "run"))
        return known[processes]

    return get


def strike(kill: Kill, process: ForkedRun, layout: RunLayout, draw: Any) -> bool:
    """Waits for the moment and for somebody to kill in it; False when the run ended before."""
    saved = newest_checkpoint(layout.host(kill.chunk))
    step = max(draw.randint(1, STEPS - 2), saved.step + 1 if saved else 0)
    wait = draw.choice([0.0, draw.uniform(0, 0.05), draw.uniform(0, 0.5)])
    deadline = time.monotonic() + PATIENCE
    while not kill.has_come(layout, step):
        assert time.monotonic() < deadline, f"{kill} did not come"
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    time.sleep(wait)
    while process.poll() is None:
        for pid in victims(kill.target, process, layout):
            with suppress(ProcessLookupError):
                os.kill(pid, kill.number)
                return True
        time.sleep(0.0005)
    return False


def victims(target: str, process: ForkedRun, layout: RunLayout) -> list[int]:
    """Process ids of the target: orchestrator, trainer (whatever runs for it), or rank 1."""
    if target == "orchestrator":
        return [process.pid]
    if target == "rank":
        return [pid for pid, rank in training_processes(layout.root).items() if rank == "1"]
    return trainer_of(layout)


def trainer_of(layout: RunLayout) -> list[int]:
    """The host process that the lock names, if it lives."""
    child = read_holder(layout.lock).get("child")
    return [child] if child and start_time(child) is not None else []


def walk(recipe: Path, run: Path, kills: list[Kill], seed: int, resident: bool = True) -> None:
    """Runs with all kills, one after the other, each of which must strike; then to the end."""
    draw, layout = random.Random(seed), RunLayout(run)
    turns = itertools.cycle(["true", "false", "true"] if resident else ["false"])
    for kill in kills:
        # A rank is found by the environment that torchrun starts it with.
        turn = "false" if kill.target == "rank" else next(turns)
        process = start(recipe, run, f"launcher.resident={turn}")
        struck = strike(kill, process, layout, draw)
        process.wait()
        out = process.text()
        print(f"{kill}: {out}")  # shown when the test fails
        assert struck, f"{kill} came after the run's end"
        assert "Traceback" not in out, out
    to_the_end(recipe, run)


KILL, TERM = signal.SIGKILL, signal.SIGTERM
CI = [
    Kill("saving", 1, "orchestrator", KILL),
    Kill("training", 2, "trainer", KILL),
    Kill("evaluating", 2, "orchestrator", TERM),
    Kill("state", 3, "orchestrator", KILL),
]
ONE = [
    [
        Kill("training", 1, "orchestrator", KILL),
        Kill("evaluating", 1, "trainer", KILL),
        Kill("saving", 2, "trainer", TERM),
        Kill("between", 3, "orchestrator", KILL),
    ],
    [
        Kill("evaluating", 0, "orchestrator", KILL),
        Kill("saving", 1, "trainer", KILL),
        Kill("training", 2, "orchestrator", TERM),
        Kill("state", 2, "orchestrator", KILL),
    ],
    [
        Kill("state", 1, "orchestrator", TERM),
        Kill("training", 2, "trainer", TERM),
        Kill("between", 2, "orchestrator", TERM),
        Kill("evaluating", 3, "trainer", TERM),
    ],
]
TWO = [
    Kill("training", 1, "rank", KILL),
    Kill("saving", 2, "orchestrator", KILL),
    Kill("training", 2, "rank", TERM),
    Kill("saving", 3, "rank", KILL),
]


def test_four_kills(undisturbed, tmp_path: Path) -> None:
    recipe, expected = undisturbed(1)
    walk(recipe, tmp_path / "run", CI, 0)
    layout = RunLayout(tmp_path / "run")
    assert result_of(layout) == expected
    adapters = {expected[f"adapter {chunk:03d}"] for chunk in range(1, CHUNKS + 1)}
    assert len(adapters) == CHUNKS, "a chunk that trained nothing"
    routing = json.loads(layout.routing(CHUNKS).read_text(encoding="utf-8"))
    assert routing["num_experts"] == 4
    assert [(group["name"], group["rows"]) for group in routing["groups"]] == [
        ("VQAv2", 6),
        ("Fin", 6),
    ]
    assert layout.report.is_file()


@pytest.mark.skipif(not FULL, reason="set FULL_FAULTS=1 (make faults)")
@pytest.mark.parametrize("seed", range(len(ONE)))
def test_kills_of_one_process(undisturbed, tmp_path: Path, seed: int) -> None:
    recipe, expected = undisturbed(1)
    walk(recipe, tmp_path / "run", ONE[seed], seed)
    assert result_of(RunLayout(tmp_path / "run")) == expected


@pytest.mark.skipif(not FULL, reason="set FULL_FAULTS=1 (make faults)")
def test_kills_of_one_of_two_ranks(undisturbed, tmp_path: Path) -> None:
    recipe, expected = undisturbed(2)
    walk(recipe, tmp_path / "run", TWO, 3, resident=False)
    assert result_of(RunLayout(tmp_path / "run")) == expected

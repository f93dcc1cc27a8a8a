"""The resident worker with two processes: the same adapters as torchrun's, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes.config.loading import load_recipe
from recipes.processes.host_process import HostProcess
from recipes.processes.process_tree import start_time
from recipes.processes.resident.worker import Worker
from recipes.processes.run_lock import read_holder
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import train_command
from recipes.run_folder.checkpoints import newest_checkpoint
from recipes.run_folder.layout import RunLayout
from strlora_tuner.saved import WEIGHTS
from tests.recipes.real_host import (
    BASE,
    Program,
    full_methods,
    needs_host,
    sha256,
    undisturbed,
)
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]
STEPS = 30


def two_processes(folder: Path, steps: int, **launcher: Any) -> Path:
    """A recipe of two chunks on two processes; no checkpoint between its start and its end."""
    stream = write_stream(folder / "stream", chunks=2, samples=4 * steps)
    values = recipe_values(stream, folder / "run", BASE, method="strlora")
    values["tuner"] |= {"dropout": 0.05}  # each rank draws its own
    values["schedule"] |= {"save_steps": 100, "per_device_batch": 2}
    values["eval"] |= {"every": 2, "limit": 2}
    values["launcher"] |= {"nproc": 2, "resident": True, **launcher}
    return write_recipe(folder / "toy.yaml", values)


def by_torchrun(path: Path, other: RunLayout, chunk: int, log: Path) -> str:
    """Trains a chunk as without the worker; sha256 of its adapter."""
    recipe = load_recipe(str(path))
    command = train_command(recipe, other, open_recipe_stream(recipe).chunk_file(chunk), chunk)
    reference = undisturbed(command, other.host(chunk), log)
    assert "torch.distributed.run" in log.read_text(encoding="utf-8")
    other.adapter(chunk).symlink_to(reference.path)
    return sha256(reference.path / WEIGHTS)


def ranks_of(layout: RunLayout) -> list[int]:
    """Process ids of the ranks of the job that runs, in their order."""
    leader = read_holder(layout.lock)["child"]
    return [int(pid) for pid in Path(f"/proc/{leader}/task/{leader}/children").read_text().split()]


def wait_for_steps(process: Program, host: Path, steps: int) -> None:
    while not (host / "logging.jsonl").exists():
        assert process.poll() is None, process.text()
        time.sleep(0.01)
    while (host / "logging.jsonl").read_bytes().count(b"\n") < steps:
        assert process.poll() is None
        time.sleep(0.01)


def test_two_ranks_leave_the_adapters_of_torchrun(tmp_path: Path) -> None:
    path, layout = two_processes(tmp_path, STEPS), RunLayout(tmp_path / "run")

    process = Program(path)
    wait_for_steps(process, layout.host(1), 2)
    first, second = ranks_of(layout)
    os.kill(second, signal.SIGKILL)
    assert process.wait(900) == 1
    assert f"local rank 1 (process {second}) was ended by SIGKILL" in process.text()
    assert start_time(first) is None

    process = Program(path)  # from the chunk's beginning: nothing was saved
    wait_for_steps(process, layout.host(2), 2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(900) == 128 + signal.SIGUSR1, process.text()
    saved = newest_checkpoint(layout.host(2))
    assert saved is not None
    assert 0 < saved.step < saved.max_steps == STEPS
    process = Program(path)
    assert process.wait(900) == 0, process.text()
    assert f"resuming at step {saved.step} of {STEPS}" in process.text()

    other = RunLayout(tmp_path / "other")
    for chunk in (1, 2):
        other.chunk(chunk).mkdir(parents=True)
        reference = by_torchrun(path, other, chunk, tmp_path / f"{chunk}.log")
        assert sha256(layout.adapter(chunk) / WEIGHTS) == reference
    log = layout.train_log(2).read_text(encoding="utf-8")
    assert "torch.distributed.run" not in log
    assert len(answers(layout, ("VQAv2", "Fin"))) == 4


def answers(layout: RunLayout, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """All predictions after chunk 2, which two ranks shared."""
    files = [layout.predictions(2) / f"{task}.jsonl" for task in tasks]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


@full_methods
def test_zero2_leaves_the_adapter_of_torchrun(tmp_path: Path) -> None:
    path, layout = two_processes(tmp_path, 6, deepspeed="zero2"), RunLayout(tmp_path / "run")
    recipe = load_recipe(str(path))
    command = train_command(recipe, layout, open_recipe_stream(recipe).chunk_file(1), 1)
    found = []
    worker = Worker(tmp_path / "worker.log")
    try:
        for turn in ("loaded by the job", "already in memory"):
            log = tmp_path / f"{turn}.log"
            assert HostProcess(command, log, worker).wait(lambda: None) == 0, log.read_text()
            last = newest_checkpoint(layout.host(1))
            assert last is not None
            found.append(sha256(last.path / WEIGHTS))
    finally:
        worker.close()
    other = RunLayout(tmp_path / "other")
    other.chunk(1).mkdir(parents=True)
    assert found == 2 * [by_torchrun(path, other, 1, tmp_path / "torchrun.log")]

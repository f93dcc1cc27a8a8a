"""What tests of the orchestrator with the real host share: a kill in a chunk, and its reference."""

from __future__ import annotations

import atexit
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

from recipes import REPO
from recipes.config.swift_arguments import installed_version
from recipes.processes.command import Command
from recipes.processes.host_process import HostProcess
from recipes.processes.resident.worker import Worker
from recipes.run_folder.checkpoints import Checkpoint, newest_checkpoint
from tests.recipes.forked import ForkedRun

BASE = REPO / "assets" / "tiny_base"
needs_host = pytest.mark.skipif(
    installed_version() is None or not BASE.is_dir(), reason="needs ms-swift and assets/tiny_base"
)
full_methods = pytest.mark.skipif(
    os.environ.get("FULL_METHODS") != "1", reason="minutes more; FULL_METHODS=1 runs it"
)


def orchestrator(recipe: Path, *options: str) -> ForkedRun:
    return ForkedRun(["run", str(recipe), *options])


class Program:
    """The same as a program: ranks of a resident worker abort where the worker is itself a fork."""

    def __init__(self, recipe: Path) -> None:
        self._log = recipe.with_suffix(".log")
        words = [sys.executable, "-m", "recipes.cli", "run", str(recipe)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(words, cwd=REPO, stdout=log, stderr=log)
        self.poll, self.wait = self._process.poll, self._process.wait
        self.send_signal = self._process.send_signal

    def text(self) -> str:
        return self._log.read_text(encoding="utf-8")


@cache
def host_worker() -> Worker:
    """The resident worker of these tests: a host that it starts need not import anything."""
    worker = Worker(Path(tempfile.mkdtemp()) / "worker.log")
    atexit.register(worker.close)
    return worker


def wait_while(process: ForkedRun, path: Path) -> None:
    """Waits until `path` exists; fails, with what it printed, when the process ends before."""
    while not path.exists():
        assert process.poll() is None, process.text()
        time.sleep(0.02)


def killed_inside(recipe: Path, host: Path, step: int) -> None:
    """Starts a run and kills it with SIGKILL once `host` holds the checkpoint of `step`."""
    process = orchestrator(recipe)
    wait_while(process, host / f"checkpoint-{step}" / "trainer_state.json")
    process.kill()
    interrupted = newest_checkpoint(host)
    assert interrupted is not None
    assert not interrupted.finished


def gone_on(recipe: Path, *options: str) -> str:
    """Gives the same command again; returns what it printed."""
    process = orchestrator(recipe, *options)
    assert process.wait() == 0, process.text()
    return process.text()


def undisturbed(
    command: Command, host: Path, log: Path, worker: Worker | None = None
) -> Checkpoint:
    """Runs a training command to its end; returns the last checkpoint in its folder `host`."""
    assert HostProcess(command, log, worker).wait(lambda: None) == 0, log.read_text("utf-8")[-4000:]
    reference = newest_checkpoint(host)
    assert reference is not None
    return reference


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Orchestrators that import nothing: forks of a process that has the host in memory.

A run spends most of its seconds on imports, its own and those of the resident worker. Here a fork
server imports once; an orchestrator is a fork of it and its worker a fork of that. All are
processes of their own, with their own signals, files and deaths; what is left out is the start of
a program alone, which the other tests of the real host have.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.processes.process_tree import die_with
from recipes.processes.resident.worker import Worker
from tests.recipes.fork import Fork, open_as, write_to

_CONTEXT: Any = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.recipes.preload"])


class ForkedRun:
    """`python -m recipes.cli WORDS` as a fork, with what the tests use of Popen."""

    def __init__(self, words: list[str], output: Path | None = None) -> None:
        """`output` takes what it prints; else a file of its own."""
        self._output = output or Path(tempfile.mkstemp(".log")[1])
        self._process = _CONTEXT.Process(target=_orchestrate, args=(words, self._output))
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float = 1800) -> int:
        """Returns the exit code, negative for a signal."""
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"still running after {seconds} s: {self.text()}"
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()

    def text(self) -> str:
        return self._output.read_text(encoding="utf-8")


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a process of its own, with the host in memory."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()  # EOFError: it failed, and has printed why
    finally:
        process.join()


def _answer(results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    results.send(function(*arguments))


def _orchestrate(words: list[str], output: Path) -> None:
    """The life of an orchestrator, which ends with the tests."""
    from recipes.cli import main

    die_with(os.getppid())
    write_to(output)
    Worker._launch = lambda self, environment: _ForkedWorker(environment, self._log)
    sys.argv = ["recipes.cli", *words]
    sys.exit(main(words))


class _ForkedWorker(Fork):
    """`python -m recipes.processes.resident.server` as a fork, with what Worker uses of Popen."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        (requests, stdin), (stdout, replies) = os.pipe(), os.pipe()

        def life() -> None:
            os.environ.clear()
            os.environ.update(environment)
            open_as(log.open("ab"), 2)
            os.dup2(requests, 0)
            os.dup2(replies, 1)
            _serve()

        super().__init__(life)
        os.close(requests)
        os.close(replies)
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")


def _serve() -> None:
    """The life of a worker: nothing but the standard streams is left open, as after exec."""
    os.closerange(3, 1024)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
    runpy.run_module("recipes.processes.resident.server", run_name="__main__")

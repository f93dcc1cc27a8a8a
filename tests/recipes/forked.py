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
import sys
from pathlib import Path
from typing import IO, Any

from recipes.processes.process_tree import die_with_parent
from recipes.processes.resident.worker import Worker

_CONTEXT: Any = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.recipes.preload"])


class ForkedRun:
    """`python -m recipes.cli WORDS` as a fork, with what the tests use of Popen."""

    def __init__(self, words: list[str], output: Path) -> None:
        self._output = output
        self._process = _CONTEXT.Process(target=_orchestrate, args=(words, output))
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

    def text(self) -> str:
        return self._output.read_text(encoding="utf-8")


def _orchestrate(words: list[str], output: Path) -> None:
    """The life of an orchestrator, which ends with the tests."""
    from recipes.cli import main

    die_with_parent(os.getppid())()
    _open_as(output.open("ab"), 1, 2)
    Worker._launch = lambda self, environment: _ForkedWorker(environment, self._log)
    sys.argv = ["recipes.cli", *words]
    sys.exit(main(words))


class _ForkedWorker:
    """`python -m recipes.processes.resident.server` as a fork, with what Worker uses of Popen."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        (requests, stdin), (stdout, replies) = os.pipe(), os.pipe()
        parent = os.getpid()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            die_with_parent(parent)()
            os.environ.clear()
            os.environ.update(environment)
            _open_as(log.open("ab"), 2)
            os.dup2(requests, 0)
            os.dup2(replies, 1)
            _serve()
        os.close(requests)
        os.close(replies)
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")

    def poll(self) -> int | None:
        return self._end(os.WNOHANG)

    def wait(self) -> int | None:
        return self._end(0)

    def _end(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def _serve() -> None:
    """The life of a worker: nothing but the standard streams is left open, as after exec."""
    code = 1
    try:
        os.closerange(3, 1024)
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        runpy.run_module("recipes.processes.resident.server", run_name="__main__")
        code = 0
    finally:
        os._exit(code)


def _open_as(file: IO[bytes], *targets: int) -> None:
    with file:
        for target in targets:
            os.dup2(file.fileno(), target)

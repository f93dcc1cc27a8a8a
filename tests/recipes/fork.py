"""A child process that need not import anything: a fork, with what our code uses of Popen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from recipes.processes.process_tree import die_with


class Fork:
    """A fork of this process, which ends with it; signals do there what they do in a program."""

    def __init__(self, life: Callable[[], None]) -> None:
        """Runs `life` in a session of its own; its end is exit code 0, an exception 1."""
        parent = os.getpid()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.setsid()
                die_with(parent)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        signal.signal(number, signal.SIG_DFL)
                life()
                code = 0
            except BaseException:  # noqa: BLE001 - the end of a process, reported as Python would
                with suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        return self._end(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + timeout if timeout is not None else None
        while (code := self._end(os.WNOHANG if deadline else 0)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(["fork"], timeout or 0)
            time.sleep(0.005)
        return code

    def _end(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def open_as(file: IO[bytes], *targets: int) -> None:
    """Makes a file the streams of these numbers."""
    with file:
        for target in targets:
            os.dup2(file.fileno(), target)


def write_to(log: Path) -> None:
    """Makes the end of a file what this process prints into."""
    open_as(log.open("ab"), 1, 2)

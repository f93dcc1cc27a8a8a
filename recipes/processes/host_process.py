"""Host processes: started so that they die with us, watched, stopped as a whole group."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from recipes.processes.command import Command, child_environment
from recipes.processes.process_tree import (
    LOG_TAG,
    ask_to_save,
    die_with,
    kill_group,
    kill_tagged,
    peak_memory,
)
from recipes.processes.resident.worker import Worker

POLL_SECONDS = 0.2
SAVE_PATIENCE = 240.0  # seconds that a trainer gets to end its step and write a checkpoint
END_PATIENCE = 10.0
# Leaders of the process groups that run now, with their logs: what a second signal kills.
_RUNNING: dict[int, Path] = {}


class HostProcess:
    """A running `swift sft` or `swift infer` with all its children, in a session of its own."""

    def __init__(self, command: Command, log: Path, worker: Worker | None = None) -> None:
        """Starts `command`, by the resident worker if there is one; output is appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"\n$ {' '.join(command.argv())}\n".encode())
            file.flush()  # before the child writes: it shares the file, not our buffer
            self._process = (
                worker.start(command, log) if worker else start_process(command, log, file)
            )
        self.pid = self._process.pid
        self.peak_gib = 0.0
        self._command, self._log = command, log
        _RUNNING[self.pid] = log

    def wait(self, tick: Callable[[], None] = lambda: None) -> int:
        """Calls `tick` five times a second until the process ends; returns its exit code.

        `peak_gib` is then the most resident memory of the process and its children together.

        Whatever `tick` raises (a signal's exception above all) stops the whole group first: a
        trainer saves, anything else just ends.
        """
        try:
            while self._process.poll() is None:
                self.peak_gib = max(self.peak_gib, peak_memory(self.pid))
                tick()
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.save_and_stop()
            raise
        finally:
            _RUNNING.pop(self.pid, None)
        return self._process.returncode

    def save_and_stop(self) -> None:
        """Lets a trainer save and end (the host's graceful_exit callback); ends the rest.

        SIGUSR1 goes to those processes that have a handler for it, which the trainer has once it is
        training; torchrun and a process that is still starting would only die of it.
        """
        if self._command.kind == "sft" and ask_to_save(self.pid, self._command.remote):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=SAVE_PATIENCE)
        self.stop()

    def stop(self) -> None:
        """Asks the group to end, and kills what is left after ten seconds."""
        kill_group(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=END_PATIENCE)
        # Also where the leader has ended: one of its children may ignore SIGTERM.
        kill_group(self.pid, signal.SIGKILL)
        self._process.wait()
        kill_tagged(self._log)


def start_process(command: Command, log: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a command, tagged with its log and killed with this process; writes to `output`."""
    return subprocess.Popen(
        command.argv(),
        env=child_environment(command) | {LOG_TAG: str(log.resolve())},
        stdin=subprocess.DEVNULL,  # a question that the host asks fails, and does not wait
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us alone, who let the trainer save first
        preexec_fn=partial(die_with, os.getpid()),
    )


def kill_running() -> None:
    """Kills every host process at once; for a second signal."""
    # A copy: a signal handler calls this, perhaps in the middle of a change.
    for leader, log in list(_RUNNING.items()):
        kill_group(leader, signal.SIGKILL)
        kill_tagged(log)

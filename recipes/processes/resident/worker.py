"""The orchestrator's side of the resident worker (`launcher.resident: true`)."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import cast

from recipes.processes.command import Command, child_environment
from recipes.processes.process_tree import LOG_TAG, die_with, kill_group, start_time
from recipes.processes.resident.messages import Reply, Request

_LAST_REPLY = 10.0  # seconds that the worker gets to report how a vanished job ended


class Worker:
    """Starts the resident host (server.py) when a job first needs it, and again should it die."""

    def __init__(self, log: Path) -> None:
        """`log` takes what the worker itself says; a job writes into its own."""
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def start(self, command: Command, log: Path) -> Job:
        """Starts a host command as a fork of the worker.

        Raises:
            OSError: the worker cannot be started, or ended before the job began.
        """
        environment = child_environment(command)
        # One that died, most likely killed by the kernel, is started anew.
        if self._process is None or self._process.poll() is not None:
            self._process = self._launch(environment)
            self._unread = b""
        request: Request = {
            "kind": command.kind,
            "arguments": list(command.arguments),
            "environment": environment | {LOG_TAG: str(log.resolve())},
            "log": str(log.resolve()),
            "processes": command.processes if "NPROC_PER_NODE" in command.environment else None,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while (reply := self.reply(1.0)) is None:  # it imports the host; one that died says {}
            pass
        if "pid" not in reply:
            raise OSError(f"the resident worker ended before the job began, see {self._log}")
        return Job(self, int(reply["pid"]))

    def _launch(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "recipes.processes.resident.server"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )

    def reply(self, seconds: float) -> Reply | None:
        """The worker's next line; None when none came in time, {} when the worker ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        source = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = max(0.0, deadline - time.monotonic())
            # Raw reads and a buffer of our own: select cannot see what a buffered reader has read
            # ahead.
            if not select.select([source], [], [], left)[0]:
                return None
            block = os.read(source, 4096)
            if not block:
                return {}
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return cast(Reply, json.loads(line))

    def close(self) -> None:
        """Ends the worker; a job that still runs is killed."""
        if self._process is not None:
            kill_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


class Job:
    """A job of the worker, with the part of Popen's interface that HostProcess uses."""

    def __init__(self, worker: Worker, pid: int) -> None:
        self.pid, self.returncode = pid, 0
        self._worker, self._over = worker, False

    def poll(self) -> int | None:
        """The exit code, or None while the job runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once the job ends; subprocess.TimeoutExpired when it does not in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self._look(0.2)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(["resident job"], timeout or 0.0)
        return code

    def _look(self, seconds: float) -> int | None:
        if not self._over:
            reply = self._worker.reply(seconds)
            if reply is None and start_time(self.pid) is None:
                reply = self._worker.reply(_LAST_REPLY) or {}
            if reply is None:
                return None
            self._over = True
            self.returncode = int(reply["code"]) if "code" in reply else self._lost()
        return self.returncode

    def _lost(self) -> int:
        """The worker died, most likely killed by the kernel, and took the job along."""
        kill_group(self.pid, signal.SIGKILL)
        self._worker.close()
        return -signal.SIGKILL

"""One orchestrator a run: a lock that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TypedDict, cast

from recipes import UserError
from recipes.processes.process_tree import kill_group, kill_tagged, start_time

HEARTBEAT_SECONDS = 10.0


class RunLocked(UserError):
    """Another orchestrator works on this run; the message says which."""


class Holder(TypedDict, total=False):
    """The text of run.lock: process, machine and boot of the orchestrator, and its host process."""

    pid: int
    start: float | None
    machine: str
    boot: str
    child: int
    child_start: float | None


class RunLock:
    """run.lock: who works on the run (pid, start time, machine) and which host process it started.

    The kernel's lock on the open file decides; its text is for people, and for ending a trainer
    that outlived its orchestrator.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_beat = 0.0

    def __enter__(self) -> RunLock:
        """Takes the lock.

        Raises:
            RunLocked: a living orchestrator holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not "w": where another holds the lock, its text must survive our try.
        self._file: IO[str] = self.path.open("a+", encoding="utf-8")
        try:
            _take(self._file)
        except BlockingIOError as error:
            holder = read_holder(self.path)
            self._file.close()
            raise RunLocked(
                f"{self.path.parent} is being worked on by process {holder.get('pid', '?')} on "
                f"{holder.get('machine', '?')}; wait for it, look with the command status, or "
                "stop it first"
            ) from error
        _end_leftover(read_holder(self.path))
        kill_tagged(self.path.parent)
        self._write({})
        return self

    def __exit__(self, *_: object) -> None:
        # The file stays: were it removed, one process could lock the old file, which it has open,
        # and another a new one.
        self._file.seek(0)
        self._file.truncate()
        self._file.close()

    def note_child(self, pid: int | None) -> None:
        """Records the host process that runs now, or that none does."""
        child: Holder = {} if pid is None else {"child": pid, "child_start": start_time(pid)}
        self._write(child)

    def heartbeat(self) -> None:
        """Touches the file, so that `status` on another machine sees that we live."""
        if time.monotonic() - self._last_beat >= HEARTBEAT_SECONDS:
            self._last_beat = time.monotonic()
            with suppress(OSError):  # a full disk must not end a training over a heartbeat
                os.utime(self.path)

    def _write(self, child: Holder) -> None:
        me: Holder = {
            "pid": os.getpid(),
            "start": start_time(os.getpid()),
            "machine": socket.gethostname(),
            "boot": boot_id(),
        }
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({**me, **child}))
        self._file.flush()


def _take(file: IO[str]) -> None:
    """Takes the kernel's lock; BlockingIOError where another process keeps it."""
    # `is_held` of a status holds a shared lock for a moment: that is no orchestrator.
    for wait in (0.05, 0.2, None):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
            time.sleep(wait)


def read_holder(path: Path) -> Holder:
    """The lock file's text; empty when there is none or it was cut off while being written."""
    try:
        return cast(Holder, json.loads(path.read_text(encoding="utf-8") or "{}"))
    except (OSError, ValueError):
        return {}


def is_held(path: Path) -> bool:
    """Whether a living orchestrator holds the lock."""
    try:
        with path.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def is_here(holder: Holder) -> bool:
    """Whether the lock was written on this machine since it started."""
    return holder.get("machine") == socket.gethostname() and holder.get("boot") == boot_id()


def _end_leftover(holder: Holder) -> None:
    """Kills the host processes of a dead orchestrator: two trainers must never share a folder.

    A group lives on under its leader's number even when the leader is gone. When another process
    has that number now (another start time, another boot), the group is not ours.
    """
    child = holder.get("child")
    # Process numbers mean nothing on another machine, nor after a restart of this one.
    if child and is_here(holder) and start_time(child) in (None, holder.get("child_start")):
        kill_group(child, signal.SIGKILL)


def boot_id() -> str:
    """Tells one boot of this machine from another; empty where the kernel does not say."""
    try:
        # Not the time of the boot: it is counted from the clock and moves with it.
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""

"""Processes of this machine: who descends from whom, signals to all of them, memory, start."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

KILL_SECONDS = 10.0
# In the environment of a host process and all that it starts: its log file.
LOG_TAG = "RECIPES_HOST_LOG"
_PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec a child should do next to nothing.
_LIBC = ctypes.CDLL(None) if os.name == "posix" else None


def die_with(parent: int) -> None:
    """Has the kernel kill this process when `parent`, which forked it, ends (on Linux).

    For a fork, or a child before it becomes a program: `preexec_fn=partial(die_with, os.getpid())`.
    """
    if _LIBC is not None and hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between: the signal would never come
        os._exit(1)


def kill_group(leader: int, number: int) -> None:
    """Sends a signal to every process of a group; a group that is gone already is fine."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def kill_tagged(where: Path) -> None:
    """Kills the processes of this machine whose log is `where`, or lies in it, and waits for that.

    torchrun starts its workers in sessions of their own: ending a group does not reach them, and
    they would write into the run for a while beside those that take over.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while (left := _tagged(where.resolve())) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _tagged(where: Path) -> list[psutil.Process]:
    tagged = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            # What a process was started with: a fork of the resident worker sets the tag too late
            # to be seen here, but stays in its leader's group (resident/ranks.py).
            log = process.environ().get(LOG_TAG)
            if log and Path(log).is_relative_to(where) and process.pid != os.getpid():
                tagged.append(process)
    return tagged


def ask_to_save(leader: int, remote: bool = False) -> bool:
    """Sends SIGUSR1 to the processes of a tree that handle it; returns whether there was one.

    The trainers of several ranks agree at the end of each step on whether one of them was asked, so
    that all save at the same step, also those that had no handler yet.

    Args:
        remote: the leader is srun, which passes the signal on to its tasks on all nodes.
    """
    asked = [leader] if remote else [pid for pid in process_tree(leader) if _handles_usr1(pid)]
    for pid in asked:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    return bool(asked)


def process_tree(leader: int) -> set[int]:
    """Process ids of a process group and of all that its members started.

    torchrun's workers have sessions of their own, which the group alone would miss.
    """
    tree: set[int] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == leader:
                tree |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    return tree


def _handles_usr1(pid: int) -> bool:
    # Not in psutil. A process without a handler would die of the signal.
    caught = _status(pid, r"^SigCgt:\s+([0-9a-f]+)")
    return bool(caught and int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)


def _status(pid: int, pattern: str) -> str | None:
    """What a pattern's group matches in the kernel's status of a process; None once it is gone."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        match = re.search(pattern, text, re.MULTILINE)
        return match.group(1) if match else None
    return None


def peak_memory(pid: int) -> float:
    """The peak resident memory of a process and its descendants in GiB; 0 once it is gone."""
    with suppress(psutil.Error):
        children = psutil.Process(pid).children(recursive=True)
        # The kernel's own high-water mark of each process, which psutil lacks: a peak between two
        # looks counts.
        peaks = [_status(each, r"^VmHWM:\s+(\d+) kB") for each in (pid, *(c.pid for c in children))]
        return sum(int(peak) / 2**20 for peak in peaks if peak)
    return 0.0


def start_time(pid: int) -> float | None:
    """When a process started, which identifies a reused pid; None when it is dead or a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None

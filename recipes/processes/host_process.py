"""Host processes: started so that they die with us, watched, stopped as a whole group."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from recipes.processes.machine import gpu_count
from recipes.processes.resident.ranks import die_with
from recipes.run.commands import Command

if TYPE_CHECKING:
    from recipes.processes.resident.worker import Job, Worker

POLL_SECONDS = 0.2
SAVE_PATIENCE = 240.0  # seconds that a trainer gets to end its step and write a checkpoint
END_PATIENCE = 10.0
# Leaders of the process groups that run now, with their logs: what a second signal kills.
_RUNNING: dict[int, Path] = {}
# In the environment of a host process and all that it starts: its log file.
LOG_MARK = "RECIPES_HOST_LOG"


class HostProcess:
    """A running `swift sft` or `swift infer` with all its children, in a session of its own."""

    def __init__(self, command: Command, log: Path, worker: Worker | None = None) -> None:
        """Starts `command`, by the resident worker if there is one; output is appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"\n$ {' '.join(command.argv())}\n".encode())
            file.flush()
            self._process: subprocess.Popen[bytes] | Job = (
                worker.start(command, log) if worker else _start(command, log, file)
            )
        self.pid = self._process.pid
        self.peak_gib = 0.0
        self._command, self._log = command, log
        _RUNNING[self.pid] = log

    def wait(self, tick: Callable[[], None]) -> int:
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
        kill_group(self.pid, signal.SIGKILL)
        self._process.wait()
        kill_marked(self._log)


def _start(command: Command, log: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.argv(),
        env=child_environment(command) | {LOG_MARK: str(log.resolve())},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent(os.getpid()),
    )


def kill_running() -> None:
    """Kills every host process at once; for a second signal."""
    for leader, log in list(_RUNNING.items()):
        kill_group(leader, signal.SIGKILL)
        kill_marked(log)


def kill_marked(where: Path) -> None:
    """Kills the processes of this machine whose log is `where`, or lies in it, and waits for that.

    torchrun starts its workers in sessions of their own: ending a group does not reach them, and
    they would write into the run for a while beside those that take over.
    """
    deadline = time.monotonic() + END_PATIENCE
    while (left := _marked(where.resolve())) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _marked(where: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            for variable in path.read_bytes().split(b"\0"):
                name, _, log = variable.decode(errors="replace").partition("=")
                if name == LOG_MARK and Path(log).is_relative_to(where):
                    found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def ask_to_save(leader: int, remote: bool = False) -> bool:
    """Sends SIGUSR1 to the processes of a family that handle it; returns whether there was one.

    The trainers of several ranks agree at the end of each step on whether one of them was asked, so
    that all save at the same step, also those that had no handler yet.

    Args:
        remote: the leader is srun, which passes the signal on to its tasks on all nodes.
    """
    asked = [leader] if remote else [pid for pid in family(leader) if _handles_usr1(pid)]
    for pid in asked:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    return bool(asked)


def family(leader: int) -> set[int]:
    """Process ids of a process group and of all that its members started.

    torchrun's workers have sessions of their own, which the group alone would miss.
    """
    children: dict[int, list[int]] = {}
    found, new = set[int](), list[int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stat = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            pid, parent, group = int(path.parent.name), int(stat[1]), int(stat[2])
            children.setdefault(parent, []).append(pid)
            if group == leader:
                new.append(pid)
    while new:
        found.update(new)
        new = [child for pid in new for child in children.get(pid, []) if child not in found]
    return found


def _handles_usr1(pid: int) -> bool:
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^SigCgt:\s+([0-9a-f]+)", status, re.MULTILINE)
        return bool(found and int(found.group(1), 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def child_environment(command: Command) -> dict[str, str]:
    """The inherited environment plus the command's; PYTHONPATH is extended, not replaced."""
    environment = {**os.environ, **command.environment}
    inherited = os.environ.get("PYTHONPATH")
    if inherited and "PYTHONPATH" in command.environment:
        ours = command.environment["PYTHONPATH"]
        environment["PYTHONPATH"] = os.pathsep.join([ours, inherited])
    if "CUDA_VISIBLE_DEVICES" not in environment and gpu_count() > command.processes:
        # Seeing more GPUs than it has processes, the host would split the model over them.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(command.processes)))
    if "NPROC_PER_NODE" in command.environment and not command.remote:
        environment.setdefault("MASTER_PORT", str(free_port()))
    return environment


def free_port() -> int:
    """A port that is free now: two runs on a machine must not meet at torchrun's default."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def peak_memory(pid: int) -> float:
    """The peak resident memory of a process and its descendants in GiB; 0 once it is gone."""
    total = 0.0
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        total = int(found.group(1)) / 2**20 if found else 0.0
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(peak_memory(int(child)) for child in children.read_text().split())
    return total


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child does before it becomes a program: the kernel kills it when `parent` ends."""
    return partial(die_with, parent)


def kill_group(leader: int, number: int) -> None:
    """Sends a signal to every process of a group; a group that is gone already is fine."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def start_time(pid: int) -> int | None:
    """The kernel's start time of a process in ticks, which tells a reused pid; None: dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


_ERROR = re.compile(r"^(\[rank\d+\]:\s*)?[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Killed)\b")
# --verbose: all that the process that failed has said, instead of the cause alone.
verbose = False
# torchrun's first words on a process that failed, and its own exceptions after that.
_FAILED_RANK = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
_PROGRESS = re.compile(r"\d%\||^\{'")  # a bar, or a step's metrics, which are kept elsewhere
_FOLLOWS = re.compile("ChildFailedError|SignalException")


def last_error(log: Path, limit: int = 12) -> list[str]:
    """The lines of a log that say why a process failed: the last exception, else its end.

    Where torchrun says that a process was killed, this is the cause, and what others say follows.
    """
    try:
        with log.open("rb") as file:
            file.seek(0 if verbose else max(0, log.stat().st_size - 200_000))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return [f"(the log cannot be read: {error})"]
    _, command, last = text.rpartition("\n$ ")
    text = last.partition("\n")[2] if command else text  # of what was started last
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    if verbose:
        return lines
    first = _FAILED_RANK.search(text)
    if first and int(first.group(1)) < 0:
        number, rank, pid = first.groups()
        return [f"local rank {rank} (process {pid}) {exit_text(int(number))}"]
    for index in range(len(lines) - 1, -1, -1):
        if _ERROR.match(lines[index]) and not _FOLLOWS.search(lines[index]):
            return lines[index : index + limit]
    return [line for line in lines if not _PROGRESS.search(line)][-limit:]


def exit_text(code: int) -> str:
    """An exit code in words; a kill without our doing is most often the kernel's out-of-memory."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code}"

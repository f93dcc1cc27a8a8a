"""One start of the orchestrator on one run folder: what every step of it works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.stream import Stream
from recipes import UserError
from recipes.config.schema import Recipe
from recipes.processes.command import Command
from recipes.processes.host_process import HostProcess
from recipes.processes.log_errors import cause_of, exit_text
from recipes.processes.resident.worker import Worker
from recipes.processes.run_lock import RunLock
from recipes.run.terminal import Progress
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import RunState, save_state


class RunError(UserError):
    """The run stopped; the message says where, why, and what to do."""


@dataclass
class Session:
    """The recipe, its run folder, and what has been done in it.

    Attributes:
        tasks: those that are evaluated.
        worker: the resident worker, if the recipe wants it; None: every host process starts anew.
    """

    recipe: Recipe
    layout: RunLayout
    stream: Stream
    state: RunState
    lock: RunLock
    progress: Progress
    tasks: list[str] = field(init=False)
    worker: Worker | None = field(init=False)

    def __post_init__(self) -> None:
        self.tasks = self.recipe.eval.tasks or self.stream.tasks
        resident = self.recipe.launcher.resident
        self.worker = Worker(self.layout.worker_log) if resident else None

    def save(self) -> None:
        """Write state.json."""
        save_state(self.layout.state, self.state)

    def label(self, index: int) -> str:
        """A chunk for people: "2/5", with its period or label behind it."""
        name = self.stream.chunk_name(index) if index else ""
        return f"{index}/{self.recipe.data.chunks}" + (f" ({name})" if name else "")

    def say(self, text: str) -> None:
        """Print a line that begins with the recipe's name."""
        self.progress.say(f"[{self.recipe.name}] {text}")

    def run_host(self, command: Command, log: Path, tick: Callable[[], None], what: str) -> float:
        """Run a host process to its end; return its peak main memory in GiB.

        Raises:
            RunError: it failed; `what` names its work.
        """
        return run_host(self.lock, command, log, what, tick, self.worker)

    def close(self) -> None:
        """End the resident worker, if there is one."""
        if self.worker is not None:
            self.worker.close()


def run_host(
    lock: RunLock,
    command: Command,
    log: Path,
    what: str,
    tick: Callable[[], None] = lambda: None,
    worker: Worker | None = None,
) -> float:
    """As :meth:`Session.run_host`, for whoever holds a run's lock."""
    process = HostProcess(command, log, worker)
    # In the lock file, so that the next start can end a trainer that outlives us.
    lock.note_child(process.pid)

    def watch() -> None:
        lock.heartbeat()
        tick()

    try:
        code = process.wait(watch)
    finally:
        lock.note_child(None)
    if code:
        raise RunError(failure_text(what, exit_text(code), log))
    return process.peak_gib


def failure_text(what: str, how: str, log: Path) -> str:
    """What went wrong, with the end of the host's log, and what to do."""
    return (
        f"{what} {how}. The log ends with:\n{cause_of(log)}\n"
        f"Whole log: {log}\nFix the cause and give the same command again; it continues from here."
    )

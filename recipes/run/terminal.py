"""What the user sees of a run: one live panel on a terminal, sparse plain lines in a log."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from data_prep.files import complete_lines
from eval.charts.figure import duration

PLAIN_SECONDS = 15.0
LOSSES = 10  # logged steps whose mean is shown: one alone jumps


@dataclass
class Activity:
    """What is being done now, train or evaluate; step counts come from the host's own files.

    `first` is the time and the step that were seen first: one that goes on begins in the middle.
    """

    chunk: int = 0
    task: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    started: float = 0.0
    first: tuple[float, int] | None = None

    def reached(self, step: int, steps: int) -> None:
        """Takes over a count from the host's files."""
        self.step, self.steps = step, steps
        self.first = self.first or (time.monotonic(), step)

    def seconds_left(self, usual: float | None) -> float | None:
        """Expected seconds to its end at its own speed; until that is seen, `usual` in all."""
        now = time.monotonic()
        since, step = self.first or (now, self.step)
        if self.step > step:
            return (self.steps - self.step) * (now - since) / (self.step - step)
        return None if usual is None else max(0.0, usual - (now - self.started))


@dataclass(frozen=True)
class Ahead:
    """What a run has yet to do, the present activity included.

    Attributes:
        trainings, evaluations: how many of them.
        train_seconds, eval_seconds: what one took lately; None where none was finished.
    """

    trainings: int
    evaluations: int
    train_seconds: float | None
    eval_seconds: float | None


class Progress:
    """Reports a run. `chunks` counts the chunks to train; chunk 0 is the base model."""

    def __init__(self, name: str, chunks: int, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.name, self.chunks = name, chunks
        self.activity = Activity()
        self.scores: dict[str, float] = {}
        self.ahead: Callable[[], Ahead] | None = None
        self._last_plain = 0.0
        self._last_text = ""
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with _read_or_not():
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays, above the live panel where there is one."""
        with _read_or_not():
            # A terminal wraps at words; a line of a log stays one line.
            self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def begin(self, chunk: int, task: str, text: str) -> None:
        """Starts an activity and says so in a line."""
        now = time.monotonic()
        self.activity = Activity(chunk, task, started=now)
        self._last_plain = now
        self.say(f"{self._where()} {text}")

    def watch_training(self, metrics: Path) -> Callable[[], None]:
        """Returns the tick that follows the host's logging.jsonl."""

        def tick() -> None:
            if metrics.is_file():
                self._read_metrics(metrics)
            self._show()

        return tick

    def watch_answers(self, answers: Path, total: int) -> Callable[[], None]:
        """Returns the tick that counts the lines of the host's result file, `total` at the end."""
        read = 0

        def tick() -> None:
            nonlocal read
            if answers.is_file() and answers.stat().st_size > read:
                with answers.open("rb") as file:
                    file.seek(read)
                    new = file.read()
                read += len(new)
                self.activity.reached(self.activity.step + new.count(b"\n"), total)
            self._show()

        return tick

    def _read_metrics(self, metrics: Path) -> None:
        losses: list[float] = []
        # From the end: only the newest losses are shown, and rows of other kinds stand between
        # them.
        for line in reversed(complete_lines(metrics)):
            try:
                row = json.loads(line)
                step, steps = str(row["global_step/max_steps"]).split("/")
                loss = float(row["loss"])
            except (ValueError, KeyError):
                continue
            if not losses:
                self.activity.reached(int(step), int(steps))
            losses.append(loss)
            self.activity.loss = sum(losses) / len(losses)
            if len(losses) == LOSSES:
                return

    def _show(self) -> None:
        if self.console.is_terminal:
            self._live.update(self._panel())
            return
        now = time.monotonic()
        text = self._doing()
        if now - self._last_plain >= PLAIN_SECONDS and text != self._last_text:
            self._last_plain, self._last_text = now, text
            self.say(f"{self._where()} {text}{self._left_text()}")

    def _where(self) -> str:
        return f"[{self.name}] chunk {self.activity.chunk}/{self.chunks}"

    def _doing(self) -> str:
        now = self.activity
        if now.task == "evaluate":
            count = f" {now.step}/{now.steps} answers" if now.steps else " (starting)"
            return f"evaluating{count}"
        if not now.steps:
            return "training (starting)"
        loss = "" if now.loss is None else f", loss {now.loss:.4f}"
        return f"training step {now.step}/{now.steps}{loss}"

    def seconds_left(self) -> float | None:
        """Expected seconds to the end of the run; None while nothing tells how long things take."""
        if self.ahead is None:
            return None
        ahead, now = self.ahead(), self.activity
        training = now.task == "train"
        left = now.seconds_left(ahead.train_seconds if training else ahead.eval_seconds)
        if left is None:
            return None
        whole = time.monotonic() - now.started + left
        for count, usual, current in (
            (ahead.trainings, ahead.train_seconds, training),
            (ahead.evaluations, ahead.eval_seconds, not training),
        ):
            one = whole if usual is None and current else usual
            if count > current and one is None:
                return None
            left += max(0, count - current) * (one or 0.0)
        return left

    def _left_text(self) -> str:
        left = self.seconds_left()
        return "" if left is None else f", about {duration(left)} left"

    def _panel(self) -> Group:
        panel = Table.grid(padding=(0, 2))
        spent = duration(time.monotonic() - self.activity.started)
        now = self.activity
        bar = ProgressBar(total=now.steps or None, completed=now.step, width=24)
        panel.add_row(self._where(), bar, self._doing(), f"{spent}{self._left_text()}")
        below = Table.grid(padding=(0, 2))
        if self.scores:
            below.add_row("last scores", score_text(self.scores))
        return Group(panel, below)


@contextmanager
def _read_or_not() -> Iterator[None]:
    """A terminal or a pipe that is gone ends no run: from then on nothing is printed."""
    try:
        yield
    except (OSError, SystemExit):  # rich would end the program when a pipe is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def score_text(scores: Mapping[str, float], before: Mapping[str, float] | None = None) -> str:
    """Scores in percent, task by task, with their mean; `before`: each with its change since."""
    if not scores:
        return "none"
    known = before or {}
    parts = [f"{task} {_score(score, known.get(task))}" for task, score in scores.items()]
    mean, whole = sum(scores.values()) / len(scores), scores.keys() == known.keys()
    last = sum(known.values()) / len(known) if whole else None
    return f"{', '.join(parts)} | mean {_score(mean, last)}"


def _score(score: float, before: float | None) -> str:
    change = "" if before is None else f" ({100 * (score - before):+.1f})"
    return f"{100 * score:.1f}{change.replace('-0.0', '+0.0')}"

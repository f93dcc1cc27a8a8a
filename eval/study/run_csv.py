"""The CSV of one finished run, small enough to commit: columns, reader.

A row is a task's score after a chunk, with what the run was, what it took and where it ran.
`recipes.sweep` writes it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.metrics import SCORE, Array

RUN = ("method", "seed", "stream_seed", "settings", "keeps", "trained", "stored")
ROW = ("chunk", "task", "first", "score", "n", "train_seconds", "eval_seconds")
# Of a task after a chunk, of methods that route; overlap: with the other tasks, in the mean.
# Older CSVs lack some of them.
ROUTING = ("nmi", "kept_sets_changed", "drift", "overlap")
MOST_CHUNKS = 100_000
COLUMNS = (*RUN, *ROW, "git", "machine", *ROUTING)


@dataclass(frozen=True)
class KeptRun:
    """One finished run.

    Attributes:
        settings: what a grid changed, "key=value key=value"; empty: nothing.
        keeps: the past data that the method keeps, in words; empty: none.
        trained: trainable parameters in millions; NaN: not known.
        stored: numbers kept to answer after the last chunk, in millions; NaN: not known.
        values: a[chunk, task], scores of 0 to 1; NaN: not evaluated.
        first: for each task the first chunk that held it; None: none did.
        tests: how many test samples each task has.
        routing: by measure its values, (chunk, task) like `values`; NaN: not recorded.
        seconds: of training and evaluation.
    """

    path: Path
    method: str
    seed: int
    stream_seed: int
    settings: str
    keeps: str
    trained: float
    stored: float
    values: Array
    tasks: list[str]
    first: list[int | None]
    tests: list[int]
    routing: dict[str, Array]
    seconds: float
    git: str
    machine: str

    @property
    def has_no_stream(self) -> bool:
        """Return whether nothing was taught in order: joint training, zero-shot.

        Of such a run only the last scores mean something.
        """
        return all(chunk is None for chunk in self.first)

    @property
    def given_task(self) -> bool:
        """Return whether the method was given the task of each question, which others are not."""
        told = ("tuner.sentence=template", "tuner.sentence=task")
        return self.method == "oracle" or any(word in self.settings for word in told)

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Return the chunks that have scores, without the base model's."""
        return tuple((np.flatnonzero(np.isfinite(self.values[1:]).any(axis=1)) + 1).tolist())

    def score(self, key: str) -> float:
        """Return a score of `eval.metrics` over all tasks; NaN where it is not defined."""
        if self.has_no_stream and key != "last":
            return float("nan")
        return float(SCORE[key].mean(self.values, self.first))


def read_run(path: Path) -> KeptRun:
    """Read the CSV of a run.

    Raises:
        ValueError: the file is no such CSV.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _run(path, list(csv.DictReader(file)))
    except (csv.Error, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected rows of {', '.join(COLUMNS)} ({error!r}). Where the run's folder "
            "still lies, remove the file and give the sweep's command again: it is written anew"
        ) from error


def _run(path: Path, rows: list[dict[str, str]]) -> KeptRun:
    _check(rows)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    values = np.full((1 + max(int(row["chunk"]) for row in rows), len(tasks)), np.nan)
    first: list[int | None] = [None] * len(tasks)
    tests = {row["task"]: int(row["n"]) for row in rows}
    routing = {name: np.full_like(values, np.nan) for name in ROUTING}
    seconds = {}
    for row in rows:
        column = tasks.index(row["task"])
        values[int(row["chunk"]), column] = float(row["score"])
        for name, of_task in routing.items():
            of_task[int(row["chunk"]), column] = _number(row.get(name) or "")
        first[column] = int(row["first"]) if row["first"] else None
        # Every row of a chunk repeats its seconds.
        seconds[row["chunk"]] = float(row["train_seconds"]) + float(row["eval_seconds"])
    for chunk, lacking in enumerate(np.isnan(values)):
        if lacking.any() and not lacking.all():
            raise ValueError(f"chunk {chunk} has no row of {tasks[int(lacking.argmax())]}")
    one = rows[0]
    return KeptRun(
        path=path,
        method=one["method"],
        seed=int(one["seed"]),
        stream_seed=int(one["stream_seed"]),
        settings=one["settings"],
        keeps=one["keeps"],
        trained=_number(one["trained"]),
        stored=_number(one["stored"]),
        values=values,
        tasks=tasks,
        first=first,
        tests=[tests[task] for task in tasks],
        routing=routing,
        seconds=sum(seconds.values()),
        git=one["git"],
        machine=one["machine"],
    )


def _check(rows: Sequence[dict[str, str]]) -> None:
    """Raise ValueError for rows that are of no one run."""
    seen = set()
    for line, row in enumerate(rows, start=2):
        for name in (*RUN, "git", "machine"):
            if row[name] != rows[0][name]:
                raise ValueError(f"line {line}: {name} is {row[name]!r}, before {rows[0][name]!r}")
        chunk, score, n = int(row["chunk"]), float(row["score"]), int(row["n"])
        if not (0 <= chunk <= MOST_CHUNKS and 0 <= score <= 1 and n > 0):
            found = f"chunk {chunk}, score {score:g}, n {n}"
            raise ValueError(f"line {line}: found {found}, expected a score of 0 to 1 over n tests")
        if (chunk, row["task"]) in seen:
            raise ValueError(f"line {line}: chunk {chunk} has two rows of {row['task']}")
        seen.add((chunk, row["task"]))
    if any(row["first"] for row in rows) and not any(chunk for chunk, _ in seen):
        raise ValueError("no chunk but 0, the base model, has scores")
    for column in ("first", "n"):
        told = {(row["task"], row[column]) for row in rows}
        if len(told) > len({task for task, _ in told}):
            raise ValueError(f"{column} of a task is not the same in all rows")


def _number(text: str) -> float:
    return float(text) if text else float("nan")

"""Finished runs as one CSV each, small enough to commit: a sweep does not run them again.

A row is a task's score after a chunk, with what the run was, what it took and where it ran:
the cores, the threads of a process and the variables that change numbers.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.files import write_text
from eval.matrix import load_matrix
from recipes.run_folder.manifest import read_manifest
from recipes.run_folder.state import load_state
from recipes.sweep.cells import Cell, Sweep

COLUMNS: tuple[str, ...] = (
    "method",
    "seed",
    "stream_seed",
    "settings",
    "chunk",
    "task",
    "score",
    "n",
)
COLUMNS += ("train_seconds", "eval_seconds", "git", "machine")


def keep_results(sweep: Sweep) -> None:
    """Writes the CSV of every finished run that has none yet, where the sweep keeps them."""
    for cell in sweep.cells:
        if cell.kept is None or cell.kept.is_file():
            continue
        if load_state(cell.layout.state).finished:
            write_text(cell.kept, _as_csv(cell))


def _as_csv(cell: Cell) -> str:
    manifest, state = read_manifest(cell.layout), load_state(cell.layout.state)
    hardware = manifest["hardware"]
    gpus = hardware["gpus"]
    machine = f"{hardware['cores']} cores {hardware['processor']}"
    machine += f", {len(gpus)} x {gpus[0]}" if isinstance(gpus, list) and gpus else ""
    machine += f", threads {manifest['threads']}"
    machine += "".join(f", {name}={value}" for name, value in manifest["environment"].items())
    whole = "" if not manifest["git"].get("dirty") else "+"
    recipe = cell.recipe
    settings = " ".join(f"{key}={value}" for key, value in cell.settings)
    of_run = [recipe.method, recipe.seed, recipe.data.seed, settings]
    matrix = load_matrix(cell.layout.matrix)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for chunk, task in np.argwhere(matrix.samples > 0):
        record = state.record(int(chunk))
        score, n = f"{matrix.values[chunk, task]:.6f}", int(matrix.samples[chunk, task])
        took = [round(record.train_seconds, 1), round(record.eval_seconds, 1)]
        where = [f"{manifest['git'].get('sha')}{whole}", machine]
        rows.writerow([*of_run, int(chunk), matrix.tasks[task], score, n, *took, *where])
    return text.getvalue()


def read_kept(path: Path) -> tuple[npt.NDArray[np.float64], float]:
    """Returns a[chunk, task] (scores of 0 to 1; NaN: not evaluated) and the seconds of the run.

    Raises:
        ValueError: the file is no such CSV.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        values = np.full((1 + max(int(row["chunk"]) for row in rows), len(tasks)), np.nan)
        seconds = {}
        for row in rows:
            values[int(row["chunk"]), tasks.index(row["task"])] = float(row["score"])
            seconds[row["chunk"]] = float(row["train_seconds"]) + float(row["eval_seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected rows of {', '.join(COLUMNS)} ({error!r})") from error
    return values, sum(seconds.values())

"""Finished runs as one CSV each, small enough to commit: a sweep does not run them again.

`eval.study.run_csv` has the columns. Where it ran: the cores, the threads of a process and the
variables that change numbers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.files import write_text
from data_prep.stream import open_stream
from eval.compare.costs import stored_millions, trainable_millions
from eval.compare.names import kept_data
from eval.matrix import load_matrix
from eval.metrics import mean_over
from eval.routing.diagnosis import drift, kept_changes, overlap_with_others
from eval.routing.record import load_routing
from eval.study.run_csv import COLUMNS, ROUTING
from recipes.config.schema import Recipe
from recipes.run_folder.manifest import read_manifest
from recipes.run_folder.state import load_state
from recipes.sweep.cells import Cell, Sweep


def keep_results(sweep: Sweep) -> None:
    """Writes the CSV of every finished run that has none yet, where the sweep keeps them."""
    for cell in sweep.cells:
        # Never written twice: the file may be committed, and tables be made of it.
        if cell.kept is None or cell.kept.is_file():
            continue
        if load_state(cell.layout.state).finished:
            write_text(cell.kept, _as_csv(cell))


def _as_csv(cell: Cell) -> str:
    manifest, state = read_manifest(cell.layout), load_state(cell.layout.state)
    hardware = manifest["hardware"]
    gpus = hardware["gpus"]
    machine = f"{hardware['cores']} cores {hardware['processor']}"
    # Runs of an earlier version do not name it.
    machine += f" with {widest}" if (widest := hardware.get("instruction_set")) else ""
    machine += f", {len(gpus)} x {gpus[0]}" if isinstance(gpus, list) and gpus else ""
    machine += f", threads {manifest['threads']}"
    machine += "".join(f", {name}={value}" for name, value in manifest["environment"].items())
    whole = "" if not manifest["git"].get("dirty") else "+"
    recipe = cell.recipe
    settings = " ".join(f"{key}={value}" for key, value in cell.told)
    keeps = kept_data(recipe.protocol.name, recipe.model_dump())
    sizes = [_number(size(cell.layout.root)) for size in (trainable_millions, stored_millions)]
    of_run = [recipe.method, recipe.seed, recipe.data.seed, settings, keeps, *sizes]
    first = _first_seen(recipe)
    matrix = load_matrix(cell.layout.matrix)
    routing = _routing(cell, matrix.tasks)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for chunk, task in np.argwhere(matrix.samples > 0):
        record = state.record(int(chunk))
        task_name = matrix.tasks[task]
        score, n = f"{matrix.values[chunk, task]:.6f}", int(matrix.samples[chunk, task])
        took = [round(record.train_seconds, 1), round(record.eval_seconds, 1)]
        where = [f"{manifest['git'].get('sha')}{whole}", machine]
        where += routing.get((int(chunk), task_name), [""] * len(ROUTING))
        of_task = [task_name, first.get(task_name, "")]
        rows.writerow([*of_run, int(chunk), *of_task, score, n, *took, *where])
    return text.getvalue()


def _routing(cell: Cell, tasks: Sequence[str]) -> dict[tuple[int, str], list[str]]:
    """By chunk and task what the columns `ROUTING` hold; nothing where nothing was recorded."""
    paths = {int(path.parent.name): path for path in cell.layout.root.glob("chunks/*/routing.json")}
    course = {chunk: load_routing(path, tasks) for chunk, path in sorted(paths.items())}
    moves = [kept_changes(course, tasks), drift(course, tasks)]
    found = {}
    for row, (chunk, routing) in enumerate(course.items()):
        nmi = float(mean_over(routing.nmi))
        overlaps = overlap_with_others(routing.use).tolist()
        overlap_of = dict(zip(routing.tasks, overlaps, strict=True))
        for column, task in enumerate(tasks):
            values = [nmi, *(float(move[row, column]) for move in moves)]
            values.append(overlap_of.get(task, math.nan))
            found[chunk, task] = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
    return found


def _first_seen(recipe: Recipe) -> Mapping[str, int]:
    """The first chunk that held each task; none where nothing is taught in order."""
    if recipe.protocol.name in ("joint", "zero_shot"):
        return {}
    return open_stream(Path(recipe.data.stream)).first_seen()


def _number(millions: float) -> str:
    return "" if math.isnan(millions) else f"{millions:g}"

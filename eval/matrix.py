"""matrix.csv, the record of a run: columns chunk,task,score,n; chunk 0 is the base model.

Its rows come from the scores.json of each chunk.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data_prep.files import write_text
from eval.run_files import ChunkScores, read_object

COLUMNS = ["chunk", "task", "score", "n"]
Cells = dict[tuple[int, str], tuple[float, int]]


@dataclass(frozen=True)
class Matrix:
    """The matrix a[chunk, task].

    Attributes:
        values: (chunks + 1, tasks), row 0 the base model, NaN = not evaluated.
        tasks: column names.
        samples: (chunks + 1, tasks), test samples behind each value, 0 = not evaluated.
    """

    values: NDArray[np.float64]
    tasks: list[str]
    samples: NDArray[np.int64]


def read_cells(path: Path) -> Cells:
    """Return {(chunk, task): (score, n)} in file order; an absent file has none.

    Raises:
        ValueError: other columns, a row that is no result, or a (chunk, task) twice.
    """
    if not path.is_file():
        return {}
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    if not rows or rows[0] != COLUMNS:
        found = rows[0] if rows else []
        raise ValueError(f"{path}:1: found the columns {found}, expected {COLUMNS}")
    cells: Cells = {}
    for number, row in enumerate(rows[1:], start=2):
        key, value = _parse_row(path, number, row)
        if key in cells:
            raise ValueError(f"{path}:{number}: chunk {key[0]}, task {key[1]!r} occurs twice")
        cells[key] = value
    return cells


def _parse_row(
    path: Path, number: int, row: list[str]
) -> tuple[tuple[int, str], tuple[float, int]]:
    try:
        chunk, task, score, n = int(row[0]), row[1], float(row[2]), int(row[3])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}:{number}: found {row}, expected {','.join(COLUMNS)}") from error
    if chunk < 0 or n < 0 or not (math.isnan(score) or 0.0 <= score <= 1.0):
        raise ValueError(f"{path}:{number}: found {row}, expected chunk >= 0, score 0..1, n >= 0")
    return (chunk, task), (score, n)


def read_scores(path: Path) -> ChunkScores:
    """Return the content of a chunk's scores.json.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it lacks what a report shows of it.
    """
    content = read_object(path)
    tasks, published = content.get("tasks"), content.get("published")
    if not isinstance(tasks, dict) or not isinstance(published, dict):
        raise ValueError(f"{path}: no tasks or no published; evaluate again")
    lacking = [f"tasks.{task}.score" for task, entry in tasks.items()
               if not isinstance(entry, dict) or "score" not in entry]  # fmt: skip
    lacking += [f"published.{key}" for key in ("tasks", "crashes", "mean") if key not in published]
    if lacking:
        raise ValueError(f"{path}: no {', no '.join(lacking)}; evaluate again")
    return cast(ChunkScores, content)


def append_scores(path: Path, chunk: int, scores: ChunkScores) -> None:
    """Write the scores of a chunk into matrix.csv, atomically.

    Doing it again changes nothing, a new evaluation of the chunk replaces its rows; rows stay
    sorted by chunk.

    Args:
        path: the matrix.csv.
        chunk: 0 is the base model.
        scores: the content of `scores.json`.
    """
    cells = {key: value for key, value in read_cells(path).items() if key[0] != chunk}
    for task, entry in scores["tasks"].items():
        score = math.nan if entry["score"] is None else float(entry["score"])
        cells[chunk, task] = (score, int(entry["n"]))
    lines = [",".join(COLUMNS)]
    # By chunk alone: the sort is stable, and a chunk's tasks keep the stream's order.
    for (index, task), (score, n) in sorted(cells.items(), key=lambda cell: cell[0][0]):
        lines.append(f"{index},{task},{score:.6f},{n}")
    write_text(path, "\n".join(lines) + "\n")


def load_matrix(path: Path, tasks: Sequence[str] | None = None) -> Matrix:
    """Return the matrix a[chunk, task].

    Args:
        path: the matrix.csv; an absent one gives a matrix without rows.
        tasks: the columns wanted, in order; None takes those of the file.

    Raises:
        ValueError: the file cannot be read, or holds a task that is not in `tasks`.
    """
    cells = read_cells(path)
    names = list(dict.fromkeys(task for _, task in cells)) if tasks is None else list(tasks)
    unknown = sorted({task for _, task in cells} - set(names))
    if unknown:
        raise ValueError(f"{path}: unknown tasks {unknown}; the stream has {names}")
    rows = 1 + max((chunk for chunk, _ in cells), default=-1)
    values = np.full((rows, len(names)), np.nan)
    samples = np.zeros((rows, len(names)), dtype=np.int64)
    for (chunk, task), (score, n) in cells.items():
        values[chunk, names.index(task)] = score
        samples[chunk, names.index(task)] = n
    return Matrix(values, names, samples)

"""Published numbers: what papers and repositories print, with source, backbone and protocol.

One YAML a benchmark. Nothing in them was run here, and the same method differs from paper to paper:
they are shown as 'published, by source', never as truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
MARKS = {"R": "read in the paper or repository", "S": "from a secondary summary: probable"}
_KEYS = {"source", "read", "backbone", "protocol", "score", "values"}


@dataclass(frozen=True)
class PublishedTable:
    """What one source prints of one score.

    Attributes:
        source: where it stands.
        read: R or S, as in `MARKS`.
        backbone: the base model.
        protocol: how it was trained and measured, as far as known.
        score: key of the score of ours that it is to be compared with (`eval.metrics.SCORE`).
        tasks: names of the tasks; empty where only a mean is known.
        values: by method, in percent: each task, then the mean.
    """

    source: str
    read: str
    backbone: str
    protocol: str
    score: str
    tasks: tuple[str, ...]
    values: dict[str, tuple[float, ...]]


def names() -> list[str]:
    """Return the benchmarks that there are numbers of."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_published(name: str) -> tuple[str, list[PublishedTable]]:
    """Return a benchmark's title and its tables.

    Raises:
        ValueError: there is no such benchmark, or its file is not in the form described here.
    """
    if name not in names():
        raise ValueError(
            f"--published {name}: nothing under this name; there is {', '.join(names())}"
        )
    path = FOLDER / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return str(content["title"]), [_table(path, entry) for entry in content["tables"]]


def _table(path: Path, entry: dict[str, Any]) -> PublishedTable:
    tasks = tuple(map(str, entry.get("tasks", ())))
    if missing := sorted(_KEYS - entry.keys()):
        raise ValueError(f"{path}: a table without {', '.join(missing)}")
    if entry["read"] not in MARKS:
        raise ValueError(f"{path}: read: {entry['read']!r}; expected {' or '.join(MARKS)}")
    values = {str(m): tuple(map(float, row)) for m, row in entry["values"].items()}
    for method, row in values.items():
        if len(row) != len(tasks) + 1:
            raise ValueError(
                f"{path}: {method}: found {len(row)} values, expected {len(tasks)} tasks and a mean"
            )
    return PublishedTable(
        source=str(entry["source"]),
        read=str(entry["read"]),
        backbone=str(entry["backbone"]),
        protocol=str(entry["protocol"]),
        score=str(entry["score"]),
        tasks=tasks,
        values=values,
    )

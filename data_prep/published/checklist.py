"""The image sets that a benchmark needs: where they come from, and which of them are there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from data_prep.published.benchmarks import Task


def missing_folders(root: Path, task: Task) -> list[str]:
    """Return the folders of a task's images that are missing or empty below `root`."""
    return [folder for folder in task.folders if not _entries(root / folder)]


def _entries(folder: Path) -> int:
    """Return how many files and folders a folder holds, 0 where there is none."""
    try:
        with os.scandir(folder) as entries:
            return sum(1 for _ in entries)
    except OSError:
        return 0


def lines(root: Path, tasks: Iterable[Task]) -> Iterator[str]:
    """Yield the checklist, one line a folder, with the site of what is missing."""
    yield f"images below {root}"
    for task in tasks:
        for folder in task.folders:
            held = _entries(root / folder)
            state = "present" if held else "MISSING"
            yield f"  {state}  {task.name:10} {folder}" + (f" ({held} entries)" if held else "")
        needs = f", {task.pictures:,} pictures in all" if task.pictures else ""
        if missing_folders(root, task):
            yield f"           {task.origin}{needs}: {task.site}"


def show(root: Path, tasks: Collection[Task]) -> bool:
    """Print the checklist; return whether every folder is there."""
    print("\n".join(lines(root, tasks)))
    return all_present(root, tasks)


def all_present(root: Path, tasks: Iterable[Task]) -> bool:
    """Return whether every folder is there."""
    return not any(missing_folders(root, task) for task in tasks)

"""The image sets that StrCVIT needs: where they come from, and which of them are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.published.benchmarks import STRCVIT, Task


def missing_folders(root: Path, task: Task) -> list[str]:
    """Return the folders of a task's images that are missing or empty below `root`."""
    return [folder for folder in task.folders if not _holds_something(root / folder)]


def _holds_something(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def lines(root: Path) -> Iterator[str]:
    """Yield the checklist, one line a folder, with the site of what is missing."""
    yield f"images below {root}"
    for task in STRCVIT.values():
        missing = missing_folders(root, task)
        for folder in task.folders:
            state = "MISSING" if folder in missing else "present"
            yield f"  {state}  {task.name:10} {folder}"
        if missing:
            yield f"           {task.origin}: {task.site}"


def all_present(root: Path) -> bool:
    """Return whether every folder is there."""
    return not any(missing_folders(root, task) for task in STRCVIT.values())

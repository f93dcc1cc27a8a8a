"""Test sets of anybody's data: a file for each task, ids that differ, a scorer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.compose.pools import chunk_lines
from data_prep.published.converting import TestSet, converted
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.records import encode
from data_prep.stream import StreamError
from data_prep.stream_writer import PlannedFile, WrittenFile

_TASK_NAME = r"[A-Za-z0-9][A-Za-z0-9 ._()+-]*"


@dataclass(frozen=True)
class TestFile:
    """A test set of its own file. `own_ids`: an id that stands twice is refused."""

    __test__ = False  # not for pytest

    path: Path
    task: str
    scorer: str
    resolver: ImageResolver
    own_ids: bool = True


def parts_of_tests(
    files: dict[str, Path], resolver: ImageResolver, scorers: dict[str, str]
) -> tuple[list[PlannedFile], dict[str, str]]:
    """Return the test sets, and the scorer of each.

    Args:
        files: by task.
        resolver: of the images.
        scorers: by task; "" is for all others.

    Raises:
        StreamError: a task that no file can be named after.
    """
    chosen = {task: scorers.get(task, scorers[""]) for task in files}
    parts = []
    for task, path in files.items():
        check_task_name(task)
        source = TestFile(path, task, chosen[task], resolver)
        parts.append(PlannedFile(f"test/{task}.jsonl", source, task))
    return parts, chosen


def check_task_name(task: str) -> None:
    """Raise StreamError unless a test file can be named after the task."""
    if not re.fullmatch(_TASK_NAME, task):
        raise StreamError(
            f"task {task!r} has a test set, so its name must be fit for a file: letters, digits, "
            "blanks and ._()+- ; rename it in the data"
        )


def lines_of_test(source: TestFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of a test set."""
    special = TestSet(source.task, source.scorer, source.own_ids)
    yield from map(encode, converted(source.path, source.resolver, special, made))


def make(part: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of a test set, or of a chunk that is drawn from pools."""
    if isinstance(part.source, TestFile):
        yield from lines_of_test(part.source, made)
    else:
        yield from chunk_lines(part, made)

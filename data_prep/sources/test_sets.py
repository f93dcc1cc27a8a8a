"""Test sets: a file for each task, gold fields for its scorer, unique ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.sources.boxes import check_gold_box, read_box
from data_prep.sources.converting import Converter, Limit, converted
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.raw_forms import answer_of
from data_prep.sources.records import HostSample, answer_text, encode
from data_prep.stream import TASK_NAME, StreamError
from data_prep.stream_writer import PlannedFile, WrittenFile


class TestSet(Converter):
    """Finishes the samples of one published test set.

    Several gold answers become `references`, ids become text and unique, a box replaces a
    missing answer. `question_id` stays as published.

    Args:
        task: its name. scorer: its `fixed` scorer.
        own_ids: refuse an id that occurs twice; else (published ids repeat) it is made unique.
        placed: returns a raw sample with its columns under the names that are read.
    """

    __test__ = False  # not for pytest

    def __init__(
        self,
        task: str,
        scorer: str,
        own_ids: bool = False,
        placed: Callable[[Any], Any] | None = None,
    ) -> None:
        self.task, self.scorer, self.own_ids, self.placed = task, scorer, own_ids, placed
        self.used: dict[str, int] = {}

    def prepare(self, raw: Any) -> Any:
        """Return the raw sample with an answer as text, where a box is the answer."""
        raw = self.placed(raw) if self.placed else raw
        if not isinstance(raw, dict):
            return raw
        answer, box = raw.get("answer"), raw.get("answer_bbox")
        if answer is None and box:
            return {**raw, "answer": str(box)}
        if self.scorer == "grounding" and isinstance(answer, list) and read_box(answer):
            return {**raw, "answer": str(answer)}  # one box, no list of answers
        return raw

    def finish(self, raw: Any, record: HostSample, number: int) -> HostSample:
        """Return the record as evaluation wants it. Raises DataError for unusable gold."""
        answer = raw.get("answers") if raw.get("answer") is None else raw["answer"]
        if isinstance(answer, list) and (len(answer) > 1 or self.scorer == "caption"):
            record["references"] = [answer_of("answers", text) for text in answer]
        elif self.scorer == "caption":
            record["references"] = [answer_text(record)]
        if "question_id" in raw:
            record["question_id"] = raw["question_id"]
        if isinstance(record.get("answer_bbox"), list):
            record["answer_bbox"] = str(record["answer_bbox"])
        if self.scorer == "grounding":
            check_gold_box(record)
        record["task"] = self.task
        record["id"] = self._own_id(record.get("id", f"{self.task}-test-{number:06d}"))
        return record

    def _own_id(self, name: str) -> str:
        """Return the id; the second "7" becomes "7#2", or is refused."""
        self.used[name] = self.used.get(name, 0) + 1
        if self.own_ids and self.used[name] > 1:
            text = f"id {name!r} occurs twice; the ids of a test set must be unique"
            raise DataError("duplicate-id", text)
        return name if self.used[name] == 1 else f"{name}#{self.used[name]}"


@dataclass(frozen=True)
class TestFile:
    """A test set with a file of its own.

    `entry` goes into the manifest; `own_ids`: an id that occurs twice is refused.
    """

    __test__ = False  # not for pytest

    path: Path
    task: str
    scorer: str
    resolver: ImageResolver
    entry: dict[str, object] = field(default_factory=dict)
    own_ids: bool = True
    placed: Callable[[Any], Any] | None = None
    limit: Limit | None = None
    special: Converter | None = None  # what finishes its samples, where they need more than others


def planned_tests(
    files: dict[str, Path],
    resolver: ImageResolver,
    scorers: dict[str, str],
    name_of: Callable[[str], str],
    chunk: int,
    placed: Callable[[Any], Any] | None = None,
) -> tuple[list[PlannedFile], dict[str, str]]:
    """Return the test sets, and the scorer of each.

    Args:
        files: by task.
        resolver: of the images.
        scorers: by task; "" is for all others.
        name_of: returns the name of the test set of a task: its own may be taken.
        chunk: the chunk (from 1) that test sets of other names than their task belong to.
        placed: see `TestSet`.

    Raises:
        StreamError: a task that no file can be named after.
    """
    chosen, planned = {}, []
    for task, path in files.items():
        check_task_name(task)
        name, scorer = name_of(task), scorers.get(task, scorers[""])
        entry = test_entry(name, task, chunk)
        source = TestFile(path, task, scorer, resolver, entry, placed=placed)
        planned.append(PlannedFile(f"test/{name}.jsonl", source, name))
        chosen[name] = scorer
    return planned, chosen


def test_entry(name: str, task: str, chunk: int) -> dict[str, object]:
    """Return the manifest's keys of test set `name` where it is of one period of its task."""
    return {} if name == task else {"of": task, "chunk": chunk}


def check_task_name(task: str) -> None:
    """Raise StreamError unless a test file can be named after the task."""
    if not TASK_NAME.fullmatch(task):
        raise StreamError(
            f"task {task!r} has a test set, so its name must also work as a file name: letters, "
            "digits, dots, dashes and underscores; rename it in the data, or give --task"
        )


def lines_of_test(source: TestFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of a test set."""
    made.entry.update(source.entry)
    usual = TestSet(source.task, source.scorer, source.own_ids, source.placed)
    special = source.special or usual
    yield from map(encode, converted(source.path, source.resolver, special, made, source.limit))

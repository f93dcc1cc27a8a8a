"""The stream format: a folder with chunks, test sets and `stream.json`, which describes them.

The only reader of the format. `data_prep.stream_writer` is the only writer. No torch, no Pillow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.files import Record, numbered_jsonl, read_json, read_jsonl, sha256_file
from data_prep.images import check_name

FORMAT = "strlora-stream/1"
MANIFEST = "stream.json"
# A task's name also names files.
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StreamError(RuntimeError):
    """A stream cannot be read or written; the message names the problem and the fix."""


@dataclass(frozen=True)
class StreamFile:
    """A JSON Lines file that the manifest describes: its name inside the stream, and its hash."""

    file: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class ChunkEntry(StreamFile):
    """A chunk of training samples; `index` counts from 1, `tasks` holds samples by task."""

    index: int
    tasks: dict[str, int]


@dataclass(frozen=True)
class TaskEntry:
    """A task with a test set.

    Attributes:
        name: of the task.
        scorer: name of its scorer in eval/scorers.
        test: the test set.
        validation: a second set for choosing settings, if the stream has one.
        majority: test score (0 to 1) of the constant answer that is best on the training samples;
            None where the manifest does not name it.
        of: the task of its samples, where the test set is of one period of that task.
        chunk: the chunk (from 1) whose period the test set is of; None: of no period.
    """

    name: str
    scorer: str
    test: StreamFile
    validation: StreamFile | None = None
    majority: float | None = None
    of: str | None = None
    chunk: int | None = None

    @property
    def trained_as(self) -> str:
        """The task that training samples of the same kind name."""
        return self.of or self.name


@dataclass(frozen=True)
class Stream:
    """A stream folder, as its manifest describes it.

    Attributes:
        root: the folder.
        name: of the stream.
        chunks: in their order.
        tests: tasks with test sets by name, in the manifest's order.
        facts: all other keys of the manifest (generator, seed, links, ...), as they stand there.
    """

    root: Path
    name: str
    chunks: tuple[ChunkEntry, ...]
    tests: dict[str, TaskEntry]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks with test sets, in the manifest's order."""
        return list(self.tests)

    @cached_property
    def sha256(self) -> str:
        """The hex sha256 of stream.json, which holds the hash of every other file."""
        return sha256_file(self.root / MANIFEST)

    def chunk(self, index: int) -> ChunkEntry:
        """The entry of chunk `index`, counted from 1."""
        return self.chunks[index - 1]

    def chunk_file(self, index: int) -> Path:
        """The path of chunk `index`, counted from 1."""
        return self.root / self.chunk(index).file

    def task(self, name: str) -> TaskEntry:
        """The entry of a task. Raises StreamError when there is none of this name."""
        if name not in self.tests:
            known = ", ".join(self.tests)
            raise StreamError(f"{self.root / MANIFEST}: no task {name!r}; it has: {known}")
        return self.tests[name]

    def test_file(self, task: str) -> Path:
        """The path of a task's test set."""
        return self.root / self.task(task).test.file

    def test_records(self, task: str, limit: int | None = None) -> list[Record]:
        """The test samples of a task, at most `limit` of them.

        Raises:
            ValueError: the file is empty, or a sample has no id, no messages, or an id twice.
        """
        records = self._records.setdefault(task, [])
        if not records:
            records += read_jsonl(self.test_file(task))
            check_test_records(self.test_file(task), records)
        return records if limit is None else records[:limit]

    # Not a field: what was read of a stream must not make it unequal to another of its folder.
    @cached_property
    def _records(self) -> dict[str, list[Record]]:
        return {}

    def chunk_name(self, index: int) -> str:
        """What chunk `index` is called beside its number: its period, label or dates; else ""."""
        cut = self.facts.get("cut") or []
        fact = cut[index - 1] if index <= len(cut) else {}
        if name := fact.get("name") or fact.get("period") or fact.get("label"):
            return str(name)
        first, last = (str(fact.get(key, ""))[:10] for key in ("from", "to"))
        return first if first == last else f"{first} to {last}"

    def first_seen(self) -> dict[str, int]:
        """The first chunk (from 1) that holds each task; a task that no chunk holds is absent.

        A test set of one period is seen first in the chunk of its period.
        """
        seen: dict[str, int] = {}
        for chunk in self.chunks:
            for task, samples in chunk.tasks.items():
                if samples:
                    seen.setdefault(task, chunk.index)
        return seen | {name: test.chunk for name, test in self.tests.items() if test.chunk}

    def verify_chunk(self, index: int) -> None:
        """Raise StreamError unless a chunk is the file that the manifest describes.

        Also when a sample names an image outside the stream's folder.
        """
        self._verify(self.chunk(index))

    def verify_tests(self, tasks: Iterable[str]) -> None:
        """Raise StreamError unless the tasks' test sets are those that the manifest describes."""
        for name in tasks:
            self._verify(self.task(name).test)

    def _verify(self, entry: StreamFile) -> None:
        path = self.root / entry.file
        if not path.is_file():
            raise StreamError(f"{path} is missing: prepare the stream again")
        digest = sha256_file(path)
        if digest != entry.sha256:
            raise StreamError(
                f"{path} was changed after the stream was made: sha256 {digest[:12]}..., but "
                f"{MANIFEST} says {entry.sha256[:12]}...: prepare the stream again"
            )
        check_image_names(path)


def open_stream(root: Path) -> Stream:
    """Read the manifest of a stream folder.

    Raises:
        StreamError: there is no manifest, it is of another format, or an entry is wrong.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise StreamError(
            f"{path}: no such stream; make one, for example: python -m data_prep.mini --out {root}"
        )
    content = read_manifest(path)
    try:
        chunks = tuple(_chunk_entry(path, entry) for entry in content["chunks"])
        tests = {name: _task_entry(path, name, e) for name, e in content["tasks"].items()}
        facts = {k: v for k, v in content.items() if k not in ("format", "name", "chunks", "tasks")}
        return Stream(root, str(content.get("name", "")), chunks, tests, facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StreamError(
            f"{path} is not a stream manifest ({error!r}): prepare it again"
        ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a stream.json as it is.

    Raises:
        StreamError: it is not JSON, or of another format.
    """
    try:
        content = read_json(path)
    except (ValueError, RecursionError) as error:
        raise StreamError(f"{path}: not JSON ({error}); prepare the stream again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        named = content.get("format") if isinstance(content, dict) else content
        raise StreamError(f"{path}: format is {named!r}, expected {FORMAT!r}")
    return content


def _file_entry(manifest: Path, entry: dict[str, Any], key: str = "file") -> StreamFile:
    name = str(entry[key])
    if not (manifest.parent / name).resolve().is_relative_to(manifest.parent.resolve()):
        raise StreamError(f"{manifest} names {name!r}, which lies outside the stream")
    return StreamFile(name, int(entry["samples"]), str(entry["sha256"]))


def _chunk_entry(manifest: Path, entry: dict[str, Any]) -> ChunkEntry:
    tasks = {str(task): int(samples) for task, samples in entry.get("tasks", {}).items()}
    file = _file_entry(manifest, entry)
    return ChunkEntry(file.file, file.samples, file.sha256, int(entry["index"]), tasks)


def _task_entry(manifest: Path, name: str, entry: dict[str, Any]) -> TaskEntry:
    if not TASK_NAME.fullmatch(name):
        raise StreamError(
            f"{manifest}: {name!r} is no name of a task, which also names a file: use letters, "
            "digits, dots, dashes and underscores"
        )
    validation, majority = entry.get("validation"), entry.get("majority")
    return TaskEntry(
        name,
        str(entry.get("scorer", "")),
        _file_entry(manifest, entry, "test"),
        None if validation is None else _file_entry(manifest, validation),
        None if majority is None else float(majority),
        str(entry["of"]) if "of" in entry else None,
        int(entry["chunk"]) if "chunk" in entry else None,
    )


def check_test_records(path: Path, records: list[Record]) -> None:
    """Raise ValueError, with file and sample, unless every sample has messages and a unique id."""
    if not records:
        raise ValueError(f"{path}: empty test set; make the stream again")
    seen: set[str] = set()
    for number, record in enumerate(records, start=1):
        name = record.get("id")
        if not isinstance(name, str) or not record.get("messages"):
            keys = sorted(record)
            raise ValueError(f"{path}: sample {number}: expected 'id' and 'messages', found {keys}")
        if name in seen:
            raise ValueError(f"{path}: sample {number}: id {name!r} occurs twice")
        seen.add(name)


def check_image_names(path: Path) -> None:
    """Raise StreamError naming the first sample whose image lies outside the stream's folder.

    Names are judged as they are written: an images/ folder may itself be a link to a large disk.
    """
    try:
        for number, record in numbered_jsonl(path):  # noqa: B007 - the error names it
            for image in record.get("images") or []:
                check_name(str(image))
    except DataError as error:
        raise StreamError(f"{path}:{number}: {error}") from error
    except ValueError as error:  # a line that is not a JSON object
        raise StreamError(str(error)) from error

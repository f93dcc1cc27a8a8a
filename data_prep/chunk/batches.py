"""One batch of raw samples -> encoded host samples with what is needed to cut them into chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.chunk.columns import ColumnNames, needed
from data_prep.chunk.times import microseconds
from data_prep.errors import DataError, Problem, shown
from data_prep.files import hash64
from data_prep.sources.fields import Columns
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.picture_marks import unread_marks
from data_prep.sources.raw_forms import to_host, unread_turn_keys
from data_prep.sources.readers import Item, parse, place
from data_prep.sources.records import HostSample, encode, question_text

Group = int | str
MOST_PROBLEMS = 1000  # a run that refuses bad samples stops at so many


@dataclass(frozen=True)
class Options:
    """How samples are read and grouped; see the command's help.

    Attributes:
        by: count, time or column.
        column: the column of `by`; dots separate the keys of nested objects.
        columns: of picture, question and answer.
        task: task of samples that have none.
        task_column: column that names the task; None: "task".
        holdout: share of the images (of the questions, where there is no image) kept for testing.
        seed: of shuffling and of the hold-out.
        id_prefix: what made-up ids begin with.
        epoch: unit of numbers in a column of times; None: by their size.
        needs_pictures: refuse sources without any.
    """

    by: str
    column: str | None
    task: str
    task_column: str | None
    holdout: float
    seed: int
    id_prefix: str
    resolver: ImageResolver
    epoch: str | None = None
    columns: ColumnNames = field(default_factory=ColumnNames)
    needs_pictures: bool = False


@dataclass
class Summary:
    """What the command reports about the samples that were read.

    Attributes:
        images: samples with pictures. lacking: samples with a picture that is not there.
        missing: the first of those pictures.
        taken: the columns that were read, in words. keys: the columns of the source.
        forms: of times: where each was first seen.
        unread: keys of turns that are left out.
        marks: what looks like the mark of a picture, and stays text.
        columns: types of the extra fields. problems: what was refused.
    """

    images: int = 0
    lacking: int = 0
    missing: list[str] = field(default_factory=list)
    taken: str = ""
    keys: list[str] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)
    problems: list[Problem] = field(default_factory=list)

    def merge(self, other: Summary) -> None:
        """Add what a later batch says; of everything that may grow, the first is kept."""
        self.images += other.images
        self.lacking += other.lacking
        self.missing = [*self.missing, *other.missing][:5]
        self.taken = self.taken or other.taken
        self.keys = sorted({*self.keys, *other.keys})[:100]
        self.forms = {**other.forms, **self.forms}
        self.unread = sorted({*self.unread, *other.unread})
        self.marks = sorted({*self.marks, *other.marks})[:20]
        self.columns.merge(other.columns)
        if len(self.problems) < MOST_PROBLEMS:
            self.problems += other.problems


@dataclass
class Batch:
    """Converted samples: their lines, and for each its length, group, task, test flag and id.

    `last` is the number of the last raw sample in its file.
    """

    last: int
    lines: bytes = b""
    lengths: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)  # microseconds, a label, or 0
    tasks: list[str] = field(default_factory=list)
    tests: list[bool] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # 64-bit hashes
    summary: Summary = field(default_factory=Summary)


def convert(job: tuple[Options, Path, list[Item]]) -> Batch:
    """Return the batch of raw samples of one file, converted; what is refused is listed."""
    options, path, items = job
    batch, lines = Batch(last=items[-1][0]), []
    summary, keys, unread, marks = batch.summary, set[str](), set[str](), set[str]()
    for number, item in items:
        try:
            raw = parse(item)
            if isinstance(raw, dict):
                keys.update(map(str, raw))
            made_up_id = f"{options.id_prefix}{path.name.split('.')[0]}-{number:07d}"
            record = host_record(raw, options, made_up_id)
            group, form = group_of(raw, options)
            line = encode(record)
        except DataError as refused:
            name = raw.get("id", "") if isinstance(raw, dict) else ""
            summary.problems.append(refused.at(place(path, number), str(name)))
            continue
        if form:
            summary.forms.setdefault(form, place(path, number))
        lines.append(line)
        summary.taken = summary.taken or options.columns.described(raw, options.task_column)
        if lost := next((i for i in record["images"] if not options.resolver.is_there(i)), None):
            summary.lacking += 1
            summary.missing.append(lost.partition("/")[2])
        unread |= unread_turn_keys(raw)
        marks |= unread_marks(record["messages"])
        batch.lengths.append(len(line))
        batch.groups.append(group)
        batch.tasks.append(record["task"])
        batch.tests.append(is_held_out(record, options))
        batch.ids.append(hash64(record["id"]))
        summary.images += bool(record["images"])
        summary.columns.add(record)
    batch.lines = b"".join(lines)
    summary.keys, summary.unread, summary.marks = [*keys], [*unread], [*marks]
    return batch


def host_record(raw: Any, options: Options, made_up_id: str) -> HostSample:
    """Return one sample in the host's form, with task, id and placed images. Raises DataError."""
    record = to_host(options.columns.placed(raw), options.resolver.resolve)
    if options.task_column:
        task = needed(raw, options.task_column)
        if isinstance(task, list | dict):
            raise DataError("column", f"column {options.task_column!r}: found {shown(task)}")
        record["task"] = str(task)
    record.setdefault("task", options.task)
    record.setdefault("id", made_up_id)
    return record


def group_of(raw: Any, options: Options) -> tuple[Group, str]:
    """Return what a sample is grouped by (microseconds, the value, or 0) and the form of a time."""
    if options.by == "count" or options.column is None:
        return 0, ""
    value = needed(raw, options.column)
    if options.by == "time":
        return microseconds(value, options.column, options.epoch)
    if isinstance(value, list | dict):
        raise DataError("column", f"column {options.column!r}: found {shown(value)}, expected text")
    return str(value), ""


def is_held_out(record: HostSample, options: Options) -> bool:
    """Return whether a sample is kept for testing, decided by its first image or its question."""
    if not options.holdout:
        return False
    source = record["images"][0] if record["images"] else question_text(record)
    # A hash, not a draw: a picture falls on the same side in every sample and every later batch.
    return hash64(f"{options.seed}/{source}") < options.holdout * 2**64

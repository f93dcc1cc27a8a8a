"""One sample at a time: parsed, and held against every rule that needs no other sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.check.stream_folder import DataFile
from data_prep.errors import DataError, Problem
from data_prep.files import hash64
from data_prep.images import check_name
from data_prep.sources.boxes import check_box, check_gold_box, is_box_question, read_size
from data_prep.sources.fields import Columns
from data_prep.sources.readers import Item, parse, place
from data_prep.sources.records import HostSample, answer_text, check_host, encode, question_text


@dataclass(slots=True)
class Sample:
    """What the later rules need of one sample.

    Attributes:
        file: number of its file. line: its line, from 1.
        question, answer: 64-bit hashes of the texts, blanks and case evened out.
        length: characters of all turns.
        size: (width, height) that the sample itself states.
    """

    file: int
    line: int
    id: str
    task: str
    images: tuple[str, ...]
    question: int
    answer: int
    shown: str
    length: int
    size: tuple[float, float] | None
    words: int
    good: bool = True


@dataclass
class Scanned:
    """A batch of samples, and what is wrong with them; `bad` counts samples that were refused."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[tuple[int, Problem]] = field(default_factory=list)  # line, problem
    columns: Columns = field(default_factory=Columns)


def scan(path: Path, number: int, file: DataFile, items: list[Item]) -> Scanned:
    """Return the samples of a batch of lines; `path` and `number` are the file's."""
    out = Scanned()
    for line, item in items:
        raw = parse(item)
        name = raw["id"] if isinstance(raw, dict) and isinstance(raw.get("id"), str) else ""
        try:
            record = check_sample(raw, file)
        except DataError as refused:
            out.problems.append((line, refused.at(place(path, line), name)))
            continue
        if file.task is None:
            out.columns.add(record)
        question, answer = question_text(record), answer_text(record)
        sample = Sample(
            number,
            line,
            name,
            str(record.get("task") or file.task or ""),
            tuple(record.get("images", [])),
            hash_text(question),
            hash_text(answer),
            answer[:40],
            sum(len(turn["content"]) for turn in record["messages"]),
            read_size(record.get("size")),
            len(question.split()),
        )
        out.samples.append(sample)
    return out


def check_sample(raw: Any, file: DataFile) -> HostSample:
    """Return the sample if it obeys all rules that need no other sample. Raises DataError."""
    record = check_host(raw)
    encode(record)  # refuses what no file can hold
    for image in record.get("images", []):
        check_name(image)
    if file.task is not None:
        _check_test(record, file)
    elif is_box_question(question_text(record)) and not record.get("objects"):
        check_box("the answer", answer_text(record), read_size(record.get("size")))
    return record


def _check_test(record: HostSample, file: DataFile) -> None:
    if not record.get("id"):
        raise DataError("no-id", "a test sample needs an id, by which its answer is found again")
    if record.get("task") not in (None, file.task, file.of):
        raise DataError("test-task", f"task is {record['task']!r} in the test set of {file.task!r}")
    if file.scorer == "grounding":
        check_gold_box(record)
    references = record.get("references")
    if file.scorer == "caption" and not (isinstance(references, list) and references):
        raise DataError("references", "references: expected a list of captions to score against")
    options = record.get("options")
    if options is not None and not isinstance(options, list):
        raise DataError("options", f"options: found {options!r}, expected a list")


def hash_text(text: str) -> int:
    """Return 64 bits of a hash of `text`, case and blanks evened out."""
    return hash64(" ".join(text.lower().split()))

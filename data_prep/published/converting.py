"""Published files -> host samples: what the converters of benchmarks have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import DataError, shown
from data_prep.sources.boxes import check_gold_box
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.readers import place, read_all
from data_prep.sources.records import Record, answer_text, encode, to_host
from data_prep.stream_writer import WrittenFile


class Converter(Protocol):
    """Knows what is special about the samples of one published file."""

    def prepare(self, raw: Any) -> Any:
        """Return the raw sample in a form that `to_host` reads."""

    def finish(self, raw: Any, record: Record, number: int) -> Record:
        """Return the record with task and id. Raises DataError for a sample that is no good."""


def converted(
    path: Path, resolver: ImageResolver, special: Converter, made: WrittenFile
) -> Iterator[Record]:
    """Yield the samples of a published file in the host's form.

    They are counted in `made`, and what is refused is noted there.
    """
    for number, raw in read_all(path):
        try:
            raw = special.prepare(raw)
            record = to_host(raw)
            record["images"] = [resolver.resolve(image) for image in record["images"]]
            record = special.finish(raw, record, number)
            encode(record)  # refuses what could not be written
        except DataError as refused:
            name = raw.get("id", raw.get("question_id", "")) if isinstance(raw, dict) else ""
            made.problems.append(refused.at(place(path, number), str(name)))
            continue
        made.count(record["task"])
        yield record


class TestSet:
    """Finishes the samples of one published test set.

    Several gold answers become `references`, ids become text and differ from each other, a box
    stands for a missing answer. `question_id` stays as published.

    Args:
        task: its name. scorer: its `fixed` scorer.
        own_ids: refuse an id that stands twice; else (published ids repeat) it is made different.
    """

    __test__ = False  # not for pytest

    def __init__(self, task: str, scorer: str, own_ids: bool = False) -> None:
        self.task, self.scorer, self.own_ids = task, scorer, own_ids
        self.used: dict[str, int] = {}

    def prepare(self, raw: Any) -> Any:
        """Return the raw sample with an answer, where its box is the answer."""
        if isinstance(raw, dict) and raw.get("answer") is None and raw.get("answer_bbox"):
            return {**raw, "answer": str(raw["answer_bbox"])}
        return raw

    def finish(self, raw: Any, record: Record, number: int) -> Record:
        """Return the record as evaluation wants it. Raises DataError for a gold that is none."""
        answer = raw.get("answer")
        if isinstance(answer, list) and (len(answer) > 1 or self.scorer == "caption"):
            record["references"] = [str(text) for text in answer]
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
            text = f"id {name!r} stands there already; ids of a test set must differ"
            raise DataError("duplicate-id", text)
        return name if self.used[name] == 1 else f"{name}#{self.used[name]}"


def numbered(files: list[Path]) -> dict[int, Path]:
    """Return files by the number that ends their names ("data_007.json" is 7)."""
    found: dict[int, Path] = {}
    for path in files:
        digits = path.name.split(".")[0].rsplit("_", 1)[-1]
        if not digits.isdigit():
            raise DataError("name", f"{path}: found no number in its name, expected data_001.json")
        if int(digits) in found:
            raise DataError("name", f"{path} and {found[int(digits)]} have the same number")
        found[int(digits)] = path
    return dict(sorted(found.items()))


def expect_folder(path: Path, what: str, how: str) -> None:
    """Raise DataError unless `path` is a folder; `how` says how to get it."""
    if not path.is_dir():
        raise DataError("no-data", f"{what} {shown(str(path))}: no such folder. {how}")

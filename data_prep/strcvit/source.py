"""The published files of StrCVIT: where they are, and what their samples are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.command_line import expect_folder
from data_prep.errors import DataError
from data_prep.published.benchmarks import STRCVIT
from data_prep.sources.boxes import check_box, is_box_question, read_box, read_size
from data_prep.sources.converting import Converter, Limit, converted
from data_prep.sources.fields import harmonize_all
from data_prep.sources.image_paths import LINK, ImageResolver
from data_prep.sources.records import HostSample, answer_text, encode, question_text
from data_prep.sources.test_sets import TestFile, lines_of_test
from data_prep.strcvit import REPOSITORY
from data_prep.stream_writer import PlannedFile, WrittenFile

# Places365, TextCaps and VQAv2 have val_proxy.json in the published scripts; ChartQA has no proxy.
PROXIES = ("test_proxy.json", "val_proxy.json")
# Task by the first folder of the image, COCO's aside: its pictures serve two tasks.
_BY_FOLDER = {task.folders[0].split("/")[0]: name for name, task in STRCVIT.items()}
OTHER = "other"  # task of a training sample that none of the eleven fits


@dataclass(frozen=True)
class TrainSource:
    """A published chunk, its number, and where its images are."""

    path: Path
    resolver: ImageResolver
    chunk: int
    limit: Limit | None = None


def chunk_files(source: Path) -> dict[int, Path]:
    """Return train/data_*.json by number. Raises DataError where one is missing."""
    how = f"Get it: python -m data_prep.strcvit --download --source {source}"
    expect_folder(source, "--source", how)
    files = [*(source / "train").glob("data_*.json"), *(source / "train").glob("data_*.jsonl")]
    numbered = _numbered(files)
    if not numbered:
        raise DataError("no-data", f"{source}/train: no data_001.json. {how} ({REPOSITORY})")
    missing = [number for number in range(1, max(numbered) + 1) if number not in numbered]
    if missing:
        names = ", ".join(f"data_{number:03d}.json" for number in missing)
        raise DataError("no-data", f"{source}/train: {names} missing between the others. {how}")
    return numbered


def _numbered(files: list[Path]) -> dict[int, Path]:
    """Return files by the number that ends their names ("data_007.json" is 7)."""
    numbered: dict[int, Path] = {}
    for path in files:
        digits = path.name.split(".")[0].rsplit("_", 1)[-1]
        if not digits.isdigit():
            raise DataError("name", f"{path}: found no number in its name, expected data_001.json")
        if int(digits) in numbered:
            raise DataError("name", f"{path} and {numbered[int(digits)]} have the same number")
        numbered[int(digits)] = path
    return dict(sorted(numbered.items()))


def test_files(source: Path, proxy: bool) -> dict[str, Path]:
    """Return the test file by task; tasks that have none are left out.

    Args:
        source: the published folder.
        proxy: take the proxy sets, which the published runs evaluate on, where there are any.
    """
    chosen: dict[str, Path] = {}
    for task in STRCVIT:
        names = (*PROXIES, "test.json") if proxy else ("test.json", *PROXIES)
        paths = (source / "test" / task / name for name in names)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            chosen[task] = path
    return chosen


def task_of(record: HostSample) -> str:
    """Return the task of a training sample: its own, or the one that its image and answer show."""
    if record.get("task") in STRCVIT:
        return str(record["task"])
    if not record["images"]:
        return OTHER
    folder = record["images"][0].removeprefix(f"{LINK}/").split("/")[0]
    if folder == "COCO2014":
        box = read_box(answer_text(record)) or is_box_question(question_text(record))
        return "Grounding" if box else "VQAv2"
    return _BY_FOLDER.get(folder, OTHER)


class _Train(Converter):
    """Finishes the training samples of one chunk."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def finish(self, raw: Any, record: HostSample, number: int) -> HostSample:
        """Return the record with task and id; a Grounding answer must be a box in the picture."""
        record["task"] = task_of(record)
        record.setdefault("id", f"strcvit-{self.chunk:03d}-{number:05d}")
        if record["task"] == "Grounding" and is_box_question(question_text(record)):
            check_box("the answer", answer_text(record), read_size(record.get("size")))
        return record


def make(planned: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of one chunk or test set."""
    source: TrainSource | TestFile = planned.source
    if isinstance(source, TestFile):
        yield from lines_of_test(source, made)
        return
    special = _Train(source.chunk)
    records = converted(source.path, source.resolver, special, made, source.limit)
    yield from map(encode, harmonize_all(records))

"""The published files of StrCVIT: where they are, and what their samples are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.command_line import expect_folder
from data_prep.errors import DataError
from data_prep.published.benchmarks import STRCVIT
from data_prep.published.gold_files import GQA, GoldTestSet
from data_prep.sources.boxes import check_box, is_box_question, read_box, read_size
from data_prep.sources.converting import Limit, converted
from data_prep.sources.fields import harmonize_all
from data_prep.sources.image_paths import LINK, ImageResolver
from data_prep.sources.records import HostSample, answer_text, encode, question_text
from data_prep.sources.test_sets import TestSet
from data_prep.strcvit import REPOSITORY
from data_prep.stream_writer import PlannedFile, WrittenFile

PROXIES = ("test_proxy.json", "val_proxy.json")
# Task by the first folder of the image; COCO's pictures serve two tasks.
_BY_FOLDER = {
    "AD": "AD",
    "ChartQA": "ChartQA",
    "Fin": "Fin",
    "GQA": "GQA",
    "ImageNet_withlabel": "ImageNet",
    "OCR-VQA": "OCRVQA",
    "Places": "Places365",
    "RS": "RS",
    "Textcaps": "TextCaps",
}
OTHER = "other"  # task of a training sample that none of the eleven fits


@dataclass(frozen=True)
class Source:
    """A published file, what it is, and where its images are."""

    path: Path
    resolver: ImageResolver
    task: str | None = None  # of a test set
    chunk: int = 0
    official: Path | None = None  # GQA's own questions, which hold its answers
    limit: Limit | None = None


def chunk_files(source: Path) -> dict[int, Path]:
    """Return train/data_*.json by number. Raises DataError where one is missing."""
    how = f"Get it: python -m data_prep.strcvit --download --source {source}"
    expect_folder(source, "--source", how)
    files = [*(source / "train").glob("data_*.json"), *(source / "train").glob("data_*.jsonl")]
    found = _numbered(files)
    if not found:
        raise DataError("no-data", f"{source}/train: no data_001.json. {how} ({REPOSITORY})")
    missing = [number for number in range(1, max(found) + 1) if number not in found]
    if missing:
        names = ", ".join(f"data_{number:03d}.json" for number in missing)
        raise DataError("no-data", f"{source}/train: {names} missing between the others. {how}")
    return found


def _numbered(files: list[Path]) -> dict[int, Path]:
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


def test_files(source: Path, proxy: bool) -> dict[str, Path]:
    """Return the test file by task; tasks that have none are left out.

    Args:
        source: the published folder.
        proxy: take the proxy sets, which the published runs evaluate on, where there are any.
    """
    found: dict[str, Path] = {}
    for task in STRCVIT:
        names = (*PROXIES, "test.json") if proxy else ("test.json", *PROXIES)
        paths = (source / "test" / task / name for name in names)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            found[task] = path
    return found


def official_gqa(source: Path, images: Path) -> Path | None:
    """Return GQA's file of questions and answers, if it lies in one of the usual places."""
    return GQA.find(source / "test" / "GQA", images / "GQA", images / "GQA" / "questions")


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


class _Train:
    """Finishes the training samples of one chunk."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def prepare(self, raw: Any) -> Any:
        """Return the sample as it is."""
        return raw

    def finish(self, raw: Any, record: HostSample, number: int) -> HostSample:
        """Return the record with task and id; a Grounding answer must be a box in the picture."""
        record["task"] = task_of(record)
        record.setdefault("id", f"strcvit-{self.chunk:03d}-{number:05d}")
        if record["task"] == "Grounding" and is_box_question(question_text(record)):
            check_box("the answer", answer_text(record), read_size(record.get("size")))
        return record


def make(planned: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of one chunk or test set."""
    source: Source = planned.source
    special = _Train(source.chunk) if source.task is None else _test_set(source, source.task)
    records = list(converted(source.path, source.resolver, special, made, source.limit))
    yield from map(encode, harmonize_all(records) if source.task is None else records)


def _test_set(source: Source, name: str) -> TestSet:
    task = STRCVIT[name]
    if task.gold is None:
        return TestSet(name, task.scorer)
    return GoldTestSet(name, task.scorer, task.gold, source.official, task.site)

"""Test sets of published tasks, with the answers that they keep in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.errors import DataError, shown
from data_prep.published.benchmarks import Task
from data_prep.published.gold_files import GoldFile, Golds, read_golds
from data_prep.sources.converting import Limit
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.raw_forms import QUESTIONS
from data_prep.sources.test_sets import TestFile, TestSet


def published_test(
    task: Task, path: Path, resolver: ImageResolver, gold: Path | None, limit: Limit | None
) -> TestFile:
    """Return the test set of a published task.

    Args:
        task: of any benchmark.
        path: its questions. resolver: of their images.
        gold: the file with their answers, if it was found. limit: of a quick subset.
    """
    special = GoldTestSet(task, task.gold, gold) if task.gold else None
    return TestFile(path, task.name, task.scorer, resolver, {}, False, _as_asked, limit, special)


def _as_asked(raw: Any) -> Any:
    """Return a raw sample without other questions beside `text`, which all published scripts ask.

    A `question` beside it is the one of the data set that the sample comes from, without its hints.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("text"), str):
        return raw
    return {key: value for key, value in raw.items() if str(key).lower() not in QUESTIONS}


class GoldTestSet(TestSet):
    """A test set whose answers stand, all or some, in a file of their own.

    Args:
        task: whose test set it is.
        gold: what kind of file.
        path: where it lies; None: nowhere, then every question must have its answer.
    """

    def __init__(self, task: Task, gold: GoldFile, path: Path | None) -> None:
        super().__init__(task.name, task.scorer, placed=_as_asked)
        self.gold, self.path, self.site = gold, path, task.site
        # Read when first needed: this object travels to the process that makes the test set.
        self.answers: Golds | None = None

    def prepare(self, raw: Any) -> Any:
        """Return the raw sample with its answer."""
        raw = super().prepare(raw)
        if not isinstance(raw, dict):
            return raw
        given = [raw[key] for key in ("answer", "answers") if raw.get(key) is not None]
        wanted = not given or (self.gold.always and self.path is not None)
        if not wanted and not self.gold.by_picture:
            return raw
        if self.path is None:
            raise DataError(
                "no-answer",
                f"no answer: put the official {self.gold.name} beside the questions of "
                f"{self.task}, in --source ({self.site})",
            )
        if self.answers is None:
            self.answers = read_golds(self.path, self.gold)
        key = "image" if self.gold.by_picture else "question_id"
        name = str(raw.get(key))
        answer = self.answers.get(Path(name).name if self.gold.by_picture else name)
        if answer is None or answer == []:
            raise DataError("no-answer", f"{self.path} has no answer for {key} {shown(name)}")
        return {**raw, "answer": answer}

"""A stream folder as evaluation sees it: tasks, test records, chunk composition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.files import Record, read_json, read_jsonl
from eval.scorers import find_scorer

STREAM_FORMAT = "strlora-stream/1"
CANDIDATES = 30  # most frequent training answers tried as the best constant


@dataclass(frozen=True)
class Stream:
    """A stream manifest (`stream.json`) and the files beside it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        """Return the task names in the manifest's order."""
        return list(self.manifest["tasks"])

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """Return the chunk entries: `index`, `samples`, `tasks` (samples by task)."""
        return list(self.manifest["chunks"])

    def scorer_name(self, task: str) -> str:
        """Return the name of the task's `fixed` scorer."""
        return str(self._task(task)["scorer"])

    def majority(self, task: str) -> float:
        """Return the score of the best constant answer, 0..1; NaN for captions.

        Where the manifest does not have it: of the most frequent training answers the one that
        scores best on the test set (a floor that is a little too high rather than too low).
        """
        value = self._task(task).get("majority")
        if value is None:
            if task not in self._constant:
                self._constant[task] = self._best_constant(task)
            value = self._constant[task]
        return float(value)

    @cached_property
    def _constant(self) -> dict[str, float]:
        return {}

    def _best_constant(self, task: str) -> float:
        scorer = find_scorer(self.scorer_name(task))
        if scorer.sample is None:  # CIDEr is no share of right answers
            return float("nan")
        records, common = self.test_records(task), self._common_answers(task)
        scores = [fmean(scorer.score_all([answer] * len(records), records)) for answer in common]
        return max(scores, default=float("nan"))

    def _common_answers(self, task: str) -> list[str]:
        """Return the most frequent answers in the chunk that holds most of the task's samples."""
        chunk = max(self.chunks, key=lambda entry: entry["tasks"].get(task, 0), default=None)
        path = self.folder / str(chunk["file"]) if chunk and "file" in chunk else None
        if chunk is None or path is None or not chunk["tasks"].get(task) or not path.is_file():
            return []
        answers = Counter(
            str(record["messages"][-1]["content"])
            for record in read_jsonl(path)
            if record.get("task") == task and record.get("messages")
        )
        return [answer for answer, _ in answers.most_common(CANDIDATES)]

    def first_seen(self) -> dict[str, int]:
        """Return for each task the first chunk (from 1) that holds it; absent: never."""
        seen: dict[str, int] = {}
        for chunk in self.chunks:
            for task, samples in chunk["tasks"].items():
                if samples:
                    seen.setdefault(task, int(chunk["index"]))
        return seen

    def test_file(self, task: str) -> Path:
        """Return the path of a task's test set."""
        return self.folder / str(self._task(task)["test"])

    def test_records(self, task: str, limit: int | None = None) -> list[Record]:
        """Return the test samples of a task, at most `limit`.

        Raises:
            ValueError: the file is empty, or a sample has no id, no messages or an id twice.
        """
        records = self._read(self.test_file(task))
        return records if limit is None else records[:limit]

    @cached_property
    def _cache(self) -> dict[Path, list[Record]]:
        return {}

    def _read(self, path: Path) -> list[Record]:
        if path not in self._cache:
            records = read_jsonl(path)
            check_records(path, records)
            self._cache[path] = records
        return self._cache[path]

    def _task(self, task: str) -> dict[str, Any]:
        tasks = self.manifest["tasks"]
        if task not in tasks:
            found = f"{self.folder / 'stream.json'}: no task {task!r}; it has {list(tasks)}"
            raise ValueError(found)
        return dict(tasks[task])


def check_records(path: Path, records: list[Record]) -> None:
    """Raise ValueError, with file and sample, unless all samples can be asked and told apart."""
    if not records:
        raise ValueError(f"{path}: empty test set; make the stream again")
    seen: set[str] = set()
    for number, record in enumerate(records, start=1):
        name = record.get("id")
        if not isinstance(name, str) or not record.get("messages"):
            found = sorted(record)
            raise ValueError(
                f"{path}: sample {number}: expected 'id' and 'messages', found {found}"
            )
        if name in seen:
            raise ValueError(f"{path}: sample {number}: id {name!r} stands there twice")
        seen.add(name)


def load_stream(folder: Path) -> Stream:
    """Read `stream.json` of a stream folder.

    Raises:
        FileNotFoundError: there is no stream; the message says how to make one.
        ValueError: another format, or a task with an unknown scorer.
    """
    path = folder / "stream.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such stream; make it, for example: python -m data_prep.mini --out {folder}"
        )
    manifest = read_json(path)
    if manifest.get("format") != STREAM_FORMAT:
        found = manifest.get("format")
        raise ValueError(f"{path}: format: found {found!r}, expected {STREAM_FORMAT!r}")
    for task, entry in manifest["tasks"].items():
        try:
            find_scorer(entry["scorer"])
        except ValueError as error:
            raise ValueError(f"{path}: tasks.{task}: {error}") from error
    return Stream(folder, manifest)

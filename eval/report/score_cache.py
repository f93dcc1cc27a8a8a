"""Sample scores that a report has read once: a report after chunk 100 must not score 100 again.

`chunks/NNN/.sample_scores.json` beside the predictions. An entry counts only while the prediction
file, the test file and the scorers' own code are the ones it was made from; it can be deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import eval.scorers
from eval.files import write_text
from eval.scores import TaskScores, score_task
from eval.stream import Stream

NAME = ".sample_scores.json"


class ScoreCache:
    """The remembered sample scores of one chunk."""

    def __init__(self, chunk_dir: Path, stream: Stream) -> None:
        """Read what is remembered of a chunk; nothing where the file is absent or damaged."""
        self.path, self.stream = chunk_dir / NAME, stream
        self.predictions = chunk_dir / "predictions"
        self.entries: dict[str, dict[str, Any]] = {}
        self.changed = False
        with suppress(OSError, ValueError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = content if isinstance(content, dict) else {}

    def score_task(self, task: str) -> TaskScores:
        """Return the scores of one task, computed only where they are not remembered.

        Raises:
            FileNotFoundError, ValueError: as `eval.scores.score_task`.
        """
        stamp = self._stamp(task)
        entry = self.entries.get(task)
        if stamp and isinstance(entry, dict) and entry.get("stamp") == stamp:
            with suppress(KeyError, TypeError, ValueError):
                return _scores(entry)
        scored = score_task(self.predictions, self.stream, task)
        if stamp:
            numbers = {k: None if v != v else v for k, v in asdict(scored).items()}
            self.entries[task] = {"stamp": stamp, **numbers}
            self.changed = True
        return scored

    def save(self) -> None:
        """Write the file if anything is new; a folder that cannot be written is left alone."""
        if self.changed:
            with suppress(OSError):
                write_text(self.path, json.dumps(self.entries, separators=(",", ":")))

    def _stamp(self, task: str) -> list[Any] | None:
        """Return what the scores depend on; None where a file is missing."""
        with suppress(OSError, KeyError, TypeError):
            files = [self.predictions / f"{task}.jsonl", self.stream.test_file(task)]
            marks = [[stat.st_mtime_ns, stat.st_size] for stat in (f.stat() for f in files)]
            return [*marks, self.stream.scorer_name(task), code_digest()]
        return None


def _scores(entry: dict[str, Any]) -> TaskScores:
    score, stderr = (math.nan if entry[k] is None else float(entry[k]) for k in ("score", "stderr"))
    ids, scores = [str(i) for i in entry["ids"]], [float(s) for s in entry["scores"]]
    return TaskScores(ids, scores, int(entry["failed"]), score, stderr)


@cache
def code_digest() -> str:
    """Return a digest of the code that decides a score: changed scorers forget all scores."""
    scorers = Path(eval.scorers.__file__).parent
    files = [*sorted(scorers.glob("*.py")), scorers.parent / "scores.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]

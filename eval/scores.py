"""Scores of one chunk: prediction files in, the content of `scores.json` out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from eval.files import Record
from eval.predictions import read_predictions
from eval.scorers import MOST_CIDER, Scorer, find_scorer
from eval.scorers.published_files import published_scores
from eval.stream import Stream, load_stream


@dataclass(frozen=True)
class TaskScores:
    """The scores of one task's test set.

    Attributes:
        ids: sample ids, in the prediction file's order.
        scores: one score in 0..1 a sample; a failed sample earns nothing.
        failed: samples without an answer.
        score: the task's score in 0..1; NaN if no sample has an answer (nothing was measured).
        stderr: standard error over samples; NaN below two samples.
    """

    ids: list[str]
    scores: list[float]
    failed: int
    score: float
    stderr: float


def score_lines(lines: Sequence[Record], scorer: Scorer) -> TaskScores:
    """Score the prediction lines of one task.

    A line whose prediction is null is never shown to the scorer: it earns 0 and counts as failed.
    """
    answers = [line["prediction"] for line in lines]
    # Captions need the references of failed samples too: document frequencies are the test set's.
    raw = scorer.score_all([answer or "" for answer in answers], lines)
    scores = [0.0 if a is None else s for a, s in zip(answers, raw, strict=True)]
    failed = sum(answer is None for answer in answers)
    measured = failed < len(lines)
    return TaskScores(
        ids=[str(line["id"]) for line in lines],
        scores=scores,
        failed=failed,
        score=scorer.aggregate(scores) if measured else math.nan,
        stderr=_stderr(scores, scorer) if measured else math.nan,
    )


def _stderr(scores: Sequence[float], scorer: Scorer) -> float:
    if len(scores) < 2:
        return math.nan
    scale = 1.0 if scorer.sample is not None else MOST_CIDER
    return scale * stdev(scores) / math.sqrt(len(scores))


def score_task(predictions_dir: Path, stream: Stream, task: str) -> TaskScores:
    """Return the scores of one task from its prediction file.

    Raises:
        FileNotFoundError: the task was not evaluated.
        ValueError: the prediction file does not fit the test set.
    """
    lines = _lines_of(predictions_dir, stream, task)
    return score_lines(lines, find_scorer(stream.scorer_name(task)))


def _lines_of(predictions_dir: Path, stream: Stream, task: str) -> list[Record]:
    lines = read_predictions(predictions_dir, stream, task)
    if not lines:
        raise ValueError(f"{predictions_dir / task}.jsonl: empty; evaluate the chunk again")
    return lines


def score_chunk(
    predictions_dir: Path, stream_dir: Path, chunk: int | None = None
) -> dict[str, Any]:
    """Return the content of `scores.json`: every task that has a prediction file.

    Numbers that do not exist (nothing answered, one sample) are null, never 0. `failed` samples
    earn nothing and stay in `n`. `cut` answers reached the longest length allowed. Captions have
    `cider` beside their clipped score: CIDEr-D x 100, 0 to 1,000. `published` is what StrCVIT's own
    scripts would print for the same answers, in percent (eval.scorers.published_files).

    Args:
        predictions_dir: `chunks/NNN/predictions`.
        stream_dir: the stream folder.
        chunk: the chunk's index; None reads it from the folder's name NNN.

    Raises:
        FileNotFoundError: there is no prediction file at all.
        ValueError: a prediction file of an unknown task, or one that does not fit its test set.
    """
    stream = load_stream(stream_dir)
    found = sorted(path.stem for path in predictions_dir.glob("*.jsonl"))
    unknown = [task for task in found if task not in stream.tasks]
    if unknown:
        raise ValueError(f"{predictions_dir}: unknown tasks {unknown}; expected {stream.tasks}")
    if not found:
        raise FileNotFoundError(f"{predictions_dir}: no prediction files; evaluate the chunk first")
    index = _chunk_index(predictions_dir) if chunk is None else chunk
    lines = {t: _lines_of(predictions_dir, stream, t) for t in stream.tasks if t in found}
    tasks = {t: _entry(lines[t], find_scorer(stream.scorer_name(t))) for t in lines}
    return {"chunk": index, "tasks": tasks, "published": published_scores(lines)}


def _entry(lines: Sequence[Record], scorer: Scorer) -> dict[str, Any]:
    scored = score_lines(lines, scorer)
    entry: dict[str, Any] = {
        "score": _number(scored.score),
        "n": len(scored.scores),
        "failed": scored.failed,
        "cut": sum(line.get("finish_reason") == "length" for line in lines),
        "stderr": _number(scored.stderr),
    }
    if scorer.sample is None:
        measured = scored.failed < len(lines)
        cider = 100 * MOST_CIDER * fmean(scored.scores) if measured else math.nan
        entry["cider"] = _number(cider)
    return entry


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _chunk_index(predictions_dir: Path) -> int:
    name = predictions_dir.resolve().parent.name
    if not name.isdigit():
        raise ValueError(f"{predictions_dir}: no chunk number in {name!r}; give `chunk`")
    return int(name)

"""Predictions: the host's answers beside the test records, scored once, and what they sum up to.

`split_results` writes `chunks/NNN/predictions/<task>.jsonl`, each line with its score; everything
else (scores.json, reports, comparisons, tests of significance) reads that score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev
from typing import cast

from data_prep.files import read_jsonl, write_jsonl
from data_prep.stream import Stream
from eval.constant_answers import constant_score
from eval.form_only import lenient_scores
from eval.questions import Question, prompt_of, question_of
from eval.run_files import ChunkScores, JsonObject, PredictionLine, TaskResult, rounded
from eval.scorers import cider
from eval.scorers.answer_text import find_answer, gold_answers
from eval.scorers.published_scores import published_scores
from eval.scorers.registry import MOST_CIDER, Scorer, open_scored_stream, scorer_of

NONE_NAMED: Mapping[str, Scorer] = {}
GOLD_FIELDS = (
    "references", "answer_bbox", "size", "options", "synonyms", "box_format", "answer_type"
)  # fmt: skip
# What methods that choose a chunk note in their results: the chunk whose adapter or router was
# taken, and, where a model was asked for it, what it said.
CHOICE_FIELDS = ("expert", "router_answer", "routed")


def split_results(
    result_jsonl: Path,
    stream_dir: Path,
    out_dir: Path,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    scorers: Mapping[str, Scorer] = NONE_NAMED,
    before: int = 0,
) -> dict[str, int]:
    """Write `<out_dir>/<task>.jsonl`, one line a test record in the test file's order.

    `PredictionLine` names the keys. A record without an answer becomes an error entry: prediction
    null, score 0, `error` says why.

    Args:
        result_jsonl: what `swift infer` wrote.
        stream_dir: the stream folder.
        out_dir: where the prediction files go.
        tasks: the tasks that were asked; None means all of the stream.
        limit: as given to `write_combined`.
        scorers: by task, those that the recipe names over the stream's.
        before: chunks that the adapter counts and the run does not (`start_from`).

    Returns:
        The number of error entries by task.

    Raises:
        ValueError: a result that answers no test record, two results for one question, or a test
            record without a gold answer.
    """
    stream = open_scored_stream(stream_dir)
    names = list(stream.tasks if tasks is None else tasks)
    asked = {task: stream.test_records(task, limit) for task in names}
    known = {question_of(r, stream_dir) for records in asked.values() for r in records}
    answers = _read_answers(result_jsonl, stream_dir, known)
    failed: dict[str, int] = {}
    for task, records in asked.items():
        lines = [
            _of_run(_prediction_line(task, r, answers.get(question_of(r, stream_dir))), before)
            for r in records
        ]
        failed[task] = sum(line["prediction"] is None for line in lines)
        _write_scored(
            out_dir / f"{task}.jsonl", lines, scorers.get(task) or scorer_of(stream, task)
        )
    return failed


def _of_run(line: PredictionLine, before: int) -> PredictionLine:
    """Return the line with the chunk's number in this run; 0: one of those before it."""
    expert = line.get("expert")
    return line if expert is None else {**line, "expert": max(expert - before, 0)}


def _write_scored(path: Path, lines: Sequence[PredictionLine], scorer: Scorer) -> None:
    scores = score_lines(lines, scorer)
    scored = zip(lines, scores, lenient_scores(lines, scores, scorer), strict=True)
    write_jsonl(path, ({**line, "score": s, "lenient": blind} for line, s, blind in scored))


def score_again(
    predictions_dir: Path, stream_dir: Path, scorers: Mapping[str, Scorer] = NONE_NAMED
) -> None:
    """Write the scores of a chunk's prediction files anew; the answers stay as they are.

    Args:
        scorers: by task, those that the recipe names over the stream's.

    Raises:
        ValueError: a prediction file that does not fit its test set, or cannot be scored.
    """
    stream = open_scored_stream(stream_dir)
    for path in sorted(predictions_dir.glob("*.jsonl")):
        lines = read_predictions(predictions_dir, stream, path.stem)
        _write_scored(path, lines, scorers.get(path.stem) or scorer_of(stream, path.stem))


def _read_answers(path: Path, stream_dir: Path, known: set[Question]) -> dict[Question, JsonObject]:
    """Return the host's result lines by question."""
    answers: dict[Question, JsonObject] = {}
    for number, line in enumerate(read_jsonl(path, torn_tail=True), start=1):
        if "response" not in line or not line.get("messages"):
            keys = sorted(line)
            raise ValueError(f"{path}:{number}: not a result of swift infer; found the keys {keys}")
        question = question_of(line, stream_dir)
        if question not in known:
            raise ValueError(
                f"{path}:{number}: answers no test record of {stream_dir}: {prompt_of(line)!r}"
                f" with images {list(question[1])}; was the stream made again since?"
            )
        if question in answers:
            raise ValueError(
                f"{path}:{number}: a second answer to {prompt_of(line)!r} with images"
                f" {list(question[1])}; the host appends to an existing file: delete it and"
                " evaluate again"
            )
        answers[question] = line
    return answers


def _prediction_line(task: str, record: JsonObject, result: JsonObject | None) -> PredictionLine:
    answer = None if result is None else result["response"]
    line: JsonObject = {
        "id": record["id"],
        "task": task,
        "prompt": prompt_of(record),
        "prediction": answer if isinstance(answer, str) else None,
        "gold": _gold_text(record),
        "finish_reason": None if result is None else result.get("finish_reason"),
        "images": record.get("images") or [],
    }
    line |= {key: record[key] for key in GOLD_FIELDS if key in record}
    line |= {key: result[key] for key in CHOICE_FIELDS if result is not None and key in result}
    if result is None:
        line["error"] = "no answer in the host's results"
    elif result.get("error") or line["prediction"] is None:
        line["prediction"] = None
        line["error"] = str(result.get("error") or f"found {answer!r}")
    return cast(PredictionLine, line)


def _gold_text(record: JsonObject) -> str:
    turns = record["messages"]
    if turns[-1]["role"] == "assistant":
        return str(turns[-1]["content"])
    return gold_answers(record)[0]


def score_lines(lines: Sequence[PredictionLine], scorer: Scorer) -> list[float]:
    """Return one score in 0..1 for each prediction line of a task.

    A line whose prediction is null is never shown to the scorer: it earns 0.
    """
    answers = [line["prediction"] for line in lines]
    # Captions need the references of failed samples too: document frequencies are the test set's.
    raw = scorer.score_all([answer or "" for answer in answers], lines)
    return [0.0 if a is None else s for a, s in zip(answers, raw, strict=True)]


def read_predictions(folder: Path, stream: Stream, task: str) -> list[PredictionLine]:
    """Return the prediction lines of one task, each with its score.

    Raises:
        FileNotFoundError: the task was not evaluated here.
        ValueError: no line, an id twice or one that the test set does not have, a score that is
            none, or (in a file without scores) a line that cannot be scored.
    """
    path = folder / f"{task}.jsonl"
    lines = cast(list[PredictionLine], read_jsonl(path))
    if not lines:
        raise ValueError(f"{path}: empty; evaluate the chunk again")
    known = {record["id"] for record in stream.test_records(task)}
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        name = line.get("id")
        if name not in known:
            raise ValueError(f"{path}:{number}: id {name!r} is not in the test set of {task}")
        if name in seen:
            raise ValueError(f"{path}:{number}: id {name!r} occurs twice")
        seen.add(str(name))
    return _with_scores(path, lines, stream, task)


def check_lines(path: Path, lines: Sequence[PredictionLine]) -> None:
    """Raise ValueError where a prediction line lacks its question, gold or answer as text."""
    for number, line in enumerate(lines, start=1):
        for key in ("prompt", "gold", "prediction"):
            value: object = line.get(key)
            no_answer = key == "prediction" and key in line and value is None
            if not isinstance(value, str) and not no_answer:
                found = f"found {value!r}" if key in line else "no such key"
                raise ValueError(
                    f"{path}:{number}: {key}: {found}, expected text; evaluate the chunk again"
                )


def _with_scores(
    path: Path, lines: list[PredictionLine], stream: Stream, task: str
) -> list[PredictionLine]:
    """Return the lines with their scores; version 0.1 wrote none, so they are made now."""
    if not any("score" in line for line in lines):
        scores = score_lines(lines, scorer_of(stream, task))
        return [{**line, "score": s} for line, s in zip(lines, scores, strict=True)]
    for number, line in enumerate(lines, start=1):
        found: dict[str, object] = {"score": line.get("score"), "lenient": line.get("lenient", 0.0)}
        for key, score in found.items():
            if not isinstance(score, int | float) or not 0.0 <= score <= 1.0:
                raise ValueError(
                    f"{path}:{number}: {key}: found {score!r}, expected a number from 0 to 1;"
                    " evaluate the chunk again"
                )
    return lines


@dataclass(frozen=True)
class TaskScores:
    """The scores of one task's test set.

    Attributes:
        ids: sample ids, in the prediction file's order.
        scores: one score in 0..1 a sample; a failed sample earns nothing.
        failed: samples without an answer.
        score: the task's score in 0..1; NaN if no sample has an answer (nothing was measured).
        stderr: standard error over samples; NaN below two samples.
        lenient: the task's score blind to case and format; NaN where the lines have none.
        asked: the sha256 of ids, questions and gold answers, whatever their order; two streams may
            give the same id to other questions.
    """

    ids: list[str]
    scores: list[float]
    failed: int
    score: float
    stderr: float
    lenient: float = math.nan
    asked: str = ""


def sum_up(lines: Sequence[PredictionLine], scorer: Scorer) -> TaskScores:
    """Return what the scored prediction lines of one task sum up to."""
    scores = [float(line["score"]) for line in lines]
    failed = sum(line["prediction"] is None for line in lines)
    measured = failed < len(lines)
    blind = [line["lenient"] for line in lines if "lenient" in line]
    whole = measured and len(blind) == len(lines)  # older versions wrote none
    asked = sorted(json.dumps([line.get(k) for k in ("id", "prompt", "gold")]) for line in lines)
    return TaskScores(
        ids=[str(line["id"]) for line in lines],
        scores=scores,
        failed=failed,
        score=scorer.aggregate(scores) if measured else math.nan,
        stderr=_stderr(scores, scorer) if measured else math.nan,
        lenient=scorer.aggregate(blind) if whole else math.nan,
        asked=sha256("\n".join(asked).encode()).hexdigest(),
    )


def _stderr(scores: Sequence[float], scorer: Scorer) -> float:
    if len(scores) < 2:
        return math.nan
    # Single scores of captions are CIDEr-D / 10, the score of the task is not.
    scale = 1.0 if scorer.sample is not None else MOST_CIDER
    return scale * stdev(scores) / math.sqrt(len(scores))


def task_scores(predictions_dir: Path, stream: Stream, task: str) -> TaskScores:
    """Return the scores of one task from its prediction file.

    Raises:
        FileNotFoundError: the task was not evaluated.
        ValueError: the prediction file does not fit the test set, or a line lacks a text.
    """
    lines = read_predictions(predictions_dir, stream, task)
    check_lines(predictions_dir / f"{task}.jsonl", lines)
    return sum_up(lines, scorer_of(stream, task))


def chrf_of_few(predictions_dir: Path, stream: Stream, task: str) -> float | None:
    """Return the mean chrF, 0 to 1, of captions whose test set is too small for CIDEr; else None.

    Raises:
        FileNotFoundError, ValueError: as `task_scores`.
    """
    scorer = scorer_of(stream, task)
    if scorer.sample is not None:
        return None
    lines = read_predictions(predictions_dir, stream, task)
    answers = [line["prediction"] or "" for line in lines]
    if not cider.too_small(scorer.caption_tokens(answers, lines)[1]):
        return None
    pairs = zip(map(scorer.read or str, answers), map(gold_answers, lines), strict=True)
    return fmean(cider.chrf(answer, golds) for answer, golds in pairs)


def try_scorer(scorer: Scorer, stream: Stream, task: str) -> None:
    """Score two answers to a task's first test sample, the right and an empty one.

    Raises:
        ValueError: the scorer cannot, or gives no number from 0 to 1.
    """
    record = stream.test_records(task)[0]
    answers = (_gold_text(record), "")
    score_lines([_prediction_line(task, record, {"response": a}) for a in answers], scorer)


def chunk_scores(
    predictions_dir: Path,
    stream_dir: Path,
    chunk: int | None = None,
    scorers: Mapping[str, Scorer] = NONE_NAMED,
) -> ChunkScores:
    """Return the content of `scores.json`: every task that has a prediction file.

    Numbers that do not exist (nothing answered, one sample) are null, never 0. `failed` samples
    earn nothing and stay in `n`.

    Args:
        predictions_dir: `chunks/NNN/predictions`.
        stream_dir: the stream folder.
        chunk: the chunk's index; None reads it from the folder's name NNN.
        scorers: by task, those that the recipe names over the stream's.

    Raises:
        FileNotFoundError: there is no prediction file at all.
        ValueError: a prediction file of an unknown task, or one that does not fit its test set.
    """
    stream = open_scored_stream(stream_dir)
    evaluated = sorted(path.stem for path in predictions_dir.glob("*.jsonl"))
    unknown = [task for task in evaluated if task not in stream.tasks]
    if unknown:
        raise ValueError(f"{predictions_dir}: unknown tasks {unknown}; expected {stream.tasks}")
    if not evaluated:
        raise FileNotFoundError(f"{predictions_dir}: no prediction files; evaluate the chunk first")
    index = _chunk_index(predictions_dir) if chunk is None else chunk
    lines = {
        t: read_predictions(predictions_dir, stream, t) for t in stream.tasks if t in evaluated
    }
    tasks = {t: _task_result(lines[t], scorers.get(t) or scorer_of(stream, t)) for t in lines}
    for task in scorers.keys() & tasks.keys() if index == 0 else ():
        # Whoever reads the run has stream.json's scorer at most, and never runs the recipe's own.
        constant = constant_score(stream, task, scorers[task], lines[task])
        if not math.isnan(constant):
            tasks[task]["constant"] = round(constant, 6)
    return {"chunk": index, "tasks": tasks, "published": published_scores(lines, stream.name)}


def _task_result(lines: Sequence[PredictionLine], scorer: Scorer) -> TaskResult:
    scored = sum_up(lines, scorer)
    result: TaskResult = {
        "score": rounded(scored.score),
        "n": len(scored.scores),
        "failed": scored.failed,
        "cut": sum(line.get("finish_reason") == "length" for line in lines),
        "stderr": rounded(scored.stderr),
    }
    if not math.isnan(scored.lenient):
        result["lenient"] = rounded(scored.lenient)
    if scorer.sample is None:
        measured = scored.failed < len(lines)
        cider_d = 100 * MOST_CIDER * fmean(scored.scores) if measured else math.nan
        result["cider"] = rounded(cider_d)
    unfinished = sum(find_answer(line["prediction"] or "").unfinished for line in lines)
    if unfinished:
        result["unfinished"] = unfinished
    return result


def _chunk_index(predictions_dir: Path) -> int:
    name = predictions_dir.resolve().parent.name
    if not name.isdigit():
        raise ValueError(f"{predictions_dir}: no chunk number in {name!r}; give `chunk`")
    return int(name)

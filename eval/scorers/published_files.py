"""What the published scripts make of whole files: joins, totals, crashes and mean.

For comparison with published numbers only. Written from observed behaviour; where the published
script ends with an exception, ours returns a verdict that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from data_prep.files import Record
from eval.run_files import PredictionLine, PublishedScores
from eval.scorers.registry import MOST_CIDER, STRCVIT, TASKS, find_task
from eval.scorers.released import ReleasedCrash

BY_POSITION = ("ImageNet", "Places365", "ChartQA")
NEEDS_PROMPT = ("AD", "RS", "Fin")


@dataclass(frozen=True)
class Verdict:
    """What a published script says about a result file.

    Attributes:
        accuracy: the printed score in percent, None where the script crashes.
        correct: one verdict a counted line, in the order of the result file.
        printed_samples: the number of samples that the script prints, None where it prints none.
        crash: why the published script crashes, None where it does not.
    """

    accuracy: float | None
    correct: list[bool]
    printed_samples: int | None = None
    crash: str | None = None


def score_file(task: str, annotations: Sequence[Record], results: Sequence[Record]) -> Verdict:
    """Return what the published script of `task` makes of a result file.

    Args:
        task: a StrCVIT task.
        annotations: the test set: question_id, answer (Grounding: answer_bbox and size).
        results: the lines: question_id, text; `prompt_missing` marks a line of a failed sample.
    """
    try:
        if task == "TextCaps":
            return _captions(annotations, results)
        if task == "GQA":
            return _gqa(annotations, results)
        return _lines(task, annotations, results)
    except ReleasedCrash as error:
        return Verdict(None, [], crash=str(error))


def _lines(task: str, annotations: Sequence[Record], results: Sequence[Record]) -> Verdict:
    sample = find_task(task).scorer("released").sample
    assert sample is not None
    # The last annotation of an id counts; VQAv2 alone takes "7" and 7 for the same id.
    key = str if task == "VQAv2" else _identity
    known = {key(a["question_id"]): a for a in annotations}
    correct = []
    for position, line in enumerate(results):
        if line.get("prompt_missing") and task in NEEDS_PROMPT:
            raise ReleasedCrash("the published script crashes on a line without a prompt")
        if task in BY_POSITION:
            gold = _at(annotations, position)
        else:
            gold = _find(known, key(line["question_id"]))
        correct.append(bool(sample(_text(task, line), gold)))
    if not correct:
        raise ReleasedCrash("the published script divides by zero: no result line")
    accuracy = 100.0 * sum(correct) / len(correct)
    return Verdict(accuracy, correct, 0 if task == "OCRVQA" else len(correct))


def _identity(value: Any) -> Any:
    return value


def _text(task: str, line: Record) -> str:
    if isinstance(line["text"], str):
        return str(line["text"])
    if task == "Grounding":
        return ""
    raise ReleasedCrash(f"the published script crashes on the answer {line['text']!r}")


def _at(annotations: Sequence[Record], position: int) -> Record:
    if position >= len(annotations):
        raise ReleasedCrash("the published script crashes: more result lines than annotations")
    return annotations[position]


def _find(known: Mapping[Any, Record], name: Any) -> Record:
    if name not in known:
        raise ReleasedCrash(f"the published script crashes on the unknown id {name!r}")
    return known[name]


def _gqa(annotations: Sequence[Record], results: Sequence[Record]) -> Verdict:
    """One entry an id, the last line counts; only balanced, answered questions are looked at."""
    sample = find_task("GQA").scorer("released").sample
    assert sample is not None
    answers = {line["question_id"]: line for line in results}
    counted = [a for a in annotations if a["question_id"] in answers and a.get("isBalanced", True)]
    grouped = any(a.get("group", "global") is not None for a in counted)
    if not counted or not grouped:
        raise ReleasedCrash("the published script divides by zero: no answered, grouped question")
    correct = [bool(sample(_text("GQA", answers[a["question_id"]]), a)) for a in counted]
    return Verdict(100.0 * sum(correct) / len(correct), correct)


def _captions(annotations: Sequence[Record], results: Sequence[Record]) -> Verdict:
    answers = {line["question_id"]: line["text"] for line in results}
    if set(answers) != {a["question_id"] for a in annotations}:
        raise ReleasedCrash("the published script asserts that every image has an answer")
    scorer = find_task("TextCaps").scorer("released")
    scores = scorer.score_all([answers[a["question_id"]] for a in annotations], annotations)
    return Verdict(100.0 * MOST_CIDER * fmean(scores), [])


def verdict_of_predictions(task: str, lines: Sequence[PredictionLine]) -> Verdict:
    """Return what the published script of `task` would make of our prediction lines.

    A failed sample becomes the line that the published generation loop writes then: the error as
    text, no prompt.
    """
    annotations = [_annotation(line) for line in lines]
    results = [
        {"question_id": line["id"], "text": line["prediction"]}
        if line["prediction"] is not None
        else {"question_id": line["id"], "text": f"Error: {line.get('error')}",
              "prompt_missing": True}
        for line in lines
    ]  # fmt: skip
    return score_file(task, annotations, results)


def _annotation(line: PredictionLine) -> Record:
    record = {"question_id": line["id"], "answer": line.get("references") or line["gold"]}
    return record | {k: v for k, v in line.items() if k in ("answer_bbox", "size")}


def published_scores(lines: Mapping[str, Sequence[PredictionLine]]) -> PublishedScores:
    """Return what the published scripts would print for the StrCVIT tasks among prediction lines.

    Returns:
        `tasks`: percent by task (TextCaps: CIDEr x 100), null where the script would crash;
        `crashes`: why; `mean`: the published nine-task mean, null unless all nine have a score.
    """
    verdicts = {t: verdict_of_predictions(t, lines[t]) for t in STRCVIT if t in lines}
    known = {t: v.accuracy for t, v in verdicts.items() if v.accuracy is not None}
    wanted = {name for name in STRCVIT if TASKS[name].in_published_mean}
    return {
        "tasks": {task: _rounded(known.get(task)) for task in verdicts},
        "crashes": {task: v.crash for task, v in verdicts.items() if v.crash is not None},
        "mean": _rounded(published_mean(known)) if wanted <= set(known) else None,
    }


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 4)


def published_mean(scores: Mapping[str, float]) -> float:
    """Return StrCVIT's published mean: nine tasks, GQA and ChartQA left out, CIDEr x 100 mixed in.

    Args:
        scores: percent by task; TextCaps as CIDEr x 100, unclipped.

    Raises:
        ValueError: one of the nine is missing; the published script crashes there.
    """
    wanted = [name for name in STRCVIT if TASKS[name].in_published_mean]
    missing = [name for name in wanted if name not in scores]
    if missing:
        raise ValueError(f"the published mean needs {missing}; found {sorted(scores)}")
    return fmean(scores[name] for name in wanted)


def mean_of_all(scores: Mapping[str, float]) -> float:
    """Return the mean of the eleven tasks in percent, CIDEr x 100 clipped to 100.

    Raises:
        ValueError: a task is missing.
    """
    missing = [name for name in STRCVIT if name not in scores]
    if missing:
        raise ValueError(f"the mean of all tasks needs {missing}; found {sorted(scores)}")
    return fmean(min(scores[name], 100.0) for name in STRCVIT)

"""The score of the best constant answer to a task: what a model that sees nothing can reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from data_prep.files import read_jsonl
from data_prep.stream import Stream
from eval.scorers.answer_text import GoldRecord
from eval.scorers.registry import Scorer, is_own, scorer_of

CANDIDATES = 30  # most frequent training answers tried


def best_constant(stream: Stream, task: str) -> float:
    """Return the score of the best constant answer, 0..1; NaN for captions, or if nothing is known.

    Where the manifest does not have it: of the most frequent training answers the one that scores
    best on the test set (a floor that is a little too high rather than too low). NaN, too, for a
    scorer of the recipe's own, which a reader of runs never executes: the run records its value.
    """
    known = stream.task(task).majority
    if known is not None:
        return known
    if is_own(stream.task(task).scorer):
        return math.nan
    return constant_score(stream, task, scorer_of(stream, task), stream.test_records(task))


def constant_score(
    stream: Stream, task: str, scorer: Scorer, records: Sequence[GoldRecord]
) -> float:
    """Return the score of the frequent training answer that earns most on `records`, or NaN."""
    if scorer.sample is None:  # CIDEr is no share of right answers
        return math.nan
    common = _common_answers(stream, task)
    scores = [fmean(scorer.score_all([answer] * len(records), records)) for answer in common]
    return max(scores, default=math.nan)


def _common_answers(stream: Stream, task: str) -> list[str]:
    """Return the most frequent answers in the chunk that holds most of the task's samples."""
    task = stream.task(task).trained_as
    chunk = max(stream.chunks, key=lambda entry: entry.tasks.get(task, 0), default=None)
    if chunk is None or not chunk.tasks.get(task) or not (stream.root / chunk.file).is_file():
        return []
    answers = Counter(
        str(record["messages"][-1]["content"])
        for record in read_jsonl(stream.root / chunk.file)
        if record.get("task") == task and record.get("messages")
    )
    return [answer for answer, _ in answers.most_common(CANDIDATES)]

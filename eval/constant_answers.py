"""The score of the best constant answer to a task: what a model that sees nothing can reach."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from data_prep.files import read_jsonl
from data_prep.stream import Stream
from eval.scorers.answer_text import GoldRecord
from eval.scorers.registry import Scorer, is_own, scorer_of

CANDIDATES = 30  # most frequent training answers tried; so many of each chunk are counted


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
    """Return the most frequent training answers to a task; none where their chunks are not there.

    Those of the chunk that a test set of one period belongs to, where that has any, since other
    periods may have other answers; else those of all chunks.
    """
    test = stream.task(task)
    holding = [chunk for chunk in stream.chunks if chunk.tasks.get(test.trained_as)]
    chunks = [chunk for chunk in holding if chunk.index == test.chunk] or holding
    if not all((stream.root / chunk.file).is_file() for chunk in chunks):
        return []  # what is left may lack the answer that earns most
    answers: Counter[str] = Counter()
    for chunk in chunks:
        found = _answers_in(stream.root / chunk.file, chunk.sha256)
        answers.update(dict(found.get(test.trained_as, ())))
    return [answer for answer, _ in answers.most_common(CANDIDATES)]


@lru_cache(maxsize=1024)
def _answers_in(path: Path, sha256: str) -> dict[str, list[tuple[str, int]]]:
    """Return for each task of a chunk its most frequent answers and how often each is there.

    Args:
        path: the chunk's file.
        sha256: of the file, for the cache: every report of a run asks for all chunks.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in read_jsonl(path):
        if record.get("messages"):
            answers[str(record.get("task"))][str(record["messages"][-1]["content"])] += 1
    return {task: counted.most_common(CANDIDATES) for task, counted in answers.items()}

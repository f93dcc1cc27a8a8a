"""Tests of the scorers, and how they ask one for the scores of answers."""

from __future__ import annotations

from collections.abc import Sequence

from eval.scorers.answer_text import GoldRecord
from eval.scorers.registry import find_scorer


def score_samples(
    scorer: str, predictions: Sequence[str], records: Sequence[GoldRecord]
) -> list[float]:
    return find_scorer(scorer).score_all(predictions, records)


def score_sample(scorer: str, prediction: str, record: GoldRecord) -> float:
    return score_samples(scorer, [prediction], [record])[0]

"""What a constant answer scores: the floor below which a task was not learnt."""

from __future__ import annotations

import json
from collections import Counter

CANDIDATES = 30  # most frequent train answers tried as the best constant


def best_constant_score(scorer: str, train: Counter[str], test: Counter[str]) -> float:
    """Return the test score (0 to 1) of the constant answer that scores best on the train samples.

    Args:
        scorer: of the task.
        train, test: how often each gold answer occurs, in the order of first appearance: of two
            answers that score the same the first is taken.
    """
    common = [answer for answer, _ in train.most_common(CANDIDATES)]
    best = max(common, key=lambda answer: _hits(scorer, answer, train))
    return round(_hits(scorer, best, test) / test.total(), 6)


def _hits(scorer: str, answer: str, golds: Counter[str]) -> int:
    return sum(count for gold, count in golds.items() if is_right(scorer, answer, gold))


def is_right(scorer: str, answer: str, gold: str) -> bool:
    """Return whether `answer` is right: IoU over 0.5, numbers within 5 %, else equality."""
    if scorer == "relaxed" and answer.isdigit() and gold.isdigit():
        return abs(int(answer) - int(gold)) <= 0.05 * int(gold)
    if scorer != "grounding":
        return answer == gold
    a, b = (json.loads(text) for text in (answer, gold))
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return wide * high > 0.5 * (sum(areas) - wide * high)

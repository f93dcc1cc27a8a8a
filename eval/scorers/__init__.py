"""Scorers by name. `fixed` (ours, the default) and `released` (as published, for comparison).

score_sample("vqa", "Yes.", {"gold": "yes"})               -> 1.0
score_samples("caption", ["a red car"], [{"references": [...]}])  (needs the whole test set)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.scorers import cider, fixed, released

Record = dict[str, Any]
Array = NDArray[np.float64]
SampleScorer = Callable[[str, Record], float]
MOST_CIDER = 10.0


@dataclass(frozen=True)
class Scorer:
    """How one kind of answer is scored.

    Attributes:
        name: the name used in stream.json and on the command line.
        sample: scores one answer; None if an answer can only be scored with its whole test set.
        tokens: turns text into tokens, for captions.
    """

    name: str
    sample: SampleScorer | None
    tokens: Callable[[str], list[str]] | None = None

    def score_all(self, predictions: Sequence[str], records: Sequence[Record]) -> list[float]:
        """Return one score in 0..1 for each answer; CIDEr-D is divided by its maximum of 10."""
        if self.sample is not None:
            return [self.sample(p, r) for p, r in zip(predictions, records, strict=True)]
        tokens = self.tokens or str.split
        references = [[tokens(text) for text in fixed.gold_answers(r)] for r in records]
        answers = [tokens(prediction) for prediction in predictions]
        return [score / MOST_CIDER for score in cider.cider_d(answers, references)]

    def aggregate(self, scores: Sequence[float]) -> float:
        """Return the task's score in 0..1: the mean; for captions CIDEr x 100 clipped to 100."""
        if not scores:
            return float("nan")
        return float(self.of_mean(np.asarray(fmean(scores))))

    def of_mean(self, mean: Array) -> Array:
        """Return the task's score in 0..1 of a mean sample score, element by element."""
        return mean if self.sample is not None else np.minimum(mean * MOST_CIDER, 1.0)


def _table(*scorers: Scorer) -> dict[str, Scorer]:
    return {scorer.name: scorer for scorer in scorers}


FIXED = _table(
    Scorer("vqa", fixed.vqa),
    Scorer("exact", fixed.exact),
    Scorer("compact", fixed.compact),
    Scorer("label", fixed.label),
    Scorer("choice", fixed.choice),
    Scorer("contains", fixed.contains),
    Scorer("grounding", fixed.grounding),
    Scorer("relaxed", fixed.relaxed),
    Scorer("anls", fixed.anls),
    Scorer("ocr", fixed.ocr),
    Scorer("science", fixed.science),
    Scorer("number", fixed.number),
    Scorer("caption", None, cider.ptb_tokens),
)
RELEASED = _table(
    Scorer("contained", released.contained),
    Scorer("equal_compacted", released.equal_compacted),
    Scorer("two_way_substring", released.two_way_substring),
    Scorer("substring", released.substring),
    Scorer("vqa", released.vqa),
    Scorer("equal_lower", released.equal_lower),
    Scorer("equal_lower_prediction", released.equal_lower_prediction),
    Scorer("grounding", released.grounding),
    Scorer("held", released.held),
    Scorer("held_any", released.held_any),
    Scorer("held_compacted", released.held_compacted),
    Scorer("science", released.science),
    Scorer("caption", None, str.split),
)
VARIANTS = {"fixed": FIXED, "released": RELEASED}


def find_scorer(name: str, variant: str = "fixed") -> Scorer:
    """Return the scorer called `name`.

    Raises:
        ValueError: an unknown variant or name; the message lists the known ones.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: found {variant!r}, expected one of {sorted(VARIANTS)}")
    table = VARIANTS[variant]
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"scorer: found {name!r}, expected one of {sorted(table)}{hint}")
    return table[name]


def score_samples(
    scorer: str, predictions: Sequence[str], records: Sequence[Record]
) -> list[float]:
    """Return the `fixed` score in 0..1 of every answer of one test set."""
    return find_scorer(scorer).score_all(predictions, records)


def score_sample(scorer: str, prediction: str, record: Record) -> float:
    """Return the `fixed` score in 0..1 of one answer.

    Raises:
        ValueError: an unknown scorer, a record without gold, or `caption`: CIDEr-D weighs words
            by how rare they are in the whole test set, use `score_samples`.
    """
    found = find_scorer(scorer)
    if found.sample is None:
        raise ValueError(f"scorer {scorer!r} needs the whole test set: use score_samples()")
    return found.sample(prediction, record)

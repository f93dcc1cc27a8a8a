"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), written from the paper's formulas.

Values run from 0 to 10 an image, as in the published evaluation; tables multiply by 100.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

LONGEST_NGRAM = 4
SIGMA = 6.0
Ngram = tuple[str, ...]
_TOKEN = re.compile(r"(?<!\w)n't|'\w+|\d+(?:[.,:]\d+)*|\w+(?:[-.]\w+)*|[$%&#]", re.UNICODE)
_CLITIC = re.compile(r"(?<=\w)(n't|'s|'re|'ve|'ll|'d|'m)\b")


def ptb_tokens(text: str) -> list[str]:
    """Return lower-cased tokens in the manner of the Penn Treebank, punctuation dropped.

    The COCO caption evaluation tokenises this way: clitics are parted ("don't" -> "do", "n't"),
    hyphenated words and numbers stay whole, commas, full stops and quotes go.
    """
    text = text.lower().replace("\u2019", "'")
    return _TOKEN.findall(_CLITIC.sub(r" \1", text))


def cider_d(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """Return CIDEr-D of every prediction, 0 to 10, document frequencies from all references.

    Args:
        predictions: tokens of one answer an image.
        references: per image a list of references, each a list of tokens.

    Raises:
        ValueError: different numbers of predictions and references, or an image without any.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} images")
    if any(not image for image in references):
        raise ValueError("an image has no reference caption; CIDEr needs at least one")
    counted = [[_ngrams(tokens) for tokens in image] for image in references]
    frequency: Counter[Ngram] = Counter()
    for image in counted:
        frequency.update({ngram for reference in image for ngram in reference})
    log_images = math.log(len(references)) if references else 0.0
    return [
        _score_image(_ngrams(tokens), image, frequency, log_images)
        for tokens, image in zip(predictions, counted, strict=True)
    ]


def _ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    counts: Counter[Ngram] = Counter()
    for length in range(1, LONGEST_NGRAM + 1):
        counts.update(tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1))
    return counts


def _score_image(
    prediction: Counter[Ngram],
    references: Sequence[Counter[Ngram]],
    frequency: Counter[Ngram],
    log_images: float,
) -> float:
    answer = _weigh(prediction, frequency, log_images)
    total = sum(_similarity(answer, _weigh(ref, frequency, log_images)) for ref in references)
    return 10.0 * total / len(references)


class _Weighted(NamedTuple):
    """A caption as tf-idf vectors, one for each n-gram length, with their norms."""

    vectors: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def _weigh(counts: Counter[Ngram], frequency: Counter[Ngram], log_images: float) -> _Weighted:
    vectors: list[dict[Ngram, float]] = [{} for _ in range(LONGEST_NGRAM)]
    for ngram, count in counts.items():
        idf = log_images - math.log(max(1.0, frequency[ngram]))
        vectors[len(ngram) - 1][ngram] = count * idf
    norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]
    # As published, the length penalty counts bigrams, not words.
    bigrams = sum(count for ngram, count in counts.items() if len(ngram) == 2)
    return _Weighted(vectors, norms, bigrams)


def _similarity(answer: _Weighted, reference: _Weighted) -> float:
    penalty = math.exp(-((answer.length - reference.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for at in range(LONGEST_NGRAM):
        own, other = answer.vectors[at], reference.vectors[at]
        norm = answer.norms[at] * reference.norms[at]
        if norm:
            total += sum(min(own[n], other[n]) * other[n] for n in own if n in other) / norm
    return penalty * total / LONGEST_NGRAM

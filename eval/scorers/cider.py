"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), written from the paper's formulas.

Values run from 0 to 10 an image, as in the published evaluation; tables multiply by 100. It weighs
words by how rare they are in the whole corpus, so that a single picture earns 0 for any caption:
`too_small` finds such corpora, and `chrf` scores a caption with its references alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from eval.scorers.text import MARKS, UNSPACED, fold

LONGEST_NGRAM = 4
SIGMA = 6.0
FEWEST_IMAGES = 10  # below this, how rare a word is says little about it
Ngram = tuple[str, ...]
_LETTER = rf"(?:[^\W{UNSPACED}]|[{MARKS}])"
_TOKEN = re.compile(
    rf"(?<!\w)n't|'(?:s|re|ve|ll|d|m|em|n'|\d\ds?)(?!\w)|\d+(?:[.,:]\d+)*(?!\w|-\w)|[{UNSPACED}][{MARKS}]*"
    rf"|{_LETTER}+(?:[-.'&/]{_LETTER}+)*|[$%&#]"
)
_CLITIC = re.compile(r"(?<=\w)(n't|'s|'re|'ve|'ll|'d|'m)\b")
_JOINED = re.compile(r"\b(can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:gim|lem)(?=me\b))")


def ptb_tokens(text: str) -> list[str]:
    """Return lower-cased tokens in the manner of the Penn Treebank, punctuation dropped.

    The COCO caption evaluation tokenises this way: clitics are split off ("don't" -> "do", "n't"),
    "cannot" and "gonna" in two, words with a hyphen or an apostrophe inside ("o'clock") and numbers
    stay whole, commas, full stops and quotes go. A script that writes
    no blanks is taken character by character.
    """
    text = fold(text).lower()
    return _TOKEN.findall(_CLITIC.sub(r" \1", _JOINED.sub(r"\1 ", text)))


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
        # A document is a picture: an n-gram counts once, however many of its references have it.
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
        # What only the answer says counts as if one picture had it.
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
            # The D of CIDEr-D: saying a word more often than the reference earns nothing more.
            total += sum(min(own[n], other[n]) * other[n] for n in own if n in other) / norm
    return penalty * total / LONGEST_NGRAM


def without_weight(references: Sequence[Sequence[Sequence[str]]]) -> list[int]:
    """Return the images that earn 0 even for a caption equal to their longest reference.

    Their n-grams stand in every image, as do all of a corpus of one image.
    """
    scores = cider_d([max(image, key=len) for image in references], references)
    return [number for number, score in enumerate(scores) if score == 0]


def too_small(references: Sequence[Sequence[Sequence[str]]]) -> bool:
    """Return whether CIDEr says little about a corpus, or nothing about some of its images."""
    return len(references) < FEWEST_IMAGES or bool(without_weight(references))


CHRF_LONGEST = 6
CHRF_BETA = 2.0


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Return chrF2 (Popovic 2015) of a caption, 0 to 1: the best over its references.

    Character n-grams of 1 to 6 of the tokens without blanks, precision and recall averaged over
    the lengths that both have. It needs no other picture.
    """
    return max((_chrf(prediction, reference) for reference in references), default=0.0)


def _chrf(prediction: str, reference: str) -> float:
    own, other = ("".join(ptb_tokens(text)) for text in (prediction, reference))
    precisions, recalls = [], []
    for length in range(1, min(CHRF_LONGEST, len(own), len(other)) + 1):
        counts = [
            Counter(text[at : at + length] for at in range(len(text) - length + 1))
            for text in (own, other)
        ]
        shared = (counts[0] & counts[1]).total()
        precisions.append(shared / counts[0].total())
        recalls.append(shared / counts[1].total())
    if not sum(precisions):
        return 0.0
    precision, recall = fmean(precisions), fmean(recalls)
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)

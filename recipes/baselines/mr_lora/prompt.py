"""Which adapter the answer of MR-LoRA's router means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_AROUND = " \t\r\n.:()[]\"'"


class Choice(NamedTuple):
    """The chunk whose adapter answers; the router's answer; whether that was a legal letter."""

    chunk: int
    answer: str | None
    legal: bool


def read_letter(answer: str | None, letters: Mapping[str, int], fallback: int) -> Choice:
    """The choice that an answer means: exactly one expert's letter, blanks and brackets aside.

    Args:
        answer: the router's; None where it could not be asked.
        letters: letter -> chunk.
        fallback: the chunk whose adapter answers when the answer is no legal letter.
    """
    word = "" if answer is None else answer.strip(_AROUND)
    if word in letters:
        return Choice(letters[word], answer, True)
    return Choice(fallback, answer, False)


def places_by_chunk(choices: Sequence[Choice]) -> dict[int, list[int]]:
    """Places of the requests by chunk: chunks ascending, places in their order."""
    shares: dict[int, list[int]] = {}
    for place, choice in enumerate(choices):
        shares.setdefault(choice.chunk, []).append(place)
    return dict(sorted(shares.items()))

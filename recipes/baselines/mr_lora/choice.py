"""From what MR-LoRA's router says to the adapter that answers. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_AROUND = " \t\r\n.:()[]\"'"


class Choice(NamedTuple):
    """The chunk whose adapter answers; what the router said; whether that was a legal letter."""

    chunk: int
    said: str | None
    legal: bool


def read_letter(said: str | None, letters: Mapping[str, int], fallback: int) -> Choice:
    """The choice that an answer means: exactly one expert's letter, blanks and brackets aside.

    Args:
        said: the router's answer; None where it could not be asked.
        letters: letter -> chunk.
        fallback: the chunk whose adapter answers when the answer is no legal letter.
    """
    word = "" if said is None else said.strip(_AROUND)
    if word in letters:
        return Choice(letters[word], said, True)
    return Choice(fallback, said, False)


def grouped(choices: Sequence[Choice]) -> dict[int, list[int]]:
    """Places of the requests by chunk: chunks ascending, places in their order."""
    shares: dict[int, list[int]] = {}
    for place, choice in enumerate(choices):
        shares.setdefault(choice.chunk, []).append(place)
    return dict(sorted(shares.items()))

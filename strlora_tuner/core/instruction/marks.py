"""The token ids that mark a user's turn, as a tokenizer writes them in the middle of a prompt.

A mark that is encoded alone may have other ids than the same text between words: a tokenizer may
write a blank before it, or put its last character and what the user typed into one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple

_WORDS = ("", "a", "Z")  # what a turn may begin with
_ENDS = ("a", "?", "a\n")  # and end with


class TurnMarks(NamedTuple):
    """Ids that open and close a turn; `also` has, for each id of `start`, others in its place."""

    start: list[int]
    also: list[list[int]]
    end: list[int]


def turn_marks(tokenizer: Any, before: str, after: str, others: Iterable[str]) -> TurnMarks:
    """Returns the marks of a chat template; either is empty where no token stands for it.

    Args:
        tokenizer: the model's.
        before: what the template writes before the user's text.
        after: what closes the turn.
        others: what may stand before `before`: a system turn, an earlier answer and its end.
    """

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    # A blank at the end of a mark may lie in the token of the word behind it.
    texts = [before.rstrip(" "), *(before + word for word in _WORDS)]
    start = _common([encoded(text) for text in texts])
    ends = [encoded(text + after)[::-1] for text in _ENDS]
    also = [set[int]() for _ in start]
    if start:
        also[-1] |= _longer_blanks(tokenizer, start[-1])
    alone = encoded(f"{before}a")
    for text in others:
        behind = encoded(f"{text}{before}a")[-len(alone) :]
        if behind[len(start) :] == alone[len(start) :]:
            for place, found, own in zip(also, behind, start, strict=False):
                place |= {found} - {own}
    others_than = [sorted(place) for place in also] if any(also) else []
    return TurnMarks(start, others_than, _common(ends)[::-1])


def _common(rows: list[list[int]]) -> list[int]:
    """Returns what all rows begin with."""
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))]


def _longer_blanks(tokenizer: Any, last: int) -> set[int]:
    """Returns the tokens of blanks that begin with the blank `last`: some may be the user's."""
    if not tokenizer.decode([last]).isspace():
        return set()
    name = tokenizer.convert_ids_to_tokens(last)
    longer = {i for text, i in tokenizer.get_vocab().items() if text.startswith(name)} - {last}
    return {token for token in longer if tokenizer.decode([token]).isspace()}

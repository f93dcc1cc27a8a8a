"""The form in which a run's questions are put: their system turn, and where their pictures stand.

A model that learned from "<image>What is it?" is asked so, not with a line feed in between, and one
that learned from "What is it?\\n<image>" not with the picture in front. With the standard library
alone: the server's plug-in reads it, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

IMAGE = "<image>"
MOST_SHOWN = 300  # characters of an example
T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """How a run puts its questions.

    Attributes:
        system: the turn before a question; None: there is none.
        left, right: what stands at the left and at the right of the pictures' marks.
        between: what stands between two marks.
        behind: the pictures stand behind the question's text; else before it.
        others: how many of the run's questions are put otherwise.
        example: the turns of one of those, as JSON.
    """

    system: str | None = None
    left: str = ""
    between: str = ""
    right: str = ""
    behind: bool = False
    others: int = 0
    example: str = ""

    def turns(self, question: str, pictures: int) -> list[dict[str, Any]]:
        """Return the turns of a question about so many pictures; its own <image> marks stay."""
        marks = self.left + self.between.join([IMAGE] * pictures) + self.right if pictures else ""
        if IMAGE not in question:
            question = question + marks if self.behind else marks + question
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*before, {"role": "user", "content": question}]

    def as_text(self, question: str = "QUESTION", pictures: int = 1) -> str:
        """Return the turns of a question as JSON, for people."""
        text = json.dumps(self.turns(question, pictures), ensure_ascii=False)
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."

    @property
    def note(self) -> str | None:
        """What to know where the run's questions have several forms; None: they have one."""
        if not self.others:
            return None
        return (
            f"note: {self.others} of the run's questions are put otherwise than {self.as_text()}, "
            f"such as {self.example}; ask those with {IMAGE} where their pictures stand, and where "
            "the system turn differs, with all their turns (`serve`)"
        )


def form_of(records: Sequence[dict[str, Any]]) -> Form:
    """Return the form that most questions with pictures have, of equally many the first one's.

    Where no question has a picture, it is the system turn alone.
    """
    asked = [_first_turns(record) for record in records]
    forms = [(_form(*turns), turns[1].count(IMAGE)) for turns in asked]
    known = [(form, pictures) for form, pictures in forms if form]
    shown = [(form, pictures) for form, pictures in known if pictures] or known
    chosen = _commonest([replace(form, between="") for form, _ in shown], Form())
    between = [f.between for f, n in shown if n > 1 and replace(f, between="") == chosen]
    # Where no question has several pictures, each stands as one alone does.
    alone = chosen.left if chosen.behind else chosen.right
    chosen = replace(chosen, between=_commonest(between, alone))
    others = [
        turns
        for turns, (form, pictures) in zip(asked, forms, strict=True)
        if form is None or form.turns("?", pictures) != chosen.turns("?", pictures)
    ]
    if not others:
        return chosen
    system, text = others[0]
    return replace(chosen, others=len(others), example=Form(system).as_text(text, 0))


def _first_turns(record: dict[str, Any]) -> tuple[str | None, str]:
    """The system turn and the user's first, before which the host puts marks that lack."""
    turns = record["messages"]
    system = str(turns[0]["content"]) if turns[0]["role"] == "system" else None
    text = next((str(turn["content"]) for turn in turns if turn["role"] == "user"), "")
    marks = sum(str(turn["content"]).count(IMAGE) for turn in turns)
    return system, IMAGE * (len(record.get("images") or []) - marks) + text


def _form(system: str | None, text: str) -> Form | None:
    """The form of one question; None: it has text on both sides of a picture."""
    if IMAGE not in text:
        return Form(system)
    first, *inner, last = text.split(IMAGE)
    behind = bool(first.strip())
    words = first.rstrip() if behind else last.lstrip()
    left, right = (first[len(words) :], last) if behind else (first, last[: -len(words) or None])
    if "".join([left, *inner, right]).strip() or len(set(inner)) > 1:
        return None
    return Form(system, left, inner[0] if inner else "", right, behind)


def _commonest(values: Sequence[T], otherwise: T) -> T:
    counts = Counter(values)
    return max(counts, key=counts.__getitem__, default=otherwise)

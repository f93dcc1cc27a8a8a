"""Which columns of a table hold picture, question and answer: as the user says, or as found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_prep.errors import DataError, shown
from data_prep.files import is_missing
from data_prep.sources.picture_marks import read_images
from data_prep.sources.raw_forms import ANSWERS, PAIRS, TURNS

# Where one question is asked of all pictures, these columns answer it too.
LABELS = ("label", "class", "category", "class_name", "caption")


@dataclass(frozen=True)
class ColumnNames:
    """The columns that the user named; None: found by their usual names.

    Attributes:
        image, question, answer: columns; dots separate the keys of nested objects.
        asked: one question for all samples.
    """

    image: str | None = None
    question: str | None = None
    answer: str | None = None
    asked: str | None = None

    def placed(self, raw: Any) -> Any:
        """Return a sample with the named columns under the names that every reader knows.

        A column that has such a name and means something else becomes `other_...`.

        Raises:
            DataError: a column is missing or empty, or the sample is written in turns.
        """
        if self == ColumnNames() or not isinstance(raw, dict):
            return raw
        taken: dict[str, Any] = {}
        if self.image and not _empty(picture := look_up(raw, self.image)):
            taken["images"] = picture
        if self.asked is not None:
            taken["question"] = self.asked
            self._refuse_question(raw)
        elif self.question:
            taken["question"] = needed(raw, self.question)
        if answer := self.answer_column(raw):
            taken["answer"] = needed(raw, answer)
        if {"question", "answer"} & taken.keys() and (turns := [k for k in TURNS if raw.get(k)]):
            raise DataError(
                "column",
                f"the sample is written in turns ({turns[0]!r}), which hold question and answer: "
                "leave --question, --question-column and --answer-column out",
            )
        named = {self.image, self.question, answer}
        rest = {key: value for key, value in raw.items() if key not in named}
        others = {"image", *taken} if "images" in taken else {*taken}
        return {f"other_{k}" if k in others else k: v for k, v in rest.items()} | taken

    def answer_column(self, raw: dict[str, Any]) -> str | None:
        """Return the column of the answer: as named, or a label where one question is asked."""
        if self.answer or self.asked is None:
            return self.answer
        return next((name for name in (*ANSWERS, *LABELS) if not _empty(raw.get(name))), None)

    def _refuse_question(self, raw: dict[str, Any]) -> None:
        if not _empty(raw.get("question")):
            raise DataError(
                "column",
                f"'question' asks {shown(raw['question'])}, and --question asks something else: "
                "leave one of them out",
            )

    def described(self, raw: dict[str, Any], task_column: str | None) -> str:
        """Return in words which columns of a sample were read."""
        plain = {str(key).lower(): str(key) for key in raw}
        turns = next((key for key in TURNS if key in plain), None)
        pair = next(((plain[q], plain[a]) for q, a in PAIRS if q in plain and a in plain), None)
        pictures = [self.image] if self.image else sorted(read_images(raw)[1])
        asked = "--question" if self.asked is not None else self.question or (pair or " ")[0]
        answer = self.answer_column(raw) or (pair or " ")[-1]
        roles = {"picture": ", ".join(pictures)}
        roles |= {"turns": turns} if turns else {"question": asked, "answer": answer}
        roles["task"] = task_column or plain.get("task", "")
        return ", ".join(f"{role} from {name}" for role, name in roles.items() if name.strip())


def look_up(raw: Any, column: str) -> Any:
    """Return the value of a column, None where it is missing; "meta.date" is a nested one."""
    # A column may itself be called "meta.date".
    if column in raw:
        return raw[column]
    value = raw
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def needed(raw: Any, column: str) -> Any:
    """Return the value of a column that every sample must have. Raises DataError."""
    value = look_up(raw, column)
    if _empty(value):
        raise DataError("column", missing(column))
    return value


def missing(column: str, elsewhere: bool = False) -> str:
    """Return the message about a column without a value; `elsewhere`: other samples have one."""
    what = "is empty here" if elsewhere else "is missing"
    return f"column {column!r} {what}; every sample must have it"


def _empty(value: Any) -> bool:
    return is_missing(value) or value == ""

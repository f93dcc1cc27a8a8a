"""Options to choose from that stand beside a question: they become a part of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from data_prep.errors import DataError, shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COLUMNS = ("options", "choices")


def read_options(raw: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Return the options of a sample (empty: none) and the columns A, B, ... that they came from.

    Raises:
        DataError: `options` or `choices` hold something that is no list of texts.
    """
    key = next((key for key in _COLUMNS if raw.get(key) not in (None, "", [], {})), None)
    if key is not None:
        return _as_list(key, raw[key]), set()
    letters: list[str] = []
    while len(letters) < len(LETTERS) and raw.get(LETTERS[len(letters)]) not in (None, ""):
        letters.append(LETTERS[len(letters)])
    if len(letters) < 2 or not all(isinstance(raw[name], str | int | float) for name in letters):
        return [], set()
    return [str(raw[name]) for name in letters], set(letters)


def _as_list(key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError):
                continue
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if not isinstance(value, list | tuple) or not all(
        isinstance(option, str | int | float) for option in value
    ):
        raise DataError(key, f"{key}: found {shown(value)}, expected a list of texts")
    return [str(option) for option in value]


def with_options(question: str, answer: str, options: list[str]) -> tuple[str, str]:
    """Return question and answer with the options written out: a line "A. text" for each.

    Only where the answer is a letter or a number of one of them (numbers count from 0). Where the
    answer is the text of an option, or the question holds all options, nothing is added.

    Raises:
        DataError: a number that none of the options has.
    """
    texts = [option.strip() for option in options]
    short = answer.strip().strip("().").strip()
    if answer.strip() in texts or len(options) > len(LETTERS):
        return question, answer
    if short.isdecimal():
        if int(short) >= len(options):
            raise DataError(
                "options",
                f"the answer is {answer!r}, but the options are numbered from 0 to "
                f"{len(options) - 1}: write the letter or the text of the option",
            )
        answer = LETTERS[int(short)]
    elif not (len(short) == 1 and short.upper() in LETTERS[: len(options)]):
        return question, answer
    if all(text.lower() in question.lower() for text in texts):
        return question, answer
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    return "\n".join([question, *lines]), answer

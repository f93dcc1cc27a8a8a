"""Options to choose from that stand beside a question: they become a part of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_prep.errors import DataError, shown
from data_prep.files import is_missing, read_literal

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Options = dict[str, str]  # text by label: "A", "B", ... or "1", "2", ... as the source has them
_COLUMNS = ("options", "choices", "option", "choice")
_COLUMN = re.compile(r"(?:option|choice|opt)[ _-]?([A-Za-z]|\d{1,2})|([A-Z])", re.ASCII)
_LABELLED = re.compile(r"\s*\(?([A-Za-z]|\d{1,2})[.):\uff1a\u3001]\)?\s*(.*?)\s*", re.DOTALL)
_TEXT_KEYS, _LABEL_KEYS = ("text", "value", "content", "option"), ("label", "key", "letter", "id")


def read_options(raw: Mapping[str, Any]) -> tuple[Options, set[str]]:
    """Return the options of a sample by their labels (none: empty), and the columns that hold them.

    Raises:
        DataError: `options` or `choices` hold something that is no list of texts.
    """
    key = next((key for key in _COLUMNS if raw.get(key) not in (None, "", [], {})), None)
    if key is not None:
        return _read(key, raw[key]), set()
    columns = {
        name: match.group(1) or match.group(2)
        for name, value in raw.items()
        if (match := _COLUMN.fullmatch(name.lower() if len(name) > 1 else name))
        and not is_missing(value)
        and value != ""
        # Tables have columns named X or N, too: single letters are options only beside "A".
        and (len(name) > 1 or "A" in raw)
    }
    if len(columns) < 2 or not all(isinstance(raw[name], str | int | float) for name in columns):
        return {}, set()
    return {label.upper(): str(raw[name]) for name, label in columns.items()}, set(columns)


def _read(key: str, value: Any) -> Options:
    """Return the options that a field holds; the README of data_prep lists the forms."""
    value = read_literal(value)
    if isinstance(value, str):  # lines of "A. text"
        lines = [line for line in value.splitlines() if line.strip()]
        value = lines if len(lines) > 1 else value
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = value.get("label")
        texts = value["text"]
        value = dict(zip(labels, texts, strict=False)) if isinstance(labels, list) else texts
    if isinstance(value, list | tuple):
        pairs = [_pair(number, option) for number, option in enumerate(value)]
    elif isinstance(value, dict):
        pairs = [
            (str(label).strip(), text) for label, text in value.items() if not is_missing(text)
        ]
    else:
        pairs = []
    if not pairs or not all(isinstance(text, str | int | float) for _, text in pairs):
        raise DataError(key, f"{key}: found {shown(value)}, expected a list of texts")
    return _without_labels({label.upper(): str(text) for label, text in pairs})


def _pair(number: int, option: Any) -> tuple[str, Any]:
    label: Any = LETTERS[number] if number < len(LETTERS) else f"option {number}"
    if isinstance(option, dict):
        label = next((option[key] for key in _LABEL_KEYS if key in option), label)
        option = next((option[key] for key in _TEXT_KEYS if key in option), None)
    return str(label).strip(), option


def _without_labels(options: Options) -> Options:
    """Return the options without the labels that all of their texts begin with ("A. text")."""
    matches = [_LABELLED.fullmatch(text) for text in options.values()]
    plain = {match.group(1).upper(): match.group(2) for match in matches if match}
    same = list(plain) == list(options) or list(plain) == [str(n + 1) for n in range(len(options))]
    return plain if same and len(plain) == len(options) and all(plain.values()) else options


def with_options(question: str, answer: str, options: Options) -> tuple[str, str]:
    """Return question and answer with the options written out: a line "A. text" for each.

    Only where the answer is a letter, several of them, or a number of one. Numbers are labels where
    the options have such, else they count from 0; the answer then becomes the letter. Where the
    answer is the text of an option, or the question holds all options, nothing is added.

    Raises:
        DataError: a letter or number that none of the options has.
    """
    texts = [text.strip() for text in options.values()]
    plain = answer.strip()
    if plain in texts or len(options) > len(LETTERS):
        return question, answer
    known = all(len(label) == 1 and label in LETTERS for label in options)
    letters = dict(zip(options, options if known else LETTERS, strict=False))  # letter by label
    short = re.sub(r"\.0+$", "", plain).strip("().:").strip().upper()
    if re.fullmatch(r"-?\d+", short):
        at = list(options).index(short) if short in options else int(short)
        if not 0 <= at < len(options) or (short not in options and not known):
            raise _no_such(answer, options, known)
        answer = letters[list(options)[at]]
    elif not _names(plain, short, letters.values(), texts):
        if len(short) == 1 and short in LETTERS and short == plain.strip("().:").strip():
            raise _no_such(answer, options, known)
        return question, answer
    if all(text.lower() in question.lower() for text in texts):
        return question, answer
    lines = [f"{letters[label]}. {text}" for label, text in zip(options, texts, strict=True)]
    return "\n".join([question, *lines]), answer


def _names(plain: str, short: str, letters: Any, texts: list[str]) -> bool:
    """Return whether an answer names options by letter: "b", "(B)", "A, C", "B. its text"."""
    several = re.split(r"(?:[\s,;/&+]|\band\b)+", short, flags=re.IGNORECASE)
    several = list(short) if len(several) == 1 and short == plain.strip("().:").strip() else several
    labelled = _LABELLED.fullmatch(plain)
    if labelled and labelled.group(2) in texts:
        return True
    return bool(several) and all(part in letters for part in several)


def _no_such(answer: str, options: Options, known: bool) -> DataError:
    names = f"{', '.join(options)}{f' or 0 to {len(options) - 1}' if known else ''}"
    return DataError(
        "options",
        f"the answer is {answer!r}, but the options are {names}: write the label or the text of "
        "the option",
    )

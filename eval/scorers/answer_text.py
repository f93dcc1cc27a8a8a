"""What of a model's output is its answer, and what of a record its gold.

Thoughts, final-answer tags and end marks are no answer. Every `fixed` scorer reads answers through
`final_answer`; `released` scorers see the raw output.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from data_prep.files import is_missing

# A test sample, a prediction line or a line of an answers file: whatever has a gold answer.
GoldRecord = Mapping[str, Any]

_THOUGHT = (
    r"think(?:ing)?|thoughts?|reason(?:ing)?|reflection|rationale|analysis|(?:\w+_)?scratchpad"
)
# Opening and closing marks: <think>, <seed:think>, [THINK] (Magistral), Kimi's triangles,
# <|begin_of_thought|>, <|START_THINKING|>, the channels of gpt-oss, MedGemma's unused tokens.
_OPEN = (
    rf"<\|?\s*(?:\w+:)?(?:{_THOUGHT})(?:\s[^<>]*)?\|?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|<\|START_THINKING\|>|<\|channel\|>(?:analysis|commentary)\b|<unused94>(?:thought)?"
)
_CLOSE = (
    rf"<\|?\s*/\s*(?:\w+:)?(?:{_THOUGHT})\s*\|?>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|END_THINKING\|>|<\|channel\|>final(?:<\|message\|>)?|<unused95>"
)
_THOUGHT_MARK = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
# The same channels after a tokenizer dropped their special tokens: "analysis...assistantfinalB".
_BARE_CHANNELS = re.compile(r"\A\s*analysis.*?assistantfinal", re.DOTALL)
_ANSWER = r"(?:final[_ ]?)?answer|conclusion|response|solution"
_ANSWER_TAG = re.compile(
    rf"(?:<\s*(?P<tag>{_ANSWER})\s*>|<\|(?:begin_of_(?:solution|box)|START_RESPONSE)\|>)"
    rf"(?P<inner>.*?)"
    rf"(?:<\s*/\s*(?:{_ANSWER})\s*>|<\|(?:end_of_(?:solution|box)|END_RESPONSE)\|>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_END_MARK = re.compile(
    rf"(?:<\|(?:im_end|endoftext|eot_id|end|return|end_of_text)\|>|</s>|<eos>|<end_of_turn>"
    rf"|<\s*/\s*(?:{_ANSWER})\s*>)\Z",
    re.IGNORECASE,
)


class Answer(NamedTuple):
    """The answer in a model's output.

    Attributes:
        text: what is scored; empty where the output ends inside a thought.
        unfinished: the output opened a thought and never closed it.
    """

    text: str
    unfinished: bool = False


# The scorer, the blind score and the count of unfinished thoughts ask for the same outputs.
@lru_cache(maxsize=1 << 14)
def find_answer(output: str) -> Answer:
    """Return the answer in a model's output.

    The answer is what follows the last thought, or what came before it if nothing follows. A
    closing mark alone ends a thought that the chat template opened. An answer inside <answer>,
    <conclusion> or the like is read without the text around the tag. Other text is left as it is.
    """
    output = _BARE_CHANNELS.sub("", output)
    pieces, start, inside = [], 0, False
    for mark in _THOUGHT_MARK.finditer(output):
        if not inside:
            pieces.append(output[start : mark.start()])
        if mark["close"]:
            if not inside:  # all before it was the thought
                pieces.clear()
            inside, start = False, mark.end()
        else:
            inside = True
    if inside:
        # What a model considered before it was cut off is no answer of its own.
        return Answer("", unfinished=True)
    pieces.append(output[start:])
    text = next(filter(None, map(_without_end, reversed(pieces))), "")
    tagged = list(_ANSWER_TAG.finditer(text))
    return Answer(_without_end(tagged[-1]["inner"]) if tagged else text)


def _without_end(text: str) -> str:
    """Return `text` without blanks and end marks at its end."""
    text = text.rstrip()
    # Several may stand there: "B</answer><|im_end|>".
    while mark := _END_MARK.search(text):
        text = text[: mark.start()].rstrip()
    return text


def final_answer(output: str) -> str:
    """Return the text of the answer in a model's output; see `find_answer`."""
    return find_answer(output).text


# Where annotation files keep the text of one answer: VQA, TextVQA, COCO captions, SQuAD.
_TEXT_KEYS = ("answer", "caption", "text", "raw")
_LIST_KEYS = ("answers", "references", "captions")
_NUMPY_ARRAY = re.compile(r"\Aarray\((.*?)(?:,\s*dtype=[^()]*)?\)\Z", re.DOTALL)
# Quoted items and objects only: "[0.1, 0.2, 0.5, 0.6]" is a box and "(a)" an option.
_QUOTED_LIST = re.compile(r"\A[\[(]\s*(?:u?[\"']|\{).*[\"'}]\s*,?\s*[\])]\Z", re.DOTALL)


def gold_answers(record: GoldRecord) -> list[str]:
    """Return the gold answers of a record, at least one.

    A gold may be a text or a number, a list of them, a list of objects as VQA and COCO publish
    them ({"answer": "yes", "answer_confidence": ...}), an object with such a list, or the text of
    such a list ("['a red car', 'a car']", also as numpy prints it). null and NaN are no answers.

    Raises:
        ValueError: the record has none, or one that cannot be read.
    """
    # A caption's prediction line has one of its references under `gold`, too.
    for key in ("references", "gold", "answer", "answers"):
        if record.get(key) is not None and record[key] != []:
            texts = _texts(record[key])
            if not texts:
                name = record_name(record)
                raise ValueError(f"{name}: {key}: found {record[key]!r}, expected an answer")
            return texts
    for message in reversed(record.get("messages") or []):
        if message.get("role") == "assistant":
            return [str(message["content"])]
    raise ValueError(
        f"{record_name(record)}: no gold; expected 'gold', 'answer', 'references' or an assistant"
        f" turn, found the keys {sorted(record)}"
    )


def record_name(record: GoldRecord) -> str:
    """Return what a message calls a record, by whichever id it has."""
    return f"record {record.get('id', record.get('question_id'))!r}"


def _texts(value: object) -> list[str]:
    if is_missing(value):
        return []
    if isinstance(value, Mapping):
        for key in (*_LIST_KEYS, *_TEXT_KEYS):
            if not is_missing(value.get(key)):
                return _texts(value[key])
        raise ValueError(f"gold: found an object with the keys {sorted(value)}, expected 'answer'")
    if isinstance(value, str):
        listed = _listed(value)
        return [value] if listed is None else [text for item in listed for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [str(value)]


@lru_cache(maxsize=1 << 12)
def _listed(text: str) -> list[Any] | None:
    """Return the items of a text that is a list of texts or objects, None if it is no list.

    Raises:
        ValueError: it looks like one and cannot be read.
    """
    text = _NUMPY_ARRAY.sub(r"\1", text.strip())
    if not _QUOTED_LIST.match(text):
        return None
    try:
        items = json.loads(text)
    except ValueError:
        try:
            items = ast.literal_eval(text)
            # numpy separates its texts by blanks alone, and Python joins such literals into one.
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            strings = [token.string for token in tokens if token.type == tokenize.STRING]
            if isinstance(items, list) and all(isinstance(item, str) for item in items):
                items = [ast.literal_eval(string) for string in strings]
        # literal_eval runs out of memory or stack on text that is nested deeply enough.
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError) as error:
            raise ValueError(
                f"gold: found the text of a list that cannot be read ({text[:60]!r}); write a JSON"
                " list of texts"
            ) from error
    if not isinstance(items, list | tuple):  # ('a') is a text in parentheses
        return None
    readable = all(isinstance(item, str | dict) or is_missing(item) for item in items)
    return list(items) if readable else None

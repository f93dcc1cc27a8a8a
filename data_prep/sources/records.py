"""One sample: from any of the usual forms to the host's, and the rules that a host sample obeys.

Forms: host (`messages` of role and content, `images`), LLaVA and ShareGPT (`conversations` of from
and value, `image`), evaluation (`question_id`, `text`, `answer`) and flat pairs of columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, TypedDict, cast

from data_prep.errors import DataError, shown

Raw = dict[str, Any]  # a sample as its source has it


class Turn(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


class _Conversation(TypedDict):
    messages: list[Turn]


class HostSample(_Conversation, total=False):
    """A sample in the host's form. Other fields of the source stand beside these.

    Attributes:
        messages: [system,] user, assistant, ...
        images: paths relative to the stream folder, one for each `<image>` in the messages.
        task, id: every sample of a written stream has both.
        references: gold captions. answer_bbox, size: gold box, width and height of its picture.
        options: answers to choose from. question_id: as published.
    """

    images: list[str]
    task: str
    id: str
    references: list[str]
    answer_bbox: object
    size: object
    options: object
    question_id: object


PLACEHOLDER = "<image>"
_LINE_ENDS = re.compile(rf"({PLACEHOLDER})[ \t]*[\r\n]+")
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
# A question column and its answer column, tried in this order.
PAIRS = (
    ("text", "answer"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
)
_TURNS = ("messages", "conversations", "conversation")
_IMAGES = ("images", "image", "image_path")
_IDS = ("id", "question_id", "sample_id")
_USED = {*_TURNS, *_IMAGES, *_IDS, "system", "system_prompt", "task"}


def _plain(value: Any) -> Any:
    """Return what a Parquet file can hold and JSON cannot: times as ISO 8601 text."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise DataError("json-value", f"a field holds {shown(value)}, which JSON cannot express")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode
_FORMS = "'messages' (role, content), 'conversations' (from, value) or 'question' and 'answer'"


def to_host(raw: Any, resolve: Callable[[Any], str]) -> HostSample:
    """Return a sample in the host's form: messages, images, then `task`, `id` and other fields.

    A sample with images but without placeholders gets them before its first question. `task` and
    `id` are there only if the sample has them; fields of other names are kept. Line ends right
    after a placeholder are left out: what stands between a picture and the text is the chat
    template's affair (InternVL's writes a line end of its own), and published training samples
    have one where test sets, which have no placeholder, get none.

    Args:
        raw: the sample in any form, or the DataError that its reader found.
        resolve: returns the path of an image, relative to the stream folder; it is given what the
            sample holds, a path or {"bytes", "path"}.

    Raises:
        DataError: the sample cannot be used.
    """
    if isinstance(raw, DataError):
        raise raw
    if not isinstance(raw, dict):
        kind = type(raw).__name__
        raise DataError("not-object", f"found {shown(raw)} ({kind}), expected a JSON object")
    refuse_media(raw)
    turns, inline, used = _read_turns(raw)
    images = inline + _read_images(raw)
    check_turns(turns)
    _place_images(turns, len(images))
    record: Raw = {"messages": turns, "images": []}
    if (task := raw.get("task")) is not None:
        record["task"] = _label("task", task)
    name = next((raw[key] for key in _IDS if raw.get(key) is not None), None)
    if name is not None:
        record["id"] = _label("id", name)
    for key, value in raw.items():
        if key not in _USED and key not in used and value is not None:
            record[key] = value
    record["images"] = [resolve(image) for image in images]
    return cast("HostSample", record)


def check_host(raw: Any) -> HostSample:
    """Return `raw` if it is in the host's form to the letter, as the chunks of a stream must be.

    Raises:
        DataError: it is not.
    """
    if isinstance(raw, DataError):
        raise raw
    if not isinstance(raw, dict):
        kind = type(raw).__name__
        raise DataError("not-object", f"found {shown(raw)} ({kind}), expected a JSON object")
    if "messages" not in raw:
        raise DataError("no-turns", _no_turns(raw, "'messages'; make a stream of it with chunk"))
    refuse_media(raw)
    turns = raw["messages"]
    if not isinstance(turns, list):
        raise DataError("turns-type", f"messages: found {shown(turns)}, expected a list of turns")
    for number, turn in enumerate(turns, start=1):
        _check_host_turn(number, turn)
    check_turns(turns)
    images = raw.get("images", [])
    if not isinstance(images, list):
        raise DataError("images-type", f"images: found {shown(images)}, expected a list of paths")
    for image in images:
        if not isinstance(image, str):
            raise DataError("image-type", f"images: found {shown(image)}, expected a path as text")
    check_placeholders(turns, len(images))
    for key in ("task", "id"):
        if key in raw and (not isinstance(raw[key], str) or not raw[key]):
            raise DataError(f"{key}-type", f"{key}: found {shown(raw[key])}, expected text")
    return cast("HostSample", raw)


def refuse_media(raw: Raw) -> None:
    """Raise DataError for samples with video or audio: the shipped recipes train on images only."""
    for key in ("videos", "video", "audios", "audio"):
        if raw.get(key):
            raise DataError("media", f"{key}: video and audio are not supported; leave it out")


def check_turns(turns: list[Turn]) -> None:
    """Raise DataError unless the turns are [system,] user, assistant, ..., all with text."""
    if not turns:
        raise DataError("no-turns", "no turns; expected a user turn and an assistant turn")
    for number, turn in enumerate(turns, start=1):
        _check_content(number, turn)
    roles = [turn["role"] for turn in turns]
    start = 1 if roles[0] == "system" else 0
    for index, role in enumerate(roles[start:]):
        expected = "user" if index % 2 == 0 else "assistant"
        if role != expected:
            raise DataError(
                "role-order",
                f"turn {start + index + 1}: found {role!r}, expected {expected!r}: after an "
                "optional system turn, user and assistant alternate",
            )
    if roles[-1] != "assistant":
        raise DataError("no-answer", "the last turn is not the assistant's: the answer is missing")


def check_placeholders(turns: list[Turn], images: int) -> None:
    """Raise DataError unless there are as many `<image>` as images."""
    found = sum(str(turn["content"]).count(PLACEHOLDER) for turn in turns)
    if found != images:
        raise DataError(
            "placeholders",
            f"{found} {PLACEHOLDER} in the turns, but {images} images: write one for each image",
        )


def _check_content(number: int, turn: Turn) -> None:
    content, role = turn["content"], turn["role"]
    try:
        content.encode()
    except UnicodeEncodeError as error:
        bad = content[error.start : error.start + 1]
        raise DataError(
            "surrogate", f"turn {number}: {bad!r} is half of a surrogate pair; repair the text"
        ) from error
    if role == "assistant" and PLACEHOLDER in content:
        raise DataError("placeholder-in-answer", f"turn {number}: {PLACEHOLDER} in an answer")
    if role == "assistant" and not content.strip():
        raise DataError("empty-answer", f"turn {number}: the answer is empty; leave the sample out")
    if role == "user" and not content.replace(PLACEHOLDER, "").strip():
        raise DataError("empty-question", f"turn {number}: the question is empty")
    if "\0" in content:
        raise DataError("control", f"turn {number}: a NUL character in the text; remove it")


def _check_host_turn(number: int, turn: Any) -> None:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        raise DataError(
            "turn-keys", f"turn {number}: found {shown(turn)}, expected role and content"
        )
    if turn["role"] not in ("system", "user", "assistant"):
        raise DataError(
            "role",
            f"turn {number}: role {shown(turn['role'])}, expected system, user or assistant",
        )
    if not isinstance(turn["content"], str):
        raise DataError("content-type", _no_text(number, turn["content"]))


def _read_turns(raw: Raw) -> tuple[list[Turn], list[Any], set[str]]:
    """Return the turns, images found inside them, and the keys that were used."""
    key = next((key for key in _TURNS if raw.get(key) is not None), None)
    if key is None:
        return _read_pair(raw)
    written = raw[key]
    if not isinstance(written, list):
        raise DataError("turns-type", f"{key}: found {shown(written)}, expected a list of turns")
    inline: list[Any] = []
    turns = [_read_turn(number, turn, inline) for number, turn in enumerate(written, start=1)]
    system = raw.get("system") or raw.get("system_prompt")
    if system and not (turns and turns[0]["role"] == "system"):
        if not isinstance(system, str):
            raise DataError("content-type", f"system: found {shown(system)}, expected text")
        turns.insert(0, {"role": "system", "content": system})
    return turns, inline, set()


def _read_turn(number: int, turn: Any, inline: list[Any]) -> Turn:
    if not isinstance(turn, dict):
        raise DataError("turn-keys", f"turn {number}: found {shown(turn)}, expected an object")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role is None or ("content" not in turn and "value" not in turn):
        raise DataError(
            "turn-keys",
            f"turn {number}: found the keys {sorted(map(str, turn))}, "
            "expected role and content, or from and value",
        )
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        known = "system, user (human) or assistant (gpt)"
        raise DataError("role", f"turn {number}: role {shown(role)}, expected {known}")
    if isinstance(content, list):
        content = _join_parts(number, content, inline)
    if not isinstance(content, str):
        raise DataError("content-type", _no_text(number, content))
    return {"role": ROLES[role.strip().lower()], "content": content}


def _no_text(number: int, content: Any) -> str:
    if content is None:
        return f"turn {number}: the content is null, expected text"
    kind = type(content).__name__
    return f"turn {number}: content {shown(content)} ({kind}), expected text: put it in quotes"


def _join_parts(number: int, parts: list[Any], inline: list[Any]) -> str:
    """Return the text of a turn written in parts ({"type": "text"}, {"type": "image"})."""
    text = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text.append(part["text"])
        elif kind in ("image", "image_url"):
            image = part.get("image", part.get("image_url", part.get("url", part.get("path"))))
            inline.append(image.get("url") if isinstance(image, dict) and "url" in image else image)
            text.append(PLACEHOLDER)
        else:
            raise DataError("content-type", f"turn {number}: found the part {shown(part)}")
    return "".join(text)


def _read_pair(raw: Raw) -> tuple[list[Turn], list[Any], set[str]]:
    """Return the two turns of a sample with a question column and an answer column."""
    pair = next(((q, a) for q, a in PAIRS if q in raw and a in raw), None)
    if pair is None:
        for question, answer in PAIRS:
            if question in raw:
                raise DataError("no-answer", f"{question!r} has no {answer!r} beside it")
        raise DataError("no-turns", _no_turns(raw, _FORMS))
    question, answer = raw[pair[0]], raw[pair[1]]
    if not isinstance(question, str):
        raise DataError("content-type", f"{pair[0]}: found {shown(question)}, expected text")
    more = raw.get("input") if pair[0] == "instruction" else None
    if isinstance(more, str) and more:
        question = f"{question}\n{more}"
    turns: list[Turn] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _answer_text(pair[1], answer)},
    ]
    if isinstance(system := raw.get("system"), str) and system:
        turns.insert(0, {"role": "system", "content": system})
    return turns, [], {*pair, "input"} if more else set(pair)


def _answer_text(key: str, answer: Any) -> str:
    """Return the answer as text; numbers are written out, of a list the first counts."""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if answer is None or answer == []:
        raise DataError("no-answer", f"{key}: the answer is missing; leave the sample out")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError("content-type", f"{key}: found {shown(answer)}, expected text")
    return str(answer)


def _no_turns(raw: Raw, expected: str) -> str:
    keys = ", ".join(sorted(map(str, raw))[:12]) or "none"
    return f"found the keys: {keys}; expected {expected}"


def _read_images(raw: Raw) -> list[Any]:
    key = next((key for key in _IMAGES if raw.get(key) not in (None, "", [])), None)
    if key is None:
        return []
    images = raw[key] if isinstance(raw[key], list) else [raw[key]]
    for image in images:
        known = isinstance(image, str) or (
            isinstance(image, dict) and (image.get("bytes") or image.get("path"))
        )
        if not known:
            raise DataError("image-type", f"{key}: found {shown(image)}, expected a path as text")
    return images


def _place_images(turns: list[Turn], images: int) -> None:
    """Put the placeholders before the first question where a sample has none; no line end after."""
    if images and not any(PLACEHOLDER in turn["content"] for turn in turns):
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = PLACEHOLDER * images + first["content"]
    for turn in turns:
        turn["content"] = _LINE_ENDS.sub(r"\1", turn["content"])
    check_placeholders(turns, images)


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{key}-type", f"{key}: found {shown(value)}, expected text or a number")
    return str(value)


def encode(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of JSON, in UTF-8, with its line end.

    Raises:
        DataError: a field holds a number that JSON cannot express (1e999) or half of a
            surrogate pair.
    """
    try:
        return _ENCODER(record).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise DataError(
            "surrogate", "a field holds half of a surrogate pair; repair the text"
        ) from error
    except ValueError as error:
        raise DataError(
            "json-number", "a field holds an infinite number, which JSON cannot express"
        ) from error


def question_text(record: HostSample) -> str:
    """Return the text of the user's turns, placeholders taken out."""
    turns = (t["content"] for t in record["messages"] if t["role"] == "user")
    return "\n".join(text.replace(PLACEHOLDER, "").strip() for text in turns)


def answer_text(record: HostSample) -> str:
    """Return the last answer."""
    return str(record["messages"][-1]["content"])

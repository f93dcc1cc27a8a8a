"""One sample in the host's form, and the rules that it obeys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, TypedDict, cast

from typing_extensions import NotRequired

from data_prep.errors import DataError, shown
from data_prep.sources.boxes import check_objects

Raw = dict[str, Any]  # a sample as its source has it


class Turn(TypedDict):
    """One turn: `role` is system, user or assistant.

    `loss` says whether it is trained on, `loss_scale` how strongly; without them the recipe does.
    """

    role: str
    content: str
    loss: NotRequired[bool]
    loss_scale: NotRequired[float]


class HostSample(TypedDict):
    """A sample in the host's form. Other fields of the source stand beside these.

    Attributes:
        messages: [system,] user, assistant, ...
        images: paths relative to the stream folder, one for each `<image>` in the messages.
        task, id: every sample of a written stream has both.
        references: gold captions. answer_bbox, size: gold box, width and height of its picture.
        options: answers to choose from. question_id: as published.
    """

    messages: list[Turn]
    images: NotRequired[list[str]]
    task: NotRequired[str]
    id: NotRequired[str]
    references: NotRequired[list[str]]
    answer_bbox: NotRequired[object]
    size: NotRequired[object]
    options: NotRequired[object]
    question_id: NotRequired[object]


PLACEHOLDER = "<image>"


def _plain(value: Any) -> Any:
    """Return what a Parquet file can hold and JSON cannot: times as ISO 8601 text."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise DataError(
        "json-value",
        f"a field holds {shown(value)}, which JSON cannot express: leave its column out (if it is "
        "a picture, call it 'image')",
    )


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode


def expect_object(raw: Any) -> dict[str, Any]:
    """Return `raw`, which is to be a sample; DataError for anything else, or the one that it is."""
    if isinstance(raw, DataError):
        raise raw
    if not isinstance(raw, dict):
        kind = type(raw).__name__
        raise DataError("not-object", f"found {shown(raw)} ({kind}), expected a JSON object")
    return raw


def check_host(raw: Any) -> HostSample:
    """Return `raw` if it is in the host's form to the letter, as the chunks of a stream must be.

    Raises:
        DataError: it is not.
    """
    raw = expect_object(raw)
    if "messages" not in raw:
        raise DataError("no-turns", no_turns(raw, "'messages'; make a stream of it with chunk"))
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
    check_objects(raw)
    if raw.get("rejected_response") == turns[-1]["content"]:
        text = "rejected_response is the answer itself: the host deletes such a sample"
        raise DataError("rejected", text)
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
    marks = sum(str(turn["content"]).count(PLACEHOLDER) for turn in turns)
    if marks != images:
        raise DataError(
            "placeholders",
            f"{marks} {PLACEHOLDER} in the turns, but {images} images: write one for each image",
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
        raise DataError("content-type", no_text(number, turn["content"]))


def no_text(number: int, content: Any) -> str:
    if content is None:
        return f"turn {number}: the content is null, expected text"
    kind = type(content).__name__
    return f"turn {number}: content {shown(content)} ({kind}), expected text: put it in quotes"


def no_turns(raw: Raw, expected: str) -> str:
    keys = ", ".join(sorted(map(str, raw))[:12]) or "none"
    return f"found the keys: {keys}; expected {expected}"


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
    # That of `_plain`: a ValueError, too, but one that says what it found.
    except DataError:
        raise
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

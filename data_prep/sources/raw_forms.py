"""A sample in any of the usual forms -> the host's.

Forms: host (`messages` of role and content, `images`), LLaVA and ShareGPT (`conversations` of from
and value, `image`), parts, TRL (`prompt` and `completion` as turns), evaluation (`question_id`,
`text`, `answer`) and flat pairs of columns, with `history` and options.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any, cast

from data_prep.errors import DataError, shown
from data_prep.sources.answer_options import read_options, with_options
from data_prep.sources.boxes import read_objects
from data_prep.sources.picture_marks import place_images, read_images, refuse_lost
from data_prep.sources.records import (
    PLACEHOLDER,
    HostSample,
    Raw,
    Turn,
    check_turns,
    no_text,
    no_turns,
    refuse_media,
)

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
_IDS = ("id", "question_id", "sample_id")
_USED = {*_TURNS, "images", "image", "image_path", *_IDS, "system", "system_prompt", "task"}
_TURN = {"role", "from", "content", "value", "loss", "weight", "train", "loss_scale"}
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
    turns, inside, used = _read_turns(raw)
    listed, columns = read_images(raw)
    check_turns(turns)
    images = place_images(turns, inside, listed)
    if not images:
        refuse_lost({key: value for key, value in raw.items() if key not in used})
    record: Raw = {"messages": turns, "images": []}
    if (task := raw.get("task")) is not None:
        record["task"] = _label("task", task)
    name = next((raw[key] for key in _IDS if raw.get(key) is not None), None)
    if name is not None:
        record["id"] = _label("id", name)
    for key, value in raw.items():
        if key not in _USED | used | columns and value is not None:
            record[key] = read_objects(value) if key == "objects" else value
    record["images"] = [resolve(image) for image in images]
    return cast("HostSample", record)


def _read_turns(raw: Raw) -> tuple[list[Turn], list[Any], set[str]]:
    """Return the turns, images found inside them, and the keys that were used."""
    key = next((key for key in _TURNS if raw.get(key) is not None), None)
    used: set[str] = set()
    if key is not None:
        written = raw[key]
    elif isinstance(raw.get("prompt"), list) and isinstance(raw.get("completion"), list):
        key, written, used = "prompt", raw["prompt"] + raw["completion"], {"prompt", "completion"}
    else:
        return _read_pair(raw)
    if not isinstance(written, list):
        raise DataError("turns-type", f"{key}: found {shown(written)}, expected a list of turns")
    inline: list[Any] = []
    turns = [_read_turn(number, turn, inline) for number, turn in enumerate(written, start=1)]
    system = raw.get("system") or raw.get("system_prompt")
    if system and not (turns and turns[0]["role"] == "system"):
        if not isinstance(system, str):
            raise DataError("content-type", f"system: found {shown(system)}, expected text")
        turns.insert(0, {"role": "system", "content": system})
    return turns, inline, used


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
        raise DataError("content-type", no_text(number, content))
    out: Turn = {"role": ROLES[role.strip().lower()], "content": content}
    _read_loss(number, turn, out)
    return out


def unread_turn_keys(raw: Raw) -> set[str]:
    """Return the keys of a sample's turns that nobody reads: they are left out."""
    turns: list[Raw] = next((raw[key] for key in _TURNS if raw.get(key) is not None), [])
    return {str(key) for turn in turns for key, value in turn.items() if value is not None} - _TURN


def _read_loss(number: int, turn: Raw, out: Turn) -> None:
    """Keep whether a turn is trained on; `weight` (OpenAI) and `train` are other names for it."""
    names = ("loss", "weight", "train")
    loss = next((turn[key] for key in names if turn.get(key) is not None), None)
    if loss is not None:
        if loss not in (0, 1):
            raise DataError("loss", f"turn {number}: loss {shown(loss)}, expected true or false")
        out["loss"] = bool(loss)
    scale = turn.get("loss_scale")
    if scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise DataError("loss", f"turn {number}: loss_scale {shown(scale)}, expected a number")
        out["loss_scale"] = float(scale)


def _join_parts(number: int, parts: list[Any], inline: list[Any]) -> str:
    """Return the text of a turn written in parts ({"type": "text"}, {"type": "image"})."""
    text = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text.append(part["text"])
        elif kind in ("image", "image_url"):
            keys = ("image", "image_url", "url", "path", "base64")
            # None where the part only marks the place of a picture in `images`
            image = next((part[key] for key in keys if part.get(key) is not None), None)
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
        raise DataError("no-turns", no_turns(raw, _FORMS))
    question, answer = raw[pair[0]], raw[pair[1]]
    if not isinstance(question, str):
        raise DataError("content-type", f"{pair[0]}: found {shown(question)}, expected text")
    more = raw.get("input") if pair[0] == "instruction" else None
    if isinstance(more, str) and more:
        question = f"{question}\n{more}"
    options, columns = read_options(raw)
    said = _answer_text(pair[1], answer)
    if options:
        question, said = with_options(question, said, options)
    turns = _read_history(raw.get("history"))
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    if isinstance(system := raw.get("system"), str) and system:
        turns.insert(0, {"role": "system", "content": system})
    used = {*pair, *columns, "history"}
    return turns, [], used | {"input"} if more else used


def _read_history(history: Any) -> list[Turn]:
    """Return the earlier turns: pairs of question and answer, also as text."""
    if isinstance(history, str) and history:
        try:
            history = ast.literal_eval(history)
        except (ValueError, SyntaxError) as error:
            raise DataError(
                "history", f"history: found {shown(history)}, expected pairs in a list"
            ) from error
    if history is None or history == "":
        return []
    if not isinstance(history, list | tuple):
        raise DataError("history", f"history: found {shown(history)}, expected pairs in a list")
    turns: list[Turn] = []
    for pair in history:
        if isinstance(pair, dict) and ("role" in pair or "from" in pair):
            turns.append(_read_turn(len(turns) + 1, pair, []))
            continue
        if isinstance(pair, dict):
            pair = next(([pair[q], pair[a]] for q, a in PAIRS if q in pair and a in pair), pair)
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or not all(isinstance(text, str) for text in pair):
            raise DataError("history", f"history: found {shown(pair)}, expected [question, answer]")
        turns.append({"role": "user", "content": pair[0]})
        turns.append({"role": "assistant", "content": pair[1]})
    return turns


def _answer_text(key: str, answer: Any) -> str:
    """Return the answer as text; numbers are written out, of a list the first counts."""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if answer is None or answer == [] or (isinstance(answer, float) and math.isnan(answer)):
        raise DataError("no-answer", f"{key}: the answer is missing; leave the sample out")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError("content-type", f"{key}: found {shown(answer)}, expected text")
    return str(answer)


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{key}-type", f"{key}: found {shown(value)}, expected text or a number")
    return str(value)

"""A sample in any of the usual forms -> the host's.

Forms: host (`messages` of role and content, `images`), LLaVA and ShareGPT (`conversations` of from
and value, `image`), parts, TRL (`prompt` and `completion` as turns), evaluation (`question_id`,
`text`, `answer`) and flat pairs of columns, with `history` and options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from data_prep.errors import DataError, shown
from data_prep.files import is_missing, read_literal
from data_prep.sources.answer_options import read_options, with_options
from data_prep.sources.boxes import check_objects, read_objects
from data_prep.sources.image_paths import picture_of
from data_prep.sources.picture_marks import place_images, read_images, refuse_lost
from data_prep.sources.records import (
    PLACEHOLDER,
    HostSample,
    Raw,
    Turn,
    check_turns,
    expect_object,
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
# Columns with a question and with its answer, tried in this order; `text` may be a context.
QUESTIONS = ("question", "query", "prompt", "instruction", "problem", "user", "human", "input")
ANSWERS = ("answer", "response", "completion", "output", "solution", "answers", "assistant", "gpt")
PAIRS = (*((q, a) for q in QUESTIONS for a in ANSWERS), ("text", "answer"), ("text", "answers"))
TURNS = ("messages", "conversations", "conversation")
_IDS = ("id", "question_id", "sample_id")
_SYSTEM = ("system", "system_prompt")
_KNOWN = {*QUESTIONS, *ANSWERS, *TURNS, *_IDS, *_SYSTEM, "history", "images", "task", "options"}
_TURN = {"role", "from", "content", "value", "loss", "weight", "train", "loss_scale"}
_TEXT_PARTS, _IMAGE_PARTS = ("text", "input_text"), ("image", "image_url", "input_image")
_PICTURE_KEYS = ("image", "image_url", "url", "path", "file_name", "base64", "data", "source")
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
    raw = expect_object(raw)
    raw = {_plain_name(key, raw): value for key, value in raw.items()}
    refuse_media(raw)
    turns, inside, used = _read_turns(raw)
    listed, columns = read_images(raw)
    used |= columns | _put_system(raw, turns)
    check_turns(turns)
    images = place_images(turns, inside, listed)
    if not images:
        refuse_lost({key: value for key, value in raw.items() if key not in used}, turns)
    record: Raw = {"messages": turns, "images": []}
    if (task := raw.get("task")) is not None:
        record["task"] = _label("task", task)
    name = next((raw[key] for key in _IDS if raw.get(key) is not None), None)
    if name is not None:
        record["id"] = _label("id", name)
    for key, value in raw.items():
        value = read_objects(value) if key == "objects" else value
        if key not in used | {*_IDS, "task", "images"} and not is_missing(value):
            record[key] = value
    record["images"] = [resolve(image) for image in images]
    check_objects(record)
    return cast("HostSample", record)


def _plain_name(key: Any, raw: Raw) -> Any:
    """Return the name of a known column that is written in other case ("Question")."""
    plain = key.lower() if isinstance(key, str) else key
    return plain if plain in _KNOWN and plain not in raw else key


def _read_turns(raw: Raw) -> tuple[list[Turn], list[Any], set[str]]:
    """Return the turns, images found inside them, and the keys that were used."""
    key = next((key for key in TURNS if raw.get(key) is not None), None)
    if key is not None:
        written, used = raw[key], {key}
    elif isinstance(raw.get("prompt"), list) and isinstance(raw.get("completion"), list):
        key, written, used = "prompt", raw["prompt"] + raw["completion"], {"prompt", "completion"}
    else:
        return _read_pair(raw)
    written = read_literal(written)
    if isinstance(written, dict) and all(isinstance(part, list) for part in written.values()):
        # What `datasets` makes of Sequence({"role": ..., "content": ...}).
        written = [
            dict(zip(written, turn, strict=False)) for turn in zip(*written.values(), strict=False)
        ]
    if not isinstance(written, list):
        raise DataError("turns-type", f"{key}: found {shown(written)}, expected a list of turns")
    if raw.get("history") not in (None, "", [], "[]"):
        raise DataError("history", f"history beside {key}: put its turns into {key}")
    inline: list[Any] = []
    turns = [_read_turn(number, turn, inline) for number, turn in enumerate(written, start=1)]
    options, columns = read_options(raw)
    if options and [turn["role"] for turn in turns[-2:]] == ["user", "assistant"]:
        question, answer = turns[-2], turns[-1]
        question["content"], answer["content"] = with_options(
            question["content"], answer["content"], options
        )
    return turns, inline, used | columns


def _put_system(raw: Raw, turns: list[Turn]) -> set[str]:
    """Put the system prompt of a column before the turns; return the columns that hold one."""
    used = {key for key in _SYSTEM if not is_missing(raw.get(key)) and raw[key] != ""}
    texts = [raw[key] for key in _SYSTEM if key in used]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("content-type", f"system: found {shown(texts)}, expected text")
    if turns and turns[0]["role"] == "system":
        texts.insert(0, turns.pop(0)["content"])
    if len(set(texts)) > 1:
        raise DataError("system", f"several system prompts: {shown(texts)}; keep one of them")
    if texts:
        turns.insert(0, {"role": "system", "content": texts[0]})
    return {*_SYSTEM} & raw.keys()


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
    if isinstance(content, str) and content.lstrip()[:1] == "[":
        # Parts may be JSON in a column of text; but an ordinary text may begin with "[", too.
        parts = read_literal(content)
        typed = isinstance(parts, list) and parts and all(_part_kind(part) for part in parts)
        content = parts if typed else content
    if isinstance(content, list):
        content = _join_parts(number, content, inline)
    if not isinstance(content, str):
        raise DataError("content-type", no_text(number, content))
    out: Turn = {"role": ROLES[role.strip().lower()], "content": content}
    _read_loss(number, turn, out)
    return out


def unread_turn_keys(raw: Raw) -> set[str]:
    """Return the keys of a sample's turns that nobody reads: they are left out."""
    lists = (raw.get(key) for key in (*TURNS, "prompt", "completion", "history"))
    turns = [turn for turns in lists if isinstance(turns, list) for turn in turns]
    known = [
        turn for turn in turns if isinstance(turn, dict) and ("role" in turn or "from" in turn)
    ]
    return {str(key) for turn in known for key, value in turn.items() if value is not None} - _TURN


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


def _part_kind(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def _join_parts(number: int, parts: list[Any], inline: list[Any]) -> str:
    """Return the text of a turn written in parts ({"type": "text"}, {"type": "image"}).

    Their pictures go to `inline`; None or their index where a part only marks the place of one.
    """
    text = []
    for part in parts:
        kind, fields = _part_kind(part), part if isinstance(part, dict) else {"text": part}
        words = next((fields[key] for key in ("text", "content", "value") if fields.get(key)), "")
        if kind in _IMAGE_PARTS or (kind is None and fields.get("image")):
            image = next((fields[key] for key in _PICTURE_KEYS if fields.get(key)), None)
            inline.append(fields.get("index") if image is None else picture_of(image) or image)
            text.append(PLACEHOLDER)
        elif kind in (None, *_TEXT_PARTS) and isinstance(words, str):
            text.append(words)
        else:
            raise DataError("content-type", f"turn {number}: found the part {shown(part)}")
    return "".join(text)


def _read_pair(raw: Raw) -> tuple[list[Turn], list[Any], set[str]]:
    """Return the two turns of a sample with a question column and an answer column."""
    pair = next(((q, a) for q, a in PAIRS if q in raw and a in raw), None)
    if pair is None:
        for question in (*QUESTIONS, "text"):
            if question in raw:
                raise DataError("no-answer", f"{question!r} has no 'answer' beside it")
        raise DataError("no-turns", no_turns(raw, _FORMS))
    question, answer = raw[pair[0]], raw[pair[1]]
    inline: list[Any] = []
    turns = _read_history(raw.get("history"), inline)
    if isinstance(question, list):
        question = _join_parts(len(turns) + 1, question, inline)
    more = raw.get("input") if pair[0] == "instruction" else None
    if more is not None and not isinstance(more, str):
        raise DataError("content-type", f"input: found {shown(more)}, expected text")
    if more and isinstance(question, str):
        question = f"{question}\n{more}".lstrip("\n")
    if not isinstance(question, str):
        raise DataError("content-type", f"{pair[0]}: found {shown(question)}, expected text")
    options, columns = read_options(raw)
    answer_text = answer_of(pair[1], answer)
    if options:
        question, answer_text = with_options(question, answer_text, options)
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer_text}]
    used = {*pair, *columns, "history"}
    return turns, inline, used | {"input"} if more is not None else used


def _read_history(history: Any, inline: list[Any]) -> list[Turn]:
    """Return the earlier turns: pairs of question and answer, or turns, also as text."""
    history = read_literal(history)
    if is_missing(history) or history == "":
        return []
    if not isinstance(history, list | tuple):
        raise DataError("history", f"history: found {shown(history)}, expected pairs in a list")
    turns: list[Turn] = []
    for pair in history:
        if isinstance(pair, dict) and ("role" in pair or "from" in pair):
            turns.append(_read_turn(len(turns) + 1, pair, inline))
            continue
        if isinstance(pair, dict):
            pair = next(([pair[q], pair[a]] for q, a in PAIRS if q in pair and a in pair), pair)
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or not all(isinstance(text, str) for text in pair):
            raise DataError("history", f"history: found {shown(pair)}, expected [question, answer]")
        turns.append({"role": "user", "content": pair[0]})
        turns.append({"role": "assistant", "content": pair[1]})
    return turns


def answer_of(key: str, answer: Any) -> str:
    """Return the answer as text; numbers are written out, of a list the first counts.

    An item may be an object, as VQA publishes them: {"answer": "net", "answer_id": 1}.
    """
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if isinstance(answer, dict) and "answer" in answer:
        answer = answer["answer"]
    if is_missing(answer) or answer == []:
        raise DataError("no-answer", f"{key}: the answer is missing; leave the sample out")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError("content-type", f"{key}: found {shown(answer)}, expected text")
    return str(answer)


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{key}-type", f"{key}: found {shown(value)}, expected text or a number")
    return str(value)

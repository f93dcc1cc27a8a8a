"""Loaded by `swift deploy`: the key, the form of questions, and what cannot be answered.

Every user of a machine can read the command lines of its processes: the key comes from the
environment. SWIFT_MEDIA_ALLOWED_DIRS, which recipes/use/serve.py sets, keeps the host from opening
files of this machine that a client names.

A question that comes alone, without a system turn and without <image> marks, is put as the run's
evaluation puts its own; all other turns stay as they are. Pictures that the host would cut to white
or cannot decode, and marks that do not fit the pictures, are refused. `max_completion_tokens`,
which the host does not know, counts as `max_tokens`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any

from swift.pipelines.infer.deploy import SwiftDeploy
from swift.template.vision_utils import load_file

from data_prep.errors import ERROR
from data_prep.images import inspect
from eval.question_form import IMAGE, Form
from strlora_tuner import host_api
from strlora_tuner.options import SERVE_FORM, SERVE_KEY

host_api.check("serving")
install_by_host = SwiftDeploy._install_auth_middleware
prepare_by_host = SwiftDeploy._prepare_request_media
create_by_host = SwiftDeploy.create_chat_completion
LIMIT = "max_completion_tokens"
PICTURES = ("image", "image_url")  # types of the parts of a turn


def install_with_key(self: Any) -> None:
    """Have the host ask its clients for the key, if there is one."""
    self.args.api_key = os.environ.get(SERVE_KEY) or None
    install_by_host(self)


@contextmanager
def prepare_in_form(request: Any) -> Iterator[Any]:
    """Give the host's request with its pictures at hand, put in the run's form and checked.

    Raises:
        ValueError: pictures and marks do not fit, or a picture cannot be shown; the client is told.
    """
    with prepare_by_host(request) as ready:
        put_in_form(ready, Form(**json.loads(os.environ.get(SERVE_FORM) or "{}")))
        check_pictures(ready)
        yield ready


def put_in_form(request: Any, form: Form) -> None:
    """Put the one turn of a request in the form of the run's questions, unless it has its own."""
    turns = request.messages
    if len(turns) != 1 or turns[0].get("role") != "user":
        return
    parts = _parts(turns[0])
    texts = [part["type"] == "text" for part in parts]
    words = "".join(part["text"] for part in parts if part["type"] == "text")
    # Text on both sides of a picture says where it stands, as a mark does.
    one_side = texts in (sorted(texts), sorted(texts, reverse=True))
    others = [part for part in parts if part["type"] not in ("text", *PICTURES)]
    if words and one_side and not others and IMAGE not in words:
        request.images = [*_pictures(parts), *request.images]
        request.messages = form.turns(words, len(request.images))


def check_pictures(request: Any) -> None:
    """Raise ValueError where pictures and their marks do not fit or a picture cannot be shown."""
    parts = [part for turn in request.messages if turn["role"] == "user" for part in _parts(turn)]
    marks = sum(
        part["text"].count(IMAGE) if part["type"] == "text" else part["type"] in PICTURES
        for part in parts
    )
    pictures = [*_pictures(parts), *request.images]
    if marks and marks != len(pictures):
        raise ValueError(
            f"the question marks {marks} pictures with {IMAGE}, {len(pictures)} are given; give as "
            "many, or leave the marks out"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        for number, picture in enumerate(pictures, 1):
            path.write_bytes(_bytes_of(picture, number))
            found = inspect(path, str(number)).findings
            if wrong := [text for _, text, severity in found if severity == ERROR]:
                raise ValueError("; ".join(wrong))


def _parts(turn: Any) -> Sequence[Any]:
    content = turn.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content or () if isinstance(part, dict)]


def _pictures(parts: Sequence[Any]) -> list[Any]:
    """The pictures in the parts of turns, in their order."""
    found = [part.get(part["type"]) for part in parts if part["type"] in PICTURES]
    return [each["url"] if isinstance(each, dict) else each for each in found if each]


def _bytes_of(picture: Any, number: int) -> bytes:
    try:
        loaded = load_file(picture)  # as the host will
    except (ValueError, AssertionError, OSError) as error:
        text = f"image {number} cannot be read ({error}); expected data:image/png;base64,..."
        raise ValueError(text) from error
    if not isinstance(loaded, BytesIO):
        raise ValueError(f"image {number} is {type(picture).__name__}; expected base64 or a URL")
    return loaded.getvalue()


@wraps(create_by_host)  # the server reads the parameters of a request from the signature
async def create_within(self: Any, request: Any, raw_request: Any, **more: Any) -> Any:
    """Answer a request, at most as long as it asks by either name."""
    limit = (await raw_request.json()).get(LIMIT)
    if limit is not None:
        if type(limit) is not int or limit < 1:
            return self.create_error_response(400, f"{LIMIT} is {limit!r}; expected 1 or more")
        request.max_tokens = limit
    return await create_by_host(self, request, raw_request, **more)


host_api.replace(
    "swift.pipelines.infer.deploy:SwiftDeploy._install_auth_middleware", install_with_key
)
host_api.replace(
    "swift.pipelines.infer.deploy:SwiftDeploy._prepare_request_media", staticmethod(prepare_in_form)
)
host_api.replace("swift.pipelines.infer.deploy:SwiftDeploy.create_chat_completion", create_within)

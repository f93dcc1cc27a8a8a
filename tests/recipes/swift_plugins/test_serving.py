"""What the server makes of a request before the host sees it."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
from dataclasses import asdict
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from eval.question_form import Form

pytest.importorskip("swift")
SYSTEM = {"role": "system", "content": "Be brief."}
BEHIND = Form("Be brief.", left="\n", between="\n", behind=True)


def picture(mode: str = "RGB") -> str:
    file = BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def shown(data: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data or picture()}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def prepared(
    monkeypatch: pytest.MonkeyPatch, messages: list[Any], images: tuple[str, ...] = ()
) -> Any:
    """The host's request as the model is to get it."""
    from swift.infer_engine.protocol import InferRequest

    from recipes.swift_plugins import serving

    monkeypatch.setenv("STRLORA_SERVE_FORM", json.dumps(asdict(BEHIND)))
    with serving.prepare_in_form(InferRequest(messages, list(images))) as request:
        return request


@pytest.mark.parametrize(
    "content",
    [
        [shown(), text("Which?")],
        [text("Which?"), shown()],
        [text("Wh"), text("ich?"), shown()],
        [{"type": "image", "image": picture()}, text("Which?")],
    ],
)
def test_a_question_alone_is_put_in_the_run_s_form(
    monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    request = prepared(monkeypatch, [{"role": "user", "content": content}])
    assert request.messages == [SYSTEM, {"role": "user", "content": "Which?\n<image>"}]
    assert request.images == [picture()]


def test_pictures_beside_the_turns_and_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = {"role": "user", "content": "Which?"}
    request = prepared(monkeypatch, [turn], (picture(), picture("L")))
    assert request.messages == [SYSTEM, {"role": "user", "content": "Which?\n<image>\n<image>"}]
    assert request.images == [picture(), picture("L")]
    request = prepared(monkeypatch, [turn])
    assert request.messages == [SYSTEM, turn]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Think."}, {"role": "user", "content": "Why?"}],
        [{"role": "user", "content": [text("Is "), shown(), text(" it?")]}],
        [{"role": "user", "content": [shown(), text("Is it this?"), shown()]}],
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
         {"role": "user", "content": "Sure?"}],
        [{"role": "user", "content": [{"type": "audio", "audio": "x" * 300}, text("What?")]}],
        [{"role": "user", "content": ""}],
    ],
)  # fmt: skip
def test_turns_with_a_form_of_their_own_stay(
    monkeypatch: pytest.MonkeyPatch, messages: list[Any]
) -> None:
    from recipes.swift_plugins import serving

    request = SimpleNamespace(messages=list(messages), images=[])
    serving.put_in_form(request, BEHIND)
    assert request.messages == messages
    assert request.images == []
    marked = [{"role": "user", "content": "<image>\nWhich?"}]
    assert prepared(monkeypatch, marked, (picture(),)).messages == marked


@pytest.mark.parametrize(
    ("content", "images", "message"),
    [
        ([shown(picture("I;16")), text("Which?")], (), "image '1' has 16 or 32 bits a pixel"),
        ("<image><image>Which?", (picture(),), "marks 2 pictures with <image>, 1 are given"),
        ("<image>Which?", (), "marks 1 pictures with <image>, 0 are given"),
        ("Which?", (picture(), picture()[:-40]), "image '2' is not an image"),
        ("Which?", ("data:image/png,abc",), "image 1 cannot be read .*expected data:image/png"),
        ("Which?", ("aGFsZiBhIHBpY3R1cmU=",), "image '1' is not an image"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    monkeypatch: pytest.MonkeyPatch, content: Any, images: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(monkeypatch, [{"role": "user", "content": content}], images)


def test_the_longest_answer_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.swift_plugins import serving

    async def by_host(self: Any, request: Any, raw_request: Any, **more: Any) -> Any:
        return request.max_tokens

    def asked(body: dict[str, Any]) -> Any:
        async def read() -> dict[str, Any]:
            return body

        server = SimpleNamespace(create_error_response=lambda code, words: (code, words))
        request = SimpleNamespace(max_tokens=body.get("max_tokens"))
        return asyncio.run(serving.create_within(server, request, SimpleNamespace(json=read)))

    real = inspect.signature(serving.create_within)
    assert [str(each.annotation) for each in real.parameters.values()][1:3] == [
        "<class 'swift.infer_engine.protocol.ChatCompletionRequest'>",
        "<class 'starlette.requests.Request'>",
    ]
    monkeypatch.setattr(serving, "create_by_host", by_host)
    assert asked({}) is None
    assert asked({"max_tokens": 7}) == 7
    assert asked({"max_tokens": 7, "max_completion_tokens": 1}) == 1
    for wrong in (0, "1", True, 1.5):
        code, words = asked({"max_completion_tokens": wrong})
        assert code == 400
        assert words == f"max_completion_tokens is {wrong!r}; expected 1 or more"

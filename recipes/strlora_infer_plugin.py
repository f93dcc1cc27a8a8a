"""What `swift infer` is told for an evaluation: `--external_plugins <this file>`.

The host drops why an answer ended, and one question that cannot be encoded (a broken picture, a
prompt longer than max_length) ends the whole process. With this file every result line holds
`finish_reason` (stop | length | error), and a question that fails has no response but an `error`.
"""

from __future__ import annotations

from typing import Any

from swift.infer_engine.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    UsageInfo,
)
from swift.pipelines.infer.infer import SwiftInfer
from swift.utils import get_logger

logger = get_logger()


def answer_all(self: Any, requests: list[dict[str, Any]], *args: Any, **kwargs: Any) -> list[Any]:
    """Ask the engine; note in every request, which the host writes out, how its answer ended."""
    self.infer_engine.strict = False
    responses = self.infer_engine.infer(requests, *args, **kwargs)
    answers = []
    for request, response in zip(requests, responses, strict=True):
        if isinstance(response, Exception):
            request["error"] = f"{type(response).__name__}: {response}"
            logger.error(f"no answer to {request.get('messages')}: {request['error']}")
            response = _no_answer()
        request["finish_reason"] = response.choices[0].finish_reason
        answers.append(response)
    return answers


def _no_answer() -> ChatCompletionResponse:
    message = ChatMessage(role="assistant", content=None)
    choice = ChatCompletionResponseChoice(index=0, message=message, finish_reason="error")
    return ChatCompletionResponse(model="", choices=[choice], usage=UsageInfo(0, 0, 0))


# The host looks `infer` up on its engine when it has none of its own.
SwiftInfer.infer = answer_all

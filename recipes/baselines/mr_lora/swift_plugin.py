"""MR-LoRA in the host: route every question, then answer it with the adapter chosen for it.

For `swift infer` and `swift deploy`: `--external_plugins <this file>` with
MR_LORA_POOL_FILE=<pool.json>; it brings along recipes/swift_plugins/inference.py. One process holds
one model and all adapters. A block of questions (the host's write_batch_size) is put to the router
first, in batches, greedily; then each adapter answers its share of the block, in batches.
Every result line holds `expert` (the chunk whose adapter answered), `router_answer` (the
router's answer; null with a single adapter) and `routed` (false: no legal letter, the fallback
answered). Nothing is drawn at random and no task is read.
"""

from __future__ import annotations

import asyncio
import os
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from swift.utils import get_logger

from data_prep.files import Record, read_json
from data_prep.task_files.router import router_question
from recipes.baselines.mr_lora.prompt import Choice, places_by_chunk, read_letter
from recipes.swift_plugins import inference
from strlora_tuner import host_api

if TYPE_CHECKING:  # a container that runs the host needs nothing of the orchestrator
    from recipes.baselines.mr_lora.pool import PoolFile

logger = get_logger()
POOL_FILE = "MR_LORA_POOL_FILE"
ROUTER = "router"
ROUTER_TOKENS = 6  # two letters, an end, and room for words that show what went wrong


class Pool:
    """The adapters of a pool inside one PEFT model.

    The host has loaded the newest adapter; the others and the router are added here, once.
    """

    def __init__(self, model: Any, content: PoolFile) -> None:
        self.model, self.content = model, content
        self.letters = {entry["letter"]: int(entry["chunk"]) for entry in content["experts"]}
        for entry in content["experts"]:
            model.load_adapter(entry["adapter"], self.name(entry["chunk"]))
        if content["router"]:
            model.load_adapter(content["router"], ROUTER)

    @staticmethod
    def name(chunk: int) -> str:
        """The adapter's name inside the model."""
        return f"chunk_{chunk}"

    def use(self, name: str) -> None:
        """Switches to one adapter."""
        # inference_mode: else PEFT makes the parameters of the adapter trainable.
        self.model.set_adapter(name, inference_mode=True)

    def choose(self, engine: Any, requests: list[Record], config: Any) -> list[Choice]:
        """Asks the router about each request; an illegal answer means the fallback."""
        fallback = int(self.content["fallback"])
        if not self.content["router"]:
            return [Choice(fallback, None, True) for _ in requests]
        self.use(ROUTER)
        config = deepcopy(config)
        config.max_tokens = ROUTER_TOKENS
        experts = [entry["text"] for entry in self.content["experts"]]
        questions = [router_question(request, experts) for request in requests]
        answers = inference.ask(engine, questions, config)
        return [read_letter(_text(answer), self.letters, fallback) for answer in answers]


def _text(answer: Any) -> str | None:
    """The router's answer; None where the question could not be put to it."""
    if isinstance(answer, Exception):
        logger.error(f"the router could not be asked: {type(answer).__name__}: {answer}")
        return None
    return str(answer.choices[0].message.content)


def route_and_answer(
    self: Any, requests: list[Record], config: Any, *args: Any, **kwargs: Any
) -> list[Any]:
    """Return the responses in the order of the requests; note in each who answered and why."""
    pool = getattr(self, "strlora_pool", None)
    # Not when this file is loaded: plug-ins come before the model.
    if pool is None:
        content = read_json(Path(os.environ[POOL_FILE]))
        pool = self.strlora_pool = Pool(self.infer_engine.model, content)
    # The router is asked before `answer_all`, which switches this off, too: a question that cannot
    # be encoded must not end the process.
    self.infer_engine.strict = False
    choices = pool.choose(self.infer_engine, requests, config)
    responses: dict[int, Any] = {}
    for chunk, places in places_by_chunk(choices).items():
        pool.use(pool.name(chunk))
        share = [requests[place] for place in places]
        answers = inference.answer_all(self, share, config, *args, **kwargs)
        responses |= dict(zip(places, answers, strict=True))
    for request, choice in zip(requests, choices, strict=True):
        request |= {"expert": choice.chunk, "router_answer": choice.answer, "routed": choice.legal}
    return [responses[place] for place in range(len(requests))]


def _answer_one(self: Any, request: Any, config: Any) -> Any:
    with _ONE_AT_A_TIME:  # they share one model, and switch its adapter
        asked = asdict(request)
        response = route_and_answer(self, [asked], config)[0]
    if "error" in asked:
        raise ValueError(asked["error"])
    return response


async def serve_one(self: Any, request: Any, config: Any, **kwargs: Any) -> Any:
    """Return the response to one request of `swift deploy`."""
    if config.stream:
        raise ValueError("this model routes every question first and cannot stream: stream=false")
    # In a thread: the event loop must go on answering /health and taking requests.
    return await asyncio.to_thread(_answer_one, self, request, config)


_ONE_AT_A_TIME = Lock()
host_api.replace("swift.pipelines.infer.infer:SwiftInfer.infer", route_and_answer)
host_api.replace("swift.pipelines.infer.deploy:SwiftDeploy.infer_async", serve_one)

"""MR-LoRA in `swift infer`: route every question, then answer it with the adapter chosen for it.

`--external_plugins recipes/swift_plugins/inference.py <this file>` with
MR_LORA_POOL_FILE=<pool.json>. One process holds one model and all adapters. A block of questions
(the host's write_batch_size) is put to the router first, in batches, greedily; then each adapter
answers its share of the block, in batches.
Every result line holds `expert` (the chunk whose adapter answered), `router_answer` (what the
router said; null with a single adapter) and `routed` (false: no legal letter, the fallback
answered). Nothing is drawn at random and no task is read.
"""

from __future__ import annotations

import json
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

# ms-swift imports this file by its stem, with only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from swift.pipelines.infer.infer import SwiftInfer
from swift.utils import get_logger

from data_prep.mllm_cl.router import router_question
from recipes.baselines.mr_lora.choice import Choice, grouped, read_letter
from recipes.swift_plugins import inference as host

logger = get_logger()
POOL_FILE = "MR_LORA_POOL_FILE"
ROUTER = "router"
ROUTER_TOKENS = 6  # two letters, an end, and room for words that show what went wrong


class Pool:
    """The adapters of a pool inside one PEFT model.

    The host has loaded the newest adapter; the others and the router are added here, once.
    """

    def __init__(self, model: Any, content: dict[str, Any]) -> None:
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
        self.model.set_adapter(name, inference_mode=True)

    def choose(self, engine: Any, requests: list[dict[str, Any]], config: Any) -> list[Choice]:
        """Asks the router about each request; what it says wrongly goes to the fallback."""
        fallback = int(self.content["fallback"])
        if not self.content["router"]:
            return [Choice(fallback, None, True) for _ in requests]
        self.use(ROUTER)
        config = deepcopy(config)
        config.max_tokens = ROUTER_TOKENS
        experts = [entry["text"] for entry in self.content["experts"]]
        questions = [router_question(request, experts) for request in requests]
        answers = host.ask(engine, questions, config)
        return [read_letter(_text(answer), self.letters, fallback) for answer in answers]


def _text(answer: Any) -> str | None:
    """The router's words; None where the question could not be put to it."""
    if isinstance(answer, Exception):
        logger.error(f"the router was not asked: {type(answer).__name__}: {answer}")
        return None
    return str(answer.choices[0].message.content)


def route_and_answer(
    self: Any, requests: list[dict[str, Any]], config: Any, *args: Any, **kwargs: Any
) -> list[Any]:
    """Return the responses in the order of the requests; note in each who answered and why."""
    pool = getattr(self, "strlora_pool", None)
    if pool is None:
        content = json.loads(Path(os.environ[POOL_FILE]).read_text(encoding="utf-8"))
        pool = self.strlora_pool = Pool(self.infer_engine.model, content)
    self.infer_engine.strict = False
    choices = pool.choose(self.infer_engine, requests, config)
    shares: dict[int, list[int]] = grouped(choices)
    responses: dict[int, Any] = {}
    for chunk, places in shares.items():
        pool.use(pool.name(chunk))
        share = [requests[place] for place in places]
        answers = host.answer_all(self, share, config, *args, **kwargs)
        responses |= dict(zip(places, answers, strict=True))
    for request, choice in zip(requests, choices, strict=True):
        request |= {"expert": choice.chunk, "router_answer": choice.said, "routed": choice.legal}
    return [responses[place] for place in range(len(requests))]


SwiftInfer.infer = route_and_answer

"""Loaded by `swift infer` for an evaluation: `--external_plugins <this file>`.

The host drops why an answer ended, and one question that cannot be encoded (a broken picture, a
prompt longer than max_length) ends the whole process. With this file every result line holds
`finish_reason` (stop | length | error), and a question that fails has no response but an `error`;
where a method has a router a chunk, `expert` is the chunk whose router the question took.
A batch does not wait for its longest answer: row_generation.py. On a CPU the answers of all
processes are written, not only the first one's. The log says how many layers the adapter acts on;
an adapter that acts on none ends the process, which would answer as the base model does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft.tuners.tuners_utils import BaseTunerLayer
from swift.infer_engine import TransformersEngine
from swift.infer_engine.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    UsageInfo,
)
from swift.pipelines.infer.infer import SwiftInfer, prepare_model_template
from swift.utils import get_logger
from tqdm import tqdm

from recipes.swift_plugins.row_generation import RowGeneration, applies_to
from strlora_tuner import host_api

host_api.check("inference", "row_generation")
logger = get_logger()


def answer_all(self: Any, requests: list[dict[str, Any]], *args: Any, **kwargs: Any) -> list[Any]:
    """Ask the engine; note in every request, which the host writes out, how its answer ended."""
    self.infer_engine.strict = False  # an error comes in its answer's place, and is not raised
    responses = ask(self.infer_engine, requests, *args, **kwargs)
    answers = []
    for request, response in zip(requests, responses, strict=True):
        if isinstance(response, Exception):
            request["error"] = f"{type(response).__name__}: {response}"
            logger.error(f"no answer to {request.get('messages')}: {request['error']}")
            response = _no_answer()
        request["finish_reason"] = response.choices[0].finish_reason
        answers.append(response)
    return answers


def gather_on_cpu() -> None:
    """Let the host gather what all processes answered, where there is no accelerator.

    It does so by accelerate's gather_object, which takes a CPU process for the only one unless
    accelerate knows of the CPU: what the others answered would be lost.
    """
    if not dist.is_initialized() or torch.accelerator.is_available():
        return
    if PartialState(cpu=True).distributed_type == DistributedType.NO:  # something was first
        PartialState._reset_state()
        PartialState(cpu=True)


def ask(
    engine: Any,
    requests: list[dict[str, Any]],
    config: Any,
    metrics: Any = None,
    use_tqdm: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """Return the engine's responses to all requests, in batches whose rows leave as they end.

    An engine that is not PyTorch's own, or answers as a stream, is asked as the host does.
    """
    if not isinstance(engine, TransformersEngine) or config.stream:
        return engine.infer(requests, config, metrics, use_tqdm=use_tqdm, **kwargs)
    # As the host has it: 0 or less means no limit.
    size = engine.max_batch_size if engine.max_batch_size > 0 else len(requests)
    responses: list[Any] = []
    with tqdm(total=len(requests), dynamic_ncols=True, disable=not use_tqdm) as bar:
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            responses += engine._infer(
                batch, config, pre_infer_hook=_let_rows_leave(engine), **kwargs
            )
            _note_chunks(engine.model, batch, responses[start:])
            bar.update(len(batch))
    engine._update_metrics(responses, metrics)
    return responses


def acting_layers(model: Any) -> int:
    """Return on how many layers of a loaded model an adapter acts."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return sum(bool(layer.active_adapters) and not layer.disable_adapters for layer in layers)


def _load_and_count(args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Load the model as the host does; log what its adapter acts on."""
    model, template = prepare_model_template(args, **kwargs)
    if args.adapters:
        layers, tuner = acting_layers(model), getattr(model, "base_model", None)
        if not layers:
            raise RuntimeError(f"--adapters {args.adapters}: the adapter acts on no layer")
        how = "routed" if hasattr(tuner, "routed_layers") else "wrapped"
        logger.info(f"adapter on: {layers} layers {how}")
    return model, template


def _let_rows_leave(engine: Any) -> Any:
    """Return the host's hook before a batch; it names our decoding loop where that fits."""

    def hook(arguments: dict[str, Any]) -> dict[str, Any]:
        if applies_to(engine.model, arguments["generation_config"]):
            arguments["inputs"]["custom_generate"] = RowGeneration(engine.model)
        return arguments

    return hook


def _note_chunks(model: Any, batch: list[dict[str, Any]], responses: list[Any]) -> None:
    """Note in every request that was answered which chunk's router it took."""
    chosen_chunks = getattr(getattr(model, "base_model", None), "chosen_chunks", None)
    chunks = chosen_chunks() if callable(chosen_chunks) else None
    asked = [
        r for r, found in zip(batch, responses, strict=True) if not isinstance(found, Exception)
    ]
    if not chunks or not asked:
        return
    # Beams repeat every row of a batch, one behind the other.
    beams = len(chunks) // len(asked)
    for request, chunk in zip(asked, chunks[::beams], strict=True):
        request["expert"] = chunk


def _no_answer() -> ChatCompletionResponse:
    message = ChatMessage(role="assistant", content=None)
    choice = ChatCompletionResponseChoice(index=0, message=message, finish_reason="error")
    return ChatCompletionResponse(model="", choices=[choice], usage=UsageInfo(0, 0, 0))


def install() -> None:
    """Puts `answer_all` and `gather_on_cpu` into the host, once.

    The host imports this file by its path and another plug-in (MR-LoRA's) imports it as a module,
    so that it may run twice in a process.
    """
    if hasattr(SwiftInfer, "infer"):
        return
    infer_dataset: Callable[[Any], list[dict[str, Any]]] = SwiftInfer.infer_dataset

    def gather_and_infer(self: Any) -> list[dict[str, Any]]:
        gather_on_cpu()  # every process comes here, also one without a question
        return infer_dataset(self)

    host_api.replace("swift.pipelines.infer.infer:SwiftInfer.infer_dataset", gather_and_infer)
    host_api.replace("swift.pipelines.infer.infer:prepare_model_template", _load_and_count)
    # The host looks `infer` up on its engine when it has none of its own.
    host_api.replace("swift.pipelines.infer.infer:SwiftInfer.infer", answer_all)


install()

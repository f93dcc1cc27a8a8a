"""What a training loop or a script does with a model that carries a routed adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from strlora_tuner.core.model import TUNER, RoutedModel


def tuner_of(model: nn.Module) -> RoutedModel:
    """Returns the routed tuner of `model`: a PeftModel or what transformers loaded, maybe wrapped.

    Raises:
        ValueError: the model carries no adapter of this package.
    """
    for module in model.modules():
        tuner = module.__dict__.get(TUNER, module)
        if isinstance(tuner, RoutedModel):
            return tuner
    raise ValueError(
        f"{type(model).__name__} carries no routed adapter: load one with "
        "PeftModel.from_pretrained or add one with get_peft_model(model, StrLoraConfig(...))"
    )


@contextmanager
def instruction_ids(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Iterator[None]:
    """Inside, the instruction vectors come from these token ids instead of from the prompt.

    Args:
        model: a model with a routed adapter.
        ids: (batch, tokens) token ids of the instructions.
        mask: (batch, tokens), non-zero where a position counts; None: every position counts, as in
            the published code.

    Raises:
        ValueError: ids are not 2-d or the mask has another shape.
    """
    if ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"ids of shape {tuple(ids.shape)} with a mask of shape {shape}: expected ids "
            "(batch, tokens) and a mask of the same shape"
        )
    routing = tuner_of(model).routing
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    routing.set_instruction(routing.look_up(ids), counted, ids)
    try:
        yield
    finally:
        routing.set_instruction(None)


def stability_loss(model: nn.Module) -> Tensor:
    """Returns the weighted stability loss of the last training forward, a detached scalar.

    It is lambda times the mean over layers and tokens of KL(teacher || student). Its gradient is
    already injected: do not add it to the loss. Zero when the term is off.
    """
    return tuner_of(model).losses().get("stability_loss", torch.zeros(()))


def after_optimizer_step(model: nn.Module) -> None:
    """Does what the method does once a step: for StrLoRA, moves the teacher and the statistics.

    Call it once after every optimizer step; the ms-swift plug-in does. Under ZeRO-3 call it inside
    `deepspeed.zero.GatheredParameters` of the routers.
    """
    tuner_of(model).after_optimizer_step()

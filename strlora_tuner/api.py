"""What a training loop or a script does with a model that carries a StrLoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from strlora_tuner.model import StrLoraModel


def tuner_of(model: nn.Module) -> StrLoraModel:
    """Returns the StrLoRA tuner inside `model` (a PeftModel, possibly wrapped).

    Raises:
        ValueError: the model carries no StrLoRA adapter.
    """
    for module in model.modules():
        if isinstance(module, StrLoraModel):
            return module
    raise ValueError(
        f"{type(model).__name__} carries no StrLoRA adapter: load one with "
        "PeftModel.from_pretrained or add one with get_peft_model(model, StrLoraConfig(...))"
    )


@contextmanager
def instruction_ids(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Iterator[None]:
    """Inside, the instruction vectors come from these token ids instead of from the prompt.

    Args:
        model: a model with a StrLoRA adapter.
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
    assert routing.embed is not None
    with torch.no_grad():
        embeddings = routing.embed(ids)
    routing.give(embeddings, counted)
    try:
        yield
    finally:
        routing.give(None)


def stability_loss(model: nn.Module) -> Tensor:
    """Returns the weighted stability loss of the last training forward, a detached scalar.

    It is lambda times the mean over layers and tokens of KL(teacher || student). Its gradient is
    already injected: do not add it to the loss. Zero when the term is off.
    """
    tuner = tuner_of(model)
    values = [m.divergence for _, m in tuner.mixtures() if m.divergence is not None]
    if not values:
        return torch.zeros(())
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def after_optimizer_step(model: nn.Module) -> None:
    """Moves the teacher by one step and merges the step's instruction statistics.

    Call it once after every optimizer step; the ms-swift plug-in does. Under ZeRO-3 call it inside
    `deepspeed.zero.GatheredParameters` of the routers.
    """
    tuner = tuner_of(model)
    adapter = tuner.active_adapters[0]
    statistics = tuner.statistics(adapter)
    statistics.commit()
    moved = False
    for _, mixture in tuner.mixtures(adapter):
        if mixture.stability_on:
            mixture.update_teacher()
            moved = True
    if moved:
        statistics.teacher_steps += 1

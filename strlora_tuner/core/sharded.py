"""Parameters that DeepSpeed ZeRO-3 keeps in slices, for callbacks that need them whole."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether each process holds a slice only."""
    return any(hasattr(parameter, "ds_id") for parameter in parameters)


def whole(
    parameters: Iterable[Tensor], modifier_rank: int | None = None
) -> AbstractContextManager[object]:
    """While it is open, every process can read whole parameters; all must open it.

    With a `modifier_rank` what that process has written is what all have afterwards.
    """
    parameters = list(parameters)
    if not is_sharded(parameters):
        return nullcontext()
    import deepspeed  # only ZeRO-3 needs it

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


@torch.no_grad()
def write(parameter: Tensor, value: Tensor) -> None:
    """Gives a parameter another value after a step, in DeepSpeed's own copy of it, too.

    Under ZeRO-3 call it inside `whole(..., modifier_rank=0)`.
    """
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param

        # The optimizer steps from its float32 copy: what is written here alone would be undone.
        safe_set_full_fp32_param(parameter, value)
    parameter.copy_(value)


def refuse_fsdp(trainer: Any, what: str) -> None:
    """Raises ValueError where FSDP keeps the slices: nobody here puts those together."""
    if trainer.is_fsdp_enabled:
        raise ValueError(
            f"--fsdp: parameters lie in pieces, which {what} cannot put together (those of "
            "DeepSpeed it can); use DDP or --deepspeed zero2 or zero3"
        )

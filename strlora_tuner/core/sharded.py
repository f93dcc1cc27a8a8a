"""Parameters that DeepSpeed ZeRO-3 keeps in slices, for callbacks that need them whole."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether each process holds a slice only."""
    return any(hasattr(parameter, "ds_id") for parameter in parameters)


def whole(parameters: Iterable[Tensor]) -> AbstractContextManager[object]:
    """While it is open, every process can read whole parameters; all must open it."""
    parameters = list(parameters)
    if not is_sharded(parameters):
        return nullcontext()
    import deepspeed  # only ZeRO-3 needs it

    return deepspeed.zero.GatheredParameters(parameters)


def refuse_fsdp(trainer: Any, what: str) -> None:
    """Raises ValueError where FSDP keeps the slices: nobody here puts those together."""
    if trainer.is_fsdp_enabled:
        raise ValueError(
            f"--fsdp: parameters lie in pieces, which {what} cannot put together (those of "
            "DeepSpeed it can); use DDP or --deepspeed zero2 or zero3"
        )

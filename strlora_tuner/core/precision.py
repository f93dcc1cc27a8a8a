"""What stays float32 whatever the model's dtype: buffers, and the arithmetic on scores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def autocast_on(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; never on meta, which it does not know."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x in `dtype`. Tensor.to takes a microsecond of every layer and token for nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def float32_scores(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, autocast leaves the arithmetic on scores in float32."""
    if autocast_on(x):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


class Float32Buffers(nn.Module):
    """A module whose floating-point buffers keep float32 under .to(bfloat16), .half() and the like.

    DeepSpeed's bf16 engine casts every buffer. A moving average with decay 0.999 moves by less than
    half a unit in the last place of bfloat16, so a teacher cast to it would never move again.
    """

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Float32Buffers:
        before = {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and buffer.dtype == torch.float32
        }
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new is not None and new.dtype != torch.float32:
                self._buffers[name] = old.to(new.device)
        return self

"""Buffers that stay float32 when the module is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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

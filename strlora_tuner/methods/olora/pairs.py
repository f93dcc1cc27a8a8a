"""A LoRA a chunk: the one that trains, and the frozen ones of earlier chunks in one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


class ChunkPairs(ExpertBank):
    """The chunk's own A and B, and in buffers those of the n earlier chunks.

    `past_A` is (n r, d_in), `past_B` (d_out, n r). Buffers, because DeepSpeed hands frozen
    parameters to nobody who saves.
    """

    past_A: Tensor
    past_B: Tensor

    def __init__(self, d_in: int, d_out: int, config: RoutedConfig, earlier: int) -> None:
        super().__init__(d_in, d_out, config)
        rows = self.config.r * earlier
        self.register_buffer("past_A", torch.zeros(rows, d_in))
        self.register_buffer("past_B", torch.zeros(d_out, rows))

    def every_A(self) -> Tensor:
        """Returns the A of all chunks, the newest last, ((n + 1) r, d_in)."""
        return torch.cat([self.past_A.to(self.A.dtype), self.A])

    def every_B(self) -> Tensor:
        """Returns the B of all chunks, the newest last, (d_out, (n + 1) r)."""
        return torch.cat([self.past_B.to(self.B.dtype), self.B], 1)

    @torch.no_grad()
    def begin_chunk(self) -> None:
        """Freezes A and B among the earlier ones and starts them anew."""
        self.past_A = torch.cat([self.past_A, self.A.to(self.past_A)])
        self.past_B = torch.cat([self.past_B, self.B.to(self.past_B)], 1)
        nn.init.normal_(self.A, std=0.01)
        nn.init.zeros_(self.B)

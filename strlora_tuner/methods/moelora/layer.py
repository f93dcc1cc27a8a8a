"""MoELoRA: y = W x + s * sum_e g_e(x) B_e A_e x with g = softmax(R x), for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank, init_router
from strlora_tuner.core.instruction.context import RoutingContext

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


class TokenGatedExperts(ExpertBank):
    """E experts, all of which every token uses; `router` is R (E, d_in)."""

    def __init__(self, d_in: int, d_out: int, hidden: int, config: RoutedConfig) -> None:
        super().__init__(d_in, d_out, config)
        self.router = nn.Parameter(torch.empty(config.num_experts, d_in))
        init_router(self.router)

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the mixture, (B, L, d_out)."""
        hidden, scores = self.projected(x, self.router)
        gates = scores.float().softmax(-1)
        self.record(context, x, gates)
        return self.combine(hidden, result, gates)

"""The oracle: y = W x + s B_t A_t x, t the task that was looked up; every A_t has the full rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank
from strlora_tuner.core.gating import at
from strlora_tuner.core.instruction.context import RoutingContext

if TYPE_CHECKING:
    from strlora_tuner.methods.oracle.config import Config


class TaskExperts(ExpertBank):
    """T experts of rank r: A is (T r, d_in), B (d_out, T r)."""

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config)
        rows = config.r * config.num_experts
        self.A = nn.Parameter(torch.empty(rows, d_in))
        self.B = nn.Parameter(torch.zeros(d_out, rows))
        nn.init.normal_(self.A, std=0.01)

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the update of each token's task, (B, L, d_out)."""
        context.instruction(adapter, x)
        index, tasks = context.index(adapter, x), context.sentences(adapter, x)
        gates = at(tasks, index)
        self.record(context, x, gates, tasks.bool(), tasks, index)
        return self.combine(self.hidden(x), result, gates)

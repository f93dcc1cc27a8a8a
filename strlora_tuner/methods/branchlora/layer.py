"""BranchLoRA: y = W x + s sum_i g_i B_i A x with one A, g the softmax of the top k of R_c x_1.

x_1 is the prompt's first token. R_c is the router of the chunk that is trained; at evaluation that
of the chunk whose keys are nearest to the prompt. When a chunk ends, the branches that it used most
freeze.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank, init_router
from strlora_tuner.core.gating import at, mask_bias, topk_mask
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.methods.branchlora.keys import ChunkKeys

if TYPE_CHECKING:
    from strlora_tuner.methods.branchlora.config import Config


class Branches(ExpertBank):
    """N branches of width w = rank / N behind one A (w, d_in), and a router (N, d_in) a chunk.

    `frozen_B` (d_out, f w) and `B` (d_out, (N - f) w) hold the branches `order` (N), side by side.
    `uses` (N) counts the prompts of this chunk that used a branch. `past_routers` is (c, N, d_in).
    """

    reads_states = True

    frozen_B: Tensor
    order: Tensor
    uses: Tensor
    past_routers: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config)
        count, frozen = config.num_experts, config.frozen
        self.width = config.r // count
        self.A = nn.Parameter(torch.empty(self.width, d_in))
        nn.init.normal_(self.A, std=0.01)
        self.B = nn.Parameter(torch.zeros(d_out, (count - frozen) * self.width))
        self.router = nn.Parameter(torch.empty(count, d_in))
        init_router(self.router)
        self.register_buffer("frozen_B", torch.zeros(d_out, frozen * self.width))
        self.register_buffer("order", torch.arange(count))
        self.register_buffer("uses", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("past_routers", torch.zeros(config.past_chunks, count, d_in))
        self.counted: Tensor | None = None

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the branches' sum, (B, L, d_out)."""
        context.instruction(adapter, x)
        index, gates = context.index(adapter, x), self._gates(x, context, adapter)
        hidden = self.hidden(x)
        weights = at((gates[:, self.order] * self.scale).to(hidden.dtype), index)
        weighted = (hidden[:, :, None] * weights[..., None]).flatten(-2)
        return self._add(result, weighted, self._every_B())

    def _every_B(self) -> Tensor:
        return torch.cat([self.frozen_B.to(self.B.dtype), self.B], 1)

    def _gates(self, x: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns the weight of every branch for every segment, (S, N) float32."""
        before = context.recall(self.name, adapter, x)
        if before is not None and context.continues(adapter, x):
            return before[0]
        keys: ChunkKeys = context.statistics[adapter]
        first = context.first_token(adapter, x) if before is None else before[1]
        with float32_scores(x):
            if self.training:
                keys.observe(context, adapter, x)
                scores = F.linear(first.float(), self.router.float())
            else:
                routers = torch.cat([self.past_routers, self.router.float()[None]])
                nearest = keys.similarity(context, adapter, x).sum(-1).argmax(-1)
                own = routers[nearest]
                scores = torch.einsum("bd,bnd->bn", first.float(), own)
            kept = topk_mask(scores.detach(), self.config.top_k)
            gates = (scores + mask_bias(kept)[:, 0]).softmax(-1)
        if self.training and context.in_forward:
            exist = context.exist(adapter)
            used = (kept if exist is None else kept & exist[:, None]).sum(0)
            self.counted = used if self.counted is None else self.counted + used
        gates = context.settle(self.name, adapter, before, gates, first)
        index = context.index(adapter, x)
        self.record(context, x, at(gates, index), kept, scores.softmax(-1), index)
        return gates

    def expert_activations(self, x: Tensor) -> Tensor:
        """Returns A x once for each branch, (B, L, r)."""
        return super().expert_activations(x).repeat(1, 1, self.config.num_experts)

    def output_weights(self) -> Tensor:
        """Returns all branches in the order of their numbers, (d_out, r)."""
        branches = self._every_B().unflatten(1, (-1, self.width))
        return branches[:, self.order.argsort()].flatten(1)

    @torch.no_grad()
    def begin_chunk(self) -> None:
        """Freezes the most used branches until as many are as there shall be; opens a router."""
        before, frozen = self.frozen_B.shape[1] // self.width, self.config.frozen
        live = self.order[before:]
        # Stable: of branches used as often the same one freezes on every machine.
        ranking = self.uses[live].argsort(descending=True, stable=True)
        chosen = ranking[: frozen - before].sort().values
        rest = ranking[frozen - before :].sort().values
        columns = self.B.unflatten(1, (-1, self.width))
        newly = columns[:, chosen].flatten(1).to(self.frozen_B)
        self.frozen_B = torch.cat([self.frozen_B, newly], 1)
        self.B = nn.Parameter(columns[:, rest].flatten(1), self.B.requires_grad)
        self.order = torch.cat([self.order[:before], live[chosen], live[rest]])
        self.uses.zero_()
        self.past_routers = torch.cat([self.past_routers, self.router[None].to(self.past_routers)])
        init_router(self.router)

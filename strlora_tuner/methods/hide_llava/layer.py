"""HiDe-LLaVA: y = W x + s B_c A_c x in training, c the chunk; in evaluation, of n chunks,

    top layer:     y = W x + s sum_i g_i B_i A_i x,  g = softmax over i of (cos_image + cos_text)/2T
    other layers:  y = W x + s (sum_i B_i) (sum_i A_i) x,  or the mean of the n updates

The cosines are those of the prompt's image and text with the anchors of chunk i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.gating import at
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.methods.branchlora.keys import ChunkKeys
from strlora_tuner.methods.olora.pairs import ChunkPairs

if TYPE_CHECKING:
    from strlora_tuner.methods.hide_llava.config import Config


class Anchors(ChunkKeys):
    """A chunk's anchors are the means of its features as they are; a cosine knows no length."""

    unit_features = False


class ChunkExperts(ChunkPairs):
    """A LoRA a chunk. `top` is set by the model for the layers of the last decoder layer."""

    reads_states = True

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config, config.past_chunks)
        self.top = False

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the chunk's own update, in evaluation the weighed or fused one."""
        gates = self._gates(x, context, adapter) if self.top else None
        if self.training:
            return self._add(result, self.hidden(x) * self.scaling)
        if gates is None and self.config.fusion == "sum":
            fused_A = self.every_A().unflatten(0, (-1, self.config.r)).sum(0)
            fused_B = self.every_B().unflatten(1, (-1, self.config.r)).sum(1)
            return self._add(result, F.linear(x, fused_A) * self.scaling, fused_B)
        if gates is None:
            count = self.config.num_experts
            gates = torch.full((1, 1, count), 1 / count, device=x.device)
        return self.combine(self.expert_activations(x), result, gates, self.every_B())

    def _gates(self, x: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns the weight of every chunk's LoRA for each token, (B, L or 1, n) float32."""
        rows = len(context.instruction(adapter, x))
        index = context.index(adapter, x)
        if self.training:
            context.statistics[adapter].observe(context, adapter, x)
            gates = torch.eye(self.config.num_experts, device=x.device)[-1:].expand(rows, -1)
        else:
            gates = self._weighed(x, context, adapter)
        kept = torch.ones_like(gates, dtype=torch.bool)
        self.record(context, x, at(gates, index), kept, gates, index)
        return at(gates, index)

    def _weighed(self, x: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns the weights of every segment, (S, n) float32; they hold for its whole answer."""
        before = context.recall(self.name, adapter, x)
        if before is not None and context.continues(adapter, x):
            return before[0]
        with float32_scores(x):
            near = context.statistics[adapter].similarity(context, adapter, x)
            gates = (near.mean(-1) / self.config.temperature).softmax(-1)
        return context.settle(self.name, adapter, before, gates)

    def expert_activations(self, x: Tensor) -> Tensor:
        """Returns A_i x of all chunks, (B, L, n r)."""
        return F.linear(x.to(self.A.dtype), self.every_A())

    def output_weights(self) -> Tensor:
        """Returns the B of all chunks side by side, (d_out, n r)."""
        return self.every_B()

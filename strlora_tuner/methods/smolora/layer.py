"""SMoLoRA: one visual-understanding and one instruction-following expert a prompt, fused by token.

    p^v = softmax(G_v mean(x)),  v = argmax p^v        over the first E/2 experts
    p^i = softmax(G_i e),        i = argmax p^i        over the others, e the sentence embedding
    y_v = s p^v_v B_v A_v x,     y_i = s p^i_i B_i A_i x
    (a, b) = softmax(<f_v, y_v>, <f_i, y_i>) for every token,     y = W x + a y_v + b y_i

The published gates scatter the constant 1 and so never train; here the probability stays with the
choice. mean(x) is taken over the user's turns, images included, and its choice holds for the whole
answer: over the whole sample it would show the gate the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank, init_router
from strlora_tuner.core.gating import at, topk_mask
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.methods.smolora.options import Options

if TYPE_CHECKING:
    from strlora_tuner.methods.smolora.config import Config


class SeparableExperts(ExpertBank):
    """E/2 experts chosen by the prompt's states, then E/2 chosen by the instruction's text.

    `vision` is G_v (E/2, d_in), `text` G_i (E/2, width of the embedding), `fusion` f (2, d_out).
    """

    reads_states = True

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config)
        options: Options = config.options()
        half = options.num_experts // 2
        self.vision = nn.Parameter(torch.empty(half, d_in))
        self.text = nn.Parameter(torch.empty(half, options.embedding_width))
        self.fusion = nn.Parameter(torch.empty(2, d_out))
        for router in (self.vision, self.text, self.fusion):
            init_router(router)

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + both fused experts, (B, L, d_out)."""
        context.instruction(adapter, x)
        index, probabilities = context.index(adapter, x), self._probabilities(x, context, adapter)
        half = self.vision.shape[0]
        kept = torch.cat([topk_mask(p, 1) for p in probabilities.detach().split(half, -1)], -1)
        chosen = at(probabilities * kept, index)
        hidden = self.hidden(x)
        gates = chosen * self._fused(hidden, chosen).repeat_interleave(half, -1)
        # Both halves sum to 1, and a preference does as a whole.
        self.record(context, x, gates, kept, probabilities / 2, index)
        return self.combine(hidden, result, gates)

    def _probabilities(self, x: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns p^v and p^i of every segment side by side, (S, E) float32."""
        before = context.recall(self.name, adapter, x)
        if before is not None and context.continues(adapter, x):
            return before[0]
        counted, number = context.turn_tokens(adapter, x)
        total = torch.bmm(counted.to(x.dtype), x).flatten(0, 1)
        if before is not None:
            total = total + before[1]
        sentences = context.sentences(adapter, x)
        with float32_scores(x):
            seen = total.float() / number.clamp_min(1)
            vision = F.linear(seen, self.vision.float()).softmax(-1)
            text = F.linear(sentences, self.text.float()).softmax(-1)
        return context.settle(self.name, adapter, before, torch.cat([vision, text], -1), total)

    def _fused(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Returns the weights of the two results for every token, (B, L, 2) float32.

        <f, s B (p * A x)> = <s B^T f, p * A x>: the results themselves are not needed.
        """
        half = self.A.shape[0] // 2
        with float32_scores(hidden):
            reading = self.fusion.float() @ self.B.float() * self.scale  # (2, r)
            own = torch.cat([reading[0, :half], reading[1, half:]])
            rank = hidden.shape[-1] // chosen.shape[-1]
            weights = chosen.repeat_interleave(rank, -1) * own
            parts = (hidden.float() * weights).unflatten(-1, (2, half)).sum(-1)
        return parts.softmax(-1)

"""O-LoRA: y = W x + s (B A + sum_i B_i A_i) x, and lambda * sum_i |A_i A^T|^2 is added to the loss.

In the absolute form the products' absolute values are summed.

The pairs (A_i, B_i) of earlier chunks are frozen; a new chunk starts with a fresh A and B = 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.autograd import InjectGradient
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.methods.olora.pairs import ChunkPairs

if TYPE_CHECKING:
    from strlora_tuner.methods.olora.config import Config


class OrthogonalExperts(ChunkPairs):
    """The chunk's own A and B, kept orthogonal to those of the n earlier chunks."""

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config, config.subspaces)
        self._loss: Tensor | None = None

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the sum of all subspaces' updates, in training with the penalty."""
        self.record(context, x, torch.ones_like(x[..., :1], dtype=torch.float32))
        hidden = self.hidden(x)
        if self.past_A.shape[0]:
            hidden = torch.cat([F.linear(x, self.past_A.to(self.A.dtype)), hidden], -1)
        output = self._add(result, hidden * self.scaling, self.every_B())
        return self._penalised(x, output, context) if self.training else output

    def _penalised(self, x: Tensor, output: Tensor, context: RoutingContext) -> Tensor:
        """Returns `output`, which carries the penalty's gradient."""
        with float32_scores(x):
            overlap = self.past_A @ self.A.float().T
            squared = self.config.orthogonality_form == "squared"
            sizes = overlap.square() if squared else overlap.abs()
            value = self.config.orthogonality_weight * sizes.sum()
        self._loss = value.detach()
        # Without a gradient (reentrant checkpointing's first pass) nothing can be injected.
        if not output.requires_grad or not self.past_A.shape[0]:
            return output
        return InjectGradient.apply(output, value * context.backward_scale("mask"))

    def losses(self) -> dict[str, Tensor]:
        """Returns the layer's share of the penalty."""
        return {} if self._loss is None else {"orthogonality_loss": self._loss}

"""O-LoRA: y = W x + s (B A + sum_i B_i A_i) x, and lambda * sum_i |A_i A^T|^2 is added to the loss.

In the absolute form the products' absolute values are summed.

The pairs (A_i, B_i) of earlier chunks are frozen; a new chunk starts with a fresh A and B = 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.core.autograd import InjectGradient
from strlora_tuner.core.expert_bank import ExpertBank
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores

if TYPE_CHECKING:
    from strlora_tuner.methods.olora.config import Config


class OrthogonalExperts(ExpertBank):
    """The chunk's own A and B, and in buffers those of the n earlier chunks.

    `past_A` is (n r, d_in), `past_B` (d_out, n r). Buffers, because DeepSpeed hands frozen
    parameters to nobody who saves.
    """

    past_A: Tensor
    past_B: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config)
        rows = config.r * config.subspaces
        self.register_buffer("past_A", torch.zeros(rows, d_in))
        self.register_buffer("past_B", torch.zeros(d_out, rows))
        self._loss: Tensor | None = None

    @torch.no_grad()
    def open_subspace(self) -> None:
        """Freezes A and B among the earlier ones and starts them anew."""
        self.past_A = torch.cat([self.past_A, self.A.to(self.past_A)])
        self.past_B = torch.cat([self.past_B, self.B.to(self.past_B)], 1)
        nn.init.normal_(self.A, std=0.01)
        nn.init.zeros_(self.B)

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the sum of all subspaces' updates, in training with the penalty."""
        self.record(context, x, torch.ones_like(x[..., :1], dtype=torch.float32))
        hidden, out = self.hidden(x), cast(Tensor, self.B)
        if self.past_A.shape[0]:
            hidden = torch.cat([hidden, F.linear(x, self.past_A.to(self.A.dtype))], -1)
            out = torch.cat([out, self.past_B.to(out.dtype)], 1)
        output = self._add(result, hidden * self.scaling, out)
        return self._penalised(x, output, context) if self.training else output

    def _penalised(self, x: Tensor, output: Tensor, context: RoutingContext) -> Tensor:
        """Returns `output`, which carries the penalty's gradient."""
        with float32_scores(x):
            overlap = self.past_A @ self.A.float().T
            squared = self.config.orthogonality_form == "squared"
            sizes = overlap.square() if squared else overlap.abs()
            value = self.config.orthogonality_weight * sizes.sum()
        self._loss = value.detach()
        if not output.requires_grad or not self.past_A.shape[0]:
            return output
        return InjectGradient.apply(output, value * context.backward_scale("mask"))

    def losses(self) -> dict[str, Tensor]:
        """Returns the layer's share of the penalty."""
        return {} if self._loss is None else {"orthogonality_loss": self._loss}

"""Functions with gradients of their own: side losses, and products that share one reading of x."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.precision import autocast_on


class InjectGradient(torch.autograd.Function):
    """Passes `output` through and gives `loss` the gradient 1 in backward.

    A side loss that a module merely stores loses its gradient under reentrant checkpointing; one
    that hangs on the module's own output is recomputed and differentiated with it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        """Returns `output` unchanged; `loss` is a scalar."""
        ctx.loss_dtype, ctx.loss_device = loss.dtype, loss.device
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient of `output` as it came, and 1 for the loss."""
        return grad, torch.ones((), dtype=ctx.loss_dtype, device=ctx.loss_device)


class _SharedProjection(torch.autograd.Function):
    """x [A; Wq; Wq_ema]^T, with the student's queries given twice.

    The second copy is for the stability term, which must not reach x: its gradient goes to Wq only.
    One product reads x once, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, query: Tensor, teacher: Tensor) -> Any:
        """Returns A x (B, L, r), Wq x (B, L, D), Wq x again, and the teacher's (B, L, D)."""
        together = torch.cat([a, query, teacher])
        ctx.save_for_backward(x, a, query)
        ctx.rank, ctx.width = a.shape[0], query.shape[0]
        out = F.linear(x, together)
        hidden, queries, teacher_queries = out.split([ctx.rank, ctx.width, ctx.width], dim=-1)
        ctx.mark_non_differentiable(teacher_queries)
        return hidden, queries, queries.detach(), teacher_queries

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Returns the gradients of x (from A and the gates only), A and Wq."""
        to_hidden, to_queries, to_detached, _ = gradients
        x, a, query = ctx.saved_tensors
        grad_x = grad_a = grad_query = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.cat([to_hidden, to_queries], dim=-1) @ torch.cat([a, query])
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            outer = torch.cat([to_hidden, to_queries + to_detached], dim=-1).flatten(0, -2)
            weights = outer.transpose(0, 1) @ x.flatten(0, -2)
            grad_a, grad_query = weights.split([ctx.rank, ctx.width])
        return grad_x, grad_a, grad_query, None


def shared_projection(
    x: Tensor, a: Tensor, query: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns A x, Wq x, Wq x with x detached, and the teacher's Wq x, from one product.

    Args:
        x: (B, L, d_in).
        a: A, (r, d_in).
        query: Wq, (D, d_in).
        teacher: the moving average of Wq, (D, d_in), in any dtype.
    """
    if not autocast_on(x):
        return _SharedProjection.apply(*(tensor.to(x.dtype) for tensor in (x, a, query, teacher)))
    # The function sees final dtypes: autocast would cast inside forward and not inside backward.
    device = x.device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _SharedProjection.apply(*(tensor.to(dtype) for tensor in (x, a, query, teacher)))

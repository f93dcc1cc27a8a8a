"""A x, Wq x and the teacher's Wq x in one matrix product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
        hidden, queries, taught = out.split([ctx.rank, ctx.width, ctx.width], dim=-1)
        ctx.mark_non_differentiable(taught)
        return hidden, queries, queries.clone(), taught

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
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    # The function sees final dtypes: autocast would cast inside forward and not inside backward.
    inputs = [tensor.to(dtype) for tensor in (x, a, query, teacher)]
    with torch.autocast(device, enabled=False):
        return _SharedProjection.apply(*inputs)

"""A x, Wq x and the teacher's Wq x in one matrix product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def autocast_on(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; never on meta, which it does not know."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


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
        return hidden, queries, queries.detach(), taught

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

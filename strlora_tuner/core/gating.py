"""Choosing experts by their scores, the same in every method."""

from __future__ import annotations

import torch
from torch import Tensor

# Outside the kept set scores sink to this value and not to -inf: softmax still gives exactly 0
# there and logarithms stay finite, so that no NaN appears in a side loss or its gradient.
MASKED_SCORE = -1e30


def topk_mask(values: Tensor, count: int) -> Tensor:
    """Marks the `count` largest of the last dimension; of equal values the first.

    torch.topk leaves ties open, and they happen: an empty instruction scores all experts alike.
    """
    above = values[..., None, :] > values[..., :, None]
    first = values[..., None, :] == values[..., :, None]
    ranks = (above | first.tril(-1)).sum(-1)
    return ranks < count


def mask_bias(kept: Tensor) -> Tensor:
    """Returns (B, 1, E) float32 to add to scores: 0 for kept experts (B, E), else MASKED_SCORE."""
    bias = torch.zeros_like(kept, dtype=torch.float32)
    return bias.masked_fill(~kept, MASKED_SCORE)[:, None, :]


def at(values: Tensor, index: Tensor | None) -> Tensor:
    """Returns what each token of (B, L) takes of values (S, ...): (B, L, ...).

    Without an index S is B, and a row's value holds for all its tokens: (B, 1, ...).
    """
    return values[:, None] if index is None else values[index]

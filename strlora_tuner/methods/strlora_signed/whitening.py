"""Statistics that also know in which directions instructions vary, to tell close ones apart.

The centred vector t - m is multiplied with (C + w c I)^(-1/2), C its running covariance, c the mean
of C's eigenvalues: shrunken whitening (Ledoit and Wolf 2004 shrink alike; Kessy et al. 2018 on the
symmetric root). Where tasks differ along a few directions alone, two that share most of their words
lie close to each other; made smaller, those directions no longer hide what tells the two apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.methods.strlora.instruction_statistics import PRIOR_COUNT, InstructionStatistics

if TYPE_CHECKING:
    from strlora_tuner.methods.strlora_signed.config import Config

WIDTH = 256  # of the vectors whose covariance is kept: wider ones are folded
_HASH = 2_654_435_761  # Knuth's multiplicative hash: 2^32 over the golden ratio, a prime


def folded(vectors: Tensor) -> Tensor:
    """Returns vectors (S, H) as (S, min(H, 256)): a count sketch, which keeps inner products.

    Dimension i is added to i modulo 256 with a sign of its own (Charikar et al. 2002), by whole
    numbers, so that every machine folds alike.
    """
    width = vectors.shape[-1]
    if width <= WIDTH:
        return vectors
    places = torch.arange(width, device=vectors.device)
    signs = 1 - 2 * ((places * _HASH % 2**32) >> 31)
    parts = F.pad(vectors * signs, (0, -width % WIDTH))
    return parts.unflatten(-1, (-1, WIDTH)).sum(-2)


class WhitenedStatistics(InstructionStatistics):
    """Running mean and covariance of the folded instruction vectors, carried with the adapter.

    `scatter` (M, M) is the summed outer product of the vectors' distances from their mean.
    """

    scatter: Tensor

    def __init__(self, width: int, config: Config) -> None:
        super().__init__(width)
        self.shrinkage = config.whitening
        self.register_buffer("scatter", torch.zeros(width, width))
        self._products: Tensor | None = None
        self._root: tuple[Tensor, int, Tensor] | None = None

    @torch.no_grad()
    def observe(self, vectors: Tensor, valid: Tensor) -> None:
        """Counts instruction vectors (B, H) where valid (B) is True, summed over all processes."""
        vectors = folded(vectors.float())
        super().observe(vectors, valid)
        wide = vectors.double()
        products = sum_over_processes(wide.t() @ (wide * valid[:, None]))
        self._products = products if self._products is None else self._products + products

    @torch.no_grad()
    def commit(self, share: float | None = None) -> None:
        """Merges the pending sums (Chan et al., 1979); call once after an optimizer step."""
        pending, products = self._pending, self._products
        self._products = None
        if pending is not None and products is not None and share != 0:
            count, total = pending[0], pending[2:]
            mean = total / count.clamp_min(1)
            shift, old = mean - self.mean.double(), self.count.double()
            between = shift.outer(shift) * old * count / (old + count).clamp_min(1)
            new = products - count * mean.outer(mean) + between
            self.scatter.copy_(self.scatter.double() + new)
        super().commit(share)

    @torch.no_grad()
    def normalise(self, vectors: Tensor) -> Tensor:
        """Returns the whitened distances (S, M) from the mean of t of (S, H) float32.

        :data:`PRIOR_COUNT` zero vectors count as seen before the stream.
        """
        count = self.count.float()
        weight = count / (count + PRIOR_COUNT)
        return (folded(vectors) - weight * self.mean) @ self._whitening(count, weight)

    def _whitening(self, count: Tensor, weight: Tensor) -> Tensor:
        # A new state brings another tensor or, in place, another version.
        state = self.scatter, self.scatter._version
        if self._root is None or self._root[0] is not state[0] or self._root[1] != state[1]:
            scatter = self.scatter + self.mean.outer(self.mean) * weight * PRIOR_COUNT
            values, vectors = torch.linalg.eigh(scatter.double() / (count + PRIOR_COUNT))
            values = values.clamp_min(0)
            values = values + self.shrinkage * values.mean()
            scale = torch.where(values > 0, values, torch.ones_like(values)).rsqrt()
            self._root = *state, (vectors * scale @ vectors.t()).float()
        return self._root[2]

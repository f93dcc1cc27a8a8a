"""Running mean and scale of the instruction vectors: one state for all layers, carried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.core.precision import Float32Buffers

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig

PRIOR_COUNT = 8


class InstructionStatistics(Float32Buffers):
    """Running mean m and scale sigma of the instruction vectors seen in training.

    One state for all layers, carried with the adapter, frozen in evaluation. `count` is the number
    of instructions, `mean` is (H), `spread` the summed squared distance from the mean. Sums of one
    optimizer step wait in `pending` and are merged by :meth:`commit`, so that every micro-batch of
    the step sees the same statistics, on any number of processes.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor
    teacher_steps: Tensor

    def __init__(self, hidden: int, config: RoutedConfig | None = None) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("spread", torch.zeros(()))
        # Optimizer steps that the teacher has seen; 0 means that it has not been started.
        self.register_buffer("teacher_steps", torch.zeros((), dtype=torch.int64))
        self._pending: Tensor | None = None  # count, squares and sum of the step, (2 + H)

    @torch.no_grad()
    def observe(self, vectors: Tensor, valid: Tensor) -> None:
        """Counts instruction vectors (B, H) where valid (B) is True, summed over all processes."""
        # float64: the spread is a small difference of large sums.
        weights = valid.to(torch.float64)
        wide = vectors.double()
        sums = torch.cat(
            [weights.sum()[None], (wide.square().sum(1) * weights).sum()[None], weights @ wide]
        )
        sums = sum_over_processes(sums)
        self._pending = sums if self._pending is None else self._pending + sums

    @torch.no_grad()
    def commit(self, share: float | None = None) -> None:
        """Merges the pending sums (Chan et al., 1979); call once after an optimizer step.

        Args:
            share: how much of mean and variance the step's instructions are from now on: 0 leaves
                all as it was; None: every instruction counts alike.
        """
        pending, self._pending = self._pending, None
        if pending is None or share == 0:
            return
        count, square, total = pending[0], pending[1], pending[2:]
        new_mean = total / count.clamp_min(1)
        new_spread = (square - count * new_mean.square().sum()).clamp_min(0)
        old = self.count.double()
        both = (old + count).clamp_min(1)
        shift = new_mean - self.mean.double()
        part = count / both
        spread = self.spread.double() + new_spread + shift.square().sum() * old * part
        if share is not None:
            # The first instructions are all there is, and a step without any moves nothing.
            part = torch.where((old > 0) & (count > 0), share, part)
            before, new = self.spread.double() / old.clamp_min(1), new_spread / count.clamp_min(1)
            spread = both * (before + part * (new - before + (1 - part) * shift.square().sum()))
        self.mean.copy_(self.mean.double() + shift * part)
        self.spread.copy_(spread)
        self.count += count.to(self.count.dtype)

    @torch.no_grad()
    def normalise(self, vectors: Tensor) -> Tensor:
        """Returns (t - m) / sigma for t of (B, H) float32; sigma is one number for all dimensions.

        :data:`PRIOR_COUNT` zero vectors count as seen before the stream: the map starts as the
        identity, and a stream that opens with one single instruction still routes.
        """
        count = self.count.float()
        weight = count / (count + PRIOR_COUNT)
        spread = self.spread + self.mean.square().sum() * weight * PRIOR_COUNT
        variance = spread / ((count + PRIOR_COUNT) * vectors.shape[-1])
        sigma = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
        return (vectors - weight * self.mean) / sigma

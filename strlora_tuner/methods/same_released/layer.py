"""SAME as released: y = W x + s (sum_j w_j B_j)(sum_i w_i A_i) x, one w for all tokens of a batch.

    training   w = mean over all tokens of softmax(R x), without the experts that are left out
    answers    w = 1 for the largest of the mean of softmax(R x / E), over the tokens of the pass

Gradients of R and A are scaled before the optimizer, along directions of one batch's centred
covariance: U from the QR of X'X Q with a random Q, unsorted, S the deviations of X U. Padding
counts everywhere. Dropout is not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank, init_router
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.methods.same.spectrum import scaled, scores, window_means
from strlora_tuner.methods.same_released.options import Options

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig

_EVERY = 20  # passes from one covariance to the next
_FIRST = 10  # passes after which the router's gradient is scaled
_KEPT = 0.95  # of the moving averages of use and importance
_LEAST = 0.8  # of a router's gradient along a direction
_NONE = 1e-6  # a deviation that counts as none


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient (rows, d) becomes (G + G V (diag(f) - I) V') / damping."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, directions: Tensor, factors: Tensor, damping: float
    ) -> Tensor:
        """Returns the weight."""
        ctx.save_for_backward(directions, factors)
        ctx.damping = damping
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Returns the scaled gradient of the weight."""
        directions, factors = ctx.saved_tensors
        found = scaled(gradient.to(directions), directions, factors) / ctx.damping
        return found.to(gradient), None, None, None


class ReleasedExperts(ExpertBank):
    """E experts that are added up before they act; buffers hold what the released layer holds.

    `directions` (d_in, K) and `spectrum` (K) are of one batch of this chunk, `past_*` of the last
    chunk's last. `utilization` and `importance` (E) are moving averages, the second over chunks;
    `active` (E) experts take part; `passes` counts the chunk's forward passes.
    """

    directions: Tensor
    spectrum: Tensor
    past_directions: Tensor
    past_spectrum: Tensor
    utilization: Tensor
    importance: Tensor
    active: Tensor
    passes: Tensor
    past_chunks: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: RoutedConfig) -> None:
        super().__init__(d_in, d_out, config)
        options: Options = config.options()
        count, components = options.num_experts, min(options.components, d_in)
        self.router = nn.Parameter(torch.empty(count, d_in))
        init_router(self.router)
        for name in ("directions", "past_directions"):
            self.register_buffer(name, torch.zeros(d_in, components))
        for name in ("spectrum", "past_spectrum"):
            self.register_buffer(name, torch.zeros(components))
        for name in ("utilization", "importance"):
            self.register_buffer(name, torch.full((count,), 1 / count))
        self.register_buffer("active", torch.ones(count, dtype=torch.bool))
        for name in ("passes", "past_chunks"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        # What a pass of training found; a layer that runs again in the backward pass takes it over.
        self._mask = self.active
        self._router_factors: Tensor | None = None

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the mixture, (B, L, d_out)."""
        gates = self._training_gates(x, context) if self.training else self._top_gate(x)
        hidden = F.linear(x, self._scaled_down(self.A) if self.training else self.A)
        weights = gates.to(hidden.dtype)
        self.record(context, x, gates[None, None])
        low = torch.einsum("ble...,e->bl...", hidden.unflatten(-1, (len(gates), -1)), weights)
        out = torch.einsum("oer,e->or", self.B.unflatten(1, (len(gates), -1)), gates.to(self.B))
        return self._add(result, low * self.scaling, out)

    def _top_gate(self, x: Tensor) -> Tensor:
        """Returns 1 for the expert that the tokens of the whole pass prefer, (E) float32."""
        with float32_scores(x):
            values = F.linear(x.flatten(0, 1).float(), self.router.float()) / len(self.router)
            best = values.softmax(-1).mean(0).argmax()
        return F.one_hot(best, len(self.router)).float()

    def _training_gates(self, x: Tensor, context: RoutingContext) -> Tensor:
        """Returns the batch's mean gates over the experts that take part, (E) float32."""
        with float32_scores(x):
            rows = x.flatten(0, 1).float()
            if context.in_forward:
                self._begin_pass(rows.detach())
            router = self.router
            if self._router_factors is not None:
                router = ScaledGradient.apply(router, self.directions, self._router_factors, 1.0)
            gates = F.linear(rows, router.float()).softmax(-1)
            mean = gates.mean(0) * self._mask
            if context.in_forward:
                self._end_pass(gates.detach(), rows.detach())
            return mean / mean.sum()

    def _scaled_down(self, weight: Tensor) -> Tensor:
        """Returns A, whose gradient is that times the damped inverse of the last chunk's S."""
        if int(self.past_chunks) == 0 or not self.past_spectrum.any():
            return weight
        mu = self.config.damping
        factors = torch.where(self._first(self.past_spectrum), mu / (self.past_spectrum + mu), 1.0)
        found: Tensor = ScaledGradient.apply(weight, self.past_directions, factors, mu)
        return found

    def _first(self, spectrum: Tensor) -> Tensor:
        """Marks one direction more than those whose squares, in their order, stay in the share."""
        squares = spectrum.square()
        taken = (squares.cumsum(0) / squares.sum() <= self.config.energy).sum() + 1
        return torch.arange(len(spectrum), device=spectrum.device) < taken

    @torch.no_grad()
    def _begin_pass(self, rows: Tensor) -> None:
        passes, self._mask = int(self.passes), self.active
        if passes % _EVERY == 0:
            centred = rows - rows.mean(0)
            # From the saved count: a chunk that was interrupted draws what it would have drawn.
            generator = torch.Generator().manual_seed(passes)
            drawn = torch.randn(self.directions.shape, generator=generator).to(rows)
            self.directions = torch.linalg.qr(centred.t() @ (centred @ drawn)).Q
            squares = (centred @ self.directions).square().sum(0)
            self.spectrum = (squares / max(len(rows) - 1, 1)).sqrt()
        self._router_factors = None
        if passes + 1 >= _FIRST and self.spectrum.any():
            marks = self._first(self.spectrum)
            inverse = 1 / (window_means(self.spectrum, self.config.window) + _NONE)
            most = inverse[marks].max()
            self._router_factors = torch.where(marks, (inverse / most).clamp_min(_LEAST), 1.0)

    @torch.no_grad()
    def _end_pass(self, gates: Tensor, rows: Tensor) -> None:
        self.passes += 1
        self.utilization = _KEPT * self.utilization + (1 - _KEPT) * gates.mean(0)
        important = (rows.square().sum(1) @ gates) / len(rows)
        self.importance = _KEPT * self.importance + (1 - _KEPT) * important
        if int(self.active.sum()) == 1 < len(self.active):
            return  # once all others are left out, it stays so for the chunk
        self.active = scores(self.utilization, self.importance) >= self.config.freeze_score
        self.active[min(int(self.past_chunks), len(self.active) - 1)] = True

    @torch.no_grad()
    def begin_chunk(self) -> None:
        """Keeps the last batch's directions; all experts take part again."""
        count = int((self.spectrum > _NONE).sum())
        for name in ("directions", "spectrum"):
            kept = torch.zeros_like(getattr(self, name))
            kept[..., :count] = getattr(self, name)[..., :count]
            setattr(self, f"past_{name}", kept)
        self.utilization = torch.full_like(self.utilization, 1 / len(self.utilization))
        self.active = torch.ones_like(self.active)
        self.passes.zero_()
        self.past_chunks += 1

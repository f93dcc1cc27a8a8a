"""SAME: y = W x + s sum_e g_e(x) B_e A_e x, g = softmax(R x), whose updates are held back.

What the optimizer did is changed after its step (dR, dA_e, dB_e), by the covariance C of inputs:

    router    dR  <- dR (V g(S) V' + I - V V')            C of the stream so far, g falls with S
    experts   dA_e <- dA_e mu (C_past + mu I)^-1          C of the chunks before, along V
              dB_e <- dB_e mu (A_e C_past A_e' + mu I)^-1
    resting   dA_e = dB_e = 0, and g leaves e out: little used now, important before

The factor mu lets a direction that no input had keep the optimizer's step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank, init_router
from strlora_tuner.core.gating import MASKED_SCORE
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.core.sharded import write
from strlora_tuner.methods.same.options import Options
from strlora_tuner.methods.same.spectrum import (
    damped,
    expert_factors,
    kept,
    router_factors,
    scaled,
    scores,
    sketch_of,
    spectrum_of,
)

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


class StabilizedExperts(ExpertBank):
    """E experts, all of which every token uses, and in buffers what inputs there were.

    `sketch` (d_in, K) is the mean of x x' O over `tokens` tokens of the stream; `directions` and
    `spectrum` its eigenvectors and values when they were last found, `past_*` before this chunk.
    `usage` and `importance` (E) are sums over this chunk's tokens, `past_importance` of earlier
    ones. `active` (E) are the experts that do not rest; `steps` counts the chunk's.
    """

    sketch: Tensor
    tokens: Tensor
    directions: Tensor
    spectrum: Tensor
    past_directions: Tensor
    past_spectrum: Tensor
    usage: Tensor
    importance: Tensor
    past_importance: Tensor
    active: Tensor
    steps: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: RoutedConfig) -> None:
        super().__init__(d_in, d_out, config)
        options: Options = config.options()
        count, components = options.num_experts, min(options.components, d_in)
        self.router = nn.Parameter(torch.empty(count, d_in))
        init_router(self.router)
        for name in ("sketch", "directions", "past_directions"):
            self.register_buffer(name, torch.zeros(d_in, components))
        for name in ("spectrum", "past_spectrum"):
            self.register_buffer(name, torch.zeros(components))
        for name in ("usage", "importance", "past_importance"):
            self.register_buffer(name, torch.zeros(count))
        self.register_buffer("active", torch.ones(count, dtype=torch.bool))
        for name in ("tokens", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.forget_step()

    def forget_step(self) -> None:
        """Drops what was seen of a step that is not done: weights may have been loaded."""
        self._before: dict[str, Tensor] = {}
        self._seen: Tensor | None = None

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the mixture, (B, L, d_out); in training without the resting experts."""
        hidden, values = self.projected(x, self.router)
        values = values.float()
        if self.training:
            if context.in_forward:
                self._observe(x, values, context)
            # They rest in training only: in answers all take part (docs/faithfulness.md).
            values = values.masked_fill(~self.active, MASKED_SCORE)
        gates = values.softmax(-1)
        self.record(context, x, gates)
        return self.combine(hidden, result, gates)

    @torch.no_grad()
    def _observe(self, x: Tensor, values: Tensor, context: RoutingContext) -> None:
        """Adds up sketch, usage, importance and number of a pass's tokens, padding left out."""
        if not self._before:  # here ZeRO-3 has the parameters whole
            self._before = {k: p.detach().clone() for k, p in self.named_parameters()}
        real = context.token_weights(x, "mask").flatten() > 0
        with float32_scores(x):
            rows = x.flatten(0, 1).float() * real[:, None]
            gates = values.flatten(0, 1).softmax(-1) * real[:, None]
            sums = (sketch_of(rows, self.sketch.shape[1]).flatten(), gates.sum(0))
            important = rows.square().sum(-1) @ gates
            seen = torch.cat([*sums, important, real.sum()[None].float()])
        self._seen = seen if self._seen is None else self._seen + seen

    def seen(self) -> Tensor:
        """Returns the sums of the step's tokens here, flat: sketch, usage, importance, number."""
        if self._seen is None:
            return self.sketch.new_zeros(self.sketch.numel() + 2 * len(self.usage) + 1)
        return self._seen

    @torch.no_grad()
    def end_step(self, seen: Tensor) -> None:
        """Takes in what all processes have seen in a step, and holds its updates back."""
        sizes = [self.sketch.numel(), len(self.usage), len(self.usage), 1]
        sketch, usage, importance, number = seen.to(self.sketch).split(sizes)
        self._hold_back()
        count = number.round().long()[0]
        both = (self.tokens + count).clamp_min(1)
        self.sketch.mul_(self.tokens / both).add_(sketch.view_as(self.sketch) / both)
        self.tokens += count
        self.usage += usage
        self.importance += importance
        self.steps += 1
        if int(self.steps) % self.config.refresh_steps == 0:
            self._refresh()
        self.forget_step()

    def _hold_back(self) -> None:
        """Replaces what the optimizer has done to router and experts by its scaled part."""
        if not self._before:
            return
        config, before = self.config, self._before
        moved = {k: (p.detach() - before[k]).to(self.sketch) for k, p in self.named_parameters()}
        factors = router_factors(self.spectrum, config.energy, config.window)
        moved["router"] = scaled(moved["router"], self.directions, factors)
        factors = expert_factors(self.past_spectrum, config.energy, config.damping)
        moved["A"] = scaled(moved["A"], self.past_directions, factors)
        marks = kept(self.past_spectrum, config.energy)
        read = before["A"].to(self.sketch) @ (self.past_directions * marks)
        read = (read * self.past_spectrum.clamp_min(0).sqrt()).unflatten(
            0, (config.num_experts, -1)
        )
        moved["B"] = damped(moved["B"], read @ read.mT, config.damping)
        trains = self.active.repeat_interleave(config.r // config.num_experts)
        moved["A"] = moved["A"] * trains[:, None]
        moved["B"] = moved["B"] * trains
        for name, parameter in self.named_parameters():
            write(parameter, before[name] + moved[name])

    def _refresh(self) -> None:
        """Finds the router's directions and the experts that rest."""
        self.directions, self.spectrum = spectrum_of(self.sketch)
        if not self.past_importance.any():
            return  # nothing was important before
        score = scores(self.usage, self.past_importance)
        self.active = score >= self.config.freeze_score
        self.active[score.argmax()] = True

    @torch.no_grad()
    def begin_chunk(self) -> None:
        """Makes what was seen so far the past; all experts are active again."""
        self.directions, self.spectrum = spectrum_of(self.sketch)
        self.past_directions, self.past_spectrum = self.directions.clone(), self.spectrum.clone()
        self.past_importance += self.importance
        for sums in (self.usage, self.importance, self.steps):
            sums.zero_()
        self.active = torch.ones_like(self.active)
        self.forget_step()

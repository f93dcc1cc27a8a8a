"""One layer's mixture of LoRA experts with its routers and their moving averages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.buffers import Float32Buffers
from strlora_tuner.instruction import RoutingContext
from strlora_tuner.projection import shared_projection
from strlora_tuner.routing import (
    InjectGradient,
    expert_keys,
    outside_bias,
    select_experts,
    stability_divergence,
    token_gates,
    token_scores,
)

if TYPE_CHECKING:
    from strlora_tuner.config import StrLoraConfig

PromptPart = tuple[Tensor, Tensor, Tensor, Tensor]
ROUTERS = ("query", "key", "prototypes")


class MixtureOfExperts(Float32Buffers):
    """E LoRA experts of rank r / E, stacked, routed by the instruction and by each token.

    Parameters sit directly on this module: PEFT restores keys only one level deep, and DeepSpeed
    ZeRO-3 gathers what the running module owns. A is (r, d_in), B is (d_out, r); expert e owns rows
    (columns) e * r/E to (e+1) * r/E. `query` is Wq (D, d_in), `key` Wk (D, H), `prototypes` P
    (E, D), `task` R (E, H). The buffers `ema_*` are the teacher, in float32 for good.
    """

    ema_query: Tensor
    ema_key: Tensor
    ema_prototypes: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: StrLoraConfig) -> None:
        super().__init__()
        self.config = config
        self.scaling = config.lora_alpha / config.r
        experts, width = config.num_experts, config.router_dim
        self.A = nn.Parameter(torch.empty(config.r, d_in))
        self.B = nn.Parameter(torch.empty(d_out, config.r))
        self.query = nn.Parameter(torch.empty(width, d_in))
        self.key = nn.Parameter(torch.empty(width, hidden))
        self.prototypes = nn.Parameter(torch.empty(experts, width))
        self.task = nn.Parameter(torch.empty(experts, hidden))
        self.reset_parameters()
        for name in ROUTERS:
            copy = getattr(self, name).detach().clone().float()
            self.register_buffer(f"ema_{name}", copy)
        self._fixed: tuple[tuple[int, int], PromptPart] | None = None
        self.divergence: Tensor | None = None
        self.record: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.without: int | None = None  # an expert left out at evaluation (ablation.py)

    def reset_parameters(self) -> None:
        """Initialises as published: A normal with deviation 0.01, B zero, routers Xavier."""
        nn.init.normal_(self.A, std=0.01)
        nn.init.zeros_(self.B)
        nn.init.xavier_uniform_(self.query)
        nn.init.xavier_uniform_(self.key)
        nn.init.normal_(self.prototypes)
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))
        bound = self.task.shape[-1] ** -0.5  # nn.Linear's default
        nn.init.uniform_(self.task, -bound, bound)

    def freeze_untrained(self) -> None:
        """Freezes the routers that the configuration does not train."""
        if self.config.freeze_routers:
            for name in ROUTERS:
                getattr(self, name).requires_grad_(False)
        if self.config.freeze_routers or self.config.task_router == "frozen":
            self.task.requires_grad_(False)

    @property
    def stability_on(self) -> bool:
        """Whether the stability term has anything to act on."""
        return self.config.stability_weight > 0 and not self.config.freeze_routers

    @torch.no_grad()
    def start_teacher(self) -> None:
        """Makes the teacher a copy of the routers."""
        for name in ROUTERS:
            getattr(self, f"ema_{name}").copy_(getattr(self, name))

    @torch.no_grad()
    def update_teacher(self) -> None:
        """theta_ema <- b theta_ema + (1 - b) theta, in float32; call after an optimizer step."""
        for name in ROUTERS:
            teacher = getattr(self, f"ema_{name}")
            teacher.lerp_(getattr(self, name).to(teacher), 1 - self.config.ema_decay)

    def forward(self, x: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns the routed update, (B, L, d_out), for x of (B, L, d_in).

        In training with the stability term on, its gradient is already attached to the result.
        """
        config = self.config
        instruction = context.instruction(adapter, x)
        keys, bias, kept, probabilities = self._prompt_part(instruction, context)
        stabilise = self.training and self.stability_on
        hidden, query, detached_query, taught_query = self._project(x, stabilise)
        gates = token_gates(
            token_scores(query, keys) + bias,
            config.token_top_k,
            config.top_k,
            config.unused_expert_gradient,
        )
        if context.recording:
            weights = context.token_weights(x, "mask")
            self.record = (gates.detach(), kept.detach(), probabilities.detach(), weights)
        if config.task_router == "straight_through":
            gates = gates * (1 + probabilities - probabilities.detach())[:, None, :]
        scale = self.scaling * (config.num_experts if config.gate_scale == "num_experts" else 1)
        experts = hidden.unflatten(-1, (config.num_experts, -1))
        weighted = experts * (gates * scale).to(hidden.dtype).unsqueeze(-1)
        update = F.linear(weighted.flatten(-2), self.B)
        if not stabilise:
            return update
        student = token_scores(detached_query, keys)
        with torch.no_grad():
            teacher_keys = expert_keys(self.ema_key, self.ema_prototypes, instruction)
            teacher = token_scores(taught_query, teacher_keys)
        value = stability_divergence(
            teacher,
            student,
            outside_bias(kept),
            context.token_weights(x, config.padding),
            config.stability_temperature,
        ) * (config.stability_weight / context.num_layers)
        self.divergence = value.detach()
        if not update.requires_grad:
            return update
        return InjectGradient.apply(update, value * context.backward_scale(config.padding))

    def _prompt_part(self, instruction: Tensor, context: RoutingContext) -> PromptPart:
        """What the prompt alone fixes: keys (B, E, D), bias (B, 1, E), kept and p (B, E).

        Without gradients it is computed once a prompt and reused in every decoding step.
        """
        reusable = not self.training and not torch.is_grad_enabled()
        version = (context.version, instruction.shape[0])
        if reusable and self._fixed is not None and self._fixed[0] == version:
            return self._fixed[1]
        probabilities, kept = select_experts(
            self.task, instruction, self.config.top_k, self.without
        )
        keys = expert_keys(self.key, self.prototypes, instruction)
        bias = outside_bias(kept)
        if self.config.task_router == "prior":
            bias = bias + probabilities.log()[:, None, :]
        parts = (keys, bias, kept, probabilities)
        self._fixed = (version, parts) if reusable else None
        return parts

    def _project(self, x: Tensor, stabilise: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns A dropout(x), Wq x, Wq x with x detached, and the teacher's Wq x.

        Without dropout it is one product; the last two are used with the stability term only.
        """
        rate = self.config.lora_dropout if self.training else 0.0
        if stabilise:
            hidden, query, detached, taught = shared_projection(
                x, self.A, self.query, self.ema_query
            )
            if rate > 0:
                hidden = F.linear(F.dropout(x, rate), self.A)
            return hidden, query, detached, taught
        if rate > 0:
            query = F.linear(x, self.query)
            return F.linear(F.dropout(x, rate), self.A), query, query, query
        both = F.linear(x, torch.cat([self.A, self.query]))
        query = both[..., self.config.r :]
        return both[..., : self.config.r], query, query, query

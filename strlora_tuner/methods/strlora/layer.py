"""One layer's mixture of LoRA experts with its routers and their moving averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.core.autograd import InjectGradient, shared_projection
from strlora_tuner.core.expert_bank import ExpertBank, init_router
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import float32_scores
from strlora_tuner.methods.strlora.options import ROUTERS, Options, stability_acts
from strlora_tuner.methods.strlora.routing import token_gates
from strlora_tuner.methods.strlora.two_stage import (
    Projected,
    Prompt,
    Routers,
    Settings,
    compute_gates,
    fused_route,
    route,
    route_instruction,
)

if TYPE_CHECKING:
    from strlora_tuner.methods.strlora.config import Config


class MixtureOfExperts(ExpertBank):
    """E LoRA experts of rank r / E, stacked, routed by the instruction and by each token.

    Parameters sit directly on this module: PEFT restores keys only one level deep, and DeepSpeed
    ZeRO-3 gathers what the running module owns. A is (r, d_in), B is (d_out, r); expert e owns rows
    (columns) e * r/E to (e+1) * r/E. `query` is Wq (D, d_in), `key` Wk (D, H), `prototypes` P
    (E, D), `task` R (E, H). The buffers `ema_*` are the teacher, in float32 for good; R has one
    unless the stability term compares stage 2's scores alone.
    """

    ema_query: Tensor
    ema_key: Tensor
    ema_prototypes: Tensor
    ema_task: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config)
        options: Options = config.options()
        experts, width = options.num_experts, options.router_dim
        self.query = nn.Parameter(torch.empty(width, d_in))
        self.key = nn.Parameter(torch.empty(width, hidden))
        self.prototypes = nn.Parameter(torch.empty(experts, width))
        self.task = nn.Parameter(torch.empty(experts, hidden))
        self.reset_parameters()
        self.averaged = ROUTERS if options.stability_on == "scores" else (*ROUTERS, "task")
        for name in self.averaged:
            copy = getattr(self, name).detach().clone().float()
            self.register_buffer(f"ema_{name}", copy)
        self._fixed: tuple[Tensor, Prompt] | None = None
        self._decoding: Tensor | None = None
        self.divergence: Tensor | None = None
        self.without: int | None = None  # an expert left out at evaluation (ablation.py)

    def reset_parameters(self) -> None:
        """Initialises the routers as published: Xavier, prototypes normal and then normalised."""
        nn.init.xavier_uniform_(self.query)
        nn.init.xavier_uniform_(self.key)
        nn.init.normal_(self.prototypes)
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))
        init_router(self.task)

    def freeze_untrained(self) -> None:
        """Freezes the routers that the configuration does not train."""
        if self.config.freeze_routers or self.config.token_router == "off":
            for name in ROUTERS:
                getattr(self, name).requires_grad_(False)
        if self.config.freeze_routers or self.config.task_router == "frozen":
            self.task.requires_grad_(False)

    def losses(self) -> dict[str, Tensor]:
        """Returns the layer's share of the stability loss, if it is on."""
        return {} if self.divergence is None else {"stability_loss": self.divergence}

    @property
    def stability_on(self) -> bool:
        """Whether the stability term has anything to act on."""
        return stability_acts(self.config)

    @torch.no_grad()
    def start_teacher(self) -> None:
        """Makes the teacher a copy of the routers."""
        for name in self.averaged:
            getattr(self, f"ema_{name}").copy_(getattr(self, name))

    @torch.no_grad()
    def update_teacher(self) -> None:
        """theta_ema <- b theta_ema + (1 - b) theta, in float32; call after an optimizer step."""
        for name in self.averaged:
            teacher = getattr(self, f"ema_{name}")
            teacher.lerp_(getattr(self, name).to(teacher), 1 - self.config.ema_decay)

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the routed update, in training with the stability term's gradient."""
        instruction = context.instruction(adapter, x)
        index = context.index(adapter, x)
        settings = self._settings()
        if self.training and self.stability_on:
            return self._stabilised(x, result, instruction, index, context, settings)
        answers = not self.training and not torch.is_grad_enabled()
        make_prompt = self._remembered_prompt if answers else self._prompt
        prompt = make_prompt(instruction, settings)
        if answers and x.shape[1] == 1 and index is None:
            return self._add(result, self._decoded(x, prompt, settings))
        hidden, query = self.projected(x, self.query[: self.width])
        with float32_scores(x):
            weighted, gates = compute_gates(hidden, query, prompt, settings, index)
        self.record(context, x, gates, prompt.kept, prompt.probabilities, index)
        return self._add(result, weighted)

    def _stabilised(
        self,
        x: Tensor,
        result: Tensor,
        instruction: Tensor,
        index: Tensor | None,
        context: RoutingContext,
        settings: Settings,
    ) -> Tensor:
        projected = self._project_with_teacher(x)
        routers = self._routers()
        task = self.ema_task if "task" in self.averaged else routers.task
        width = self.width
        teacher = Routers(task, self.ema_key[:width], self.ema_prototypes[:, :width])
        tokens = context.token_weights(x, self.config.padding)
        with float32_scores(x):
            weighted, gates, prompt, divergence = self._route(x)(
                projected, instruction, routers, teacher, tokens, settings, index
            )
        self.record(context, x, gates, prompt.kept, prompt.probabilities, index)
        # Each layer injects its own part: the term is the mean over layers.
        value = divergence * (self.config.stability_weight / context.num_layers)
        self.divergence = value.detach()
        output = self._add(result, weighted)
        if not output.requires_grad:  # reentrant checkpointing: the pass with gradients follows
            return output
        return InjectGradient.apply(output, value * context.backward_scale(self.config.padding))

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            config.num_experts,
            config.top_k,
            config.token_top_k,
            config.task_router,
            config.unused_expert_gradient,
            self.scale,
            config.stability_temperature,
            config.stability_on,
        )

    @property
    def width(self) -> int:
        """How many rows of stage 2's routers compute: none where it is off."""
        return 0 if self.config.token_router == "off" else len(self.query)

    def _routers(self) -> Routers:
        return Routers(self.task, self.key[: self.width], self.prototypes[:, : self.width])

    def _route(self, x: Tensor) -> Callable[..., Any]:
        # ZeRO-3 swaps a parameter's storage between forward and backward, which only eager
        # autograd is known to follow; inside somebody's torch.compile there is nothing to nest.
        wanted = self.config.compile_routing == "on" or (
            self.config.compile_routing == "auto" and x.is_cuda
        )
        if not wanted or hasattr(self.query, "ds_id") or torch.compiler.is_compiling():
            return route
        return fused_route()

    def _prompt(self, instruction: Tensor, settings: Settings) -> Prompt:
        with float32_scores(instruction):
            return route_instruction(self._routers(), instruction, settings, self.without)

    def _remembered_prompt(self, instruction: Tensor, settings: Settings) -> Prompt:
        """The prompt's part, computed once a prompt and reused in every decoding step."""
        # A new prompt brings a new tensor. Comparing identity and not a counter spares a compiled
        # layer a compilation for every prompt.
        if self._fixed is None or self._fixed[0] is not instruction:
            prompt = self._prompt(instruction, settings)
            self._fixed, self._decoding = (instruction, prompt), None
        return self._fixed[1]

    def _decoded(self, x: Tensor, prompt: Prompt, settings: Settings) -> Tensor:
        """Returns the weighted experts (B, 1, r) of one new token a row, x (B, 1, d_in).

        The prompt's keys are multiplied with Wq once, into (B, d_in, E): a step then needs neither
        Wq nor keys, and costs about what plain LoRA's step does.
        """
        hidden = F.linear(x, self.A)
        with float32_scores(x):
            if self._decoding is None:
                self._decoding = (prompt.keys @ self.query[: self.width].float()).transpose(1, 2)
            scores = torch.baddbmm(prompt.bias, x.float(), self._decoding)
            gates = token_gates(scores, settings.token_top_k, settings.top_k)
            weights = (gates * settings.scale).to(hidden.dtype).unsqueeze(-1)
            weighted = hidden.view(*weights.shape[:-1], -1) * weights
        return weighted.view_as(hidden)

    def _project_with_teacher(self, x: Tensor) -> Projected:
        """Multiplies x with A, after dropout, with Wq and with the teacher's Wq, in training.

        Without dropout it is one product.
        """
        own, teacher = self.query[: self.width], self.ema_query[: self.width]
        if self.config.lora_dropout == 0:
            return Projected(*shared_projection(x, self.A, own, teacher))
        # With dropout the experts read another x than the routers: A leaves the shared product.
        hidden = self.hidden(x)
        projected = shared_projection(x, self.A.new_empty(0, self.A.shape[1]), own, teacher)
        return Projected(hidden, *projected[1:])

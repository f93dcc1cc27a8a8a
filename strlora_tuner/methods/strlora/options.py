"""Options of a StrLoRA adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from strlora_tuner.methods.strlora.presets import FREEZE_ROUTERS_FROM, PRESETS
from strlora_tuner.options import (
    AdapterOptions,
    dropout_masks_option,
    experts_problems,
    option,
    top_k_problems,
)

# The routers that always have a teacher, a moving average of them; `task` has one where the
# stability term compares what it decides (`stability_on`).
ROUTERS = ("query", "key", "prototypes")


@dataclass
class Options(AdapterOptions):
    """Options of one StrLoRA adapter. The defaults are the `paper` preset."""

    structure: ClassVar[tuple[str, ...]] = (
        "num_experts",
        "router_dim",
        "instruction_norm",
        "instruction_text",
        "dropout_masks",
        "stability_on",
    )
    scheduled: ClassVar[tuple[str, ...]] = (
        "ema_decay",
        "stability_weight",
        "stability_temperature",
        "stability_reduction",
        "instruction_statistics",
        "freeze_routers",
        "task_router",
        "token_router",
        "top_k",
        "token_top_k",
        "unused_expert_gradient",
        "instruction_turns",
        "gate_scale",
        "padding",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    follows: ClassVar[Mapping[str, str]] = {"token_top_k": "top_k"}
    freeze_routers_from: ClassVar[Mapping[str, int]] = FREEZE_ROUTERS_FROM
    default_preset: ClassVar[str | None] = "paper"
    layer_tensors: ClassVar[tuple[str, ...]] = (
        "A",
        "B",
        "task",
        *ROUTERS,
        *(f"ema_{name}" for name in ROUTERS),
        "ema_task",
    )
    state_tensors: ClassVar[tuple[str, ...]] = ("count", "mean", "spread", "teacher_steps")
    num_experts: int = option(4, ge=1, description="Experts E a layer (published: 4).")
    top_k: int = option(
        2, ge=1, description="Experts that stage 1 keeps for an instruction, k <= E (published: 2)."
    )
    token_top_k: int = option(
        2,
        ge=1,
        description="Experts that stage 2 keeps for a token, <= top_k; top_k keeps the weights "
        "soft (released: 1, hard weights with a straight-through gradient).",
    )
    unused_expert_gradient: bool = option(
        True,
        description="With token_top_k < top_k: whether the gates of an expert that no token of the "
        "micro-batch uses get a gradient (the released code skips such an expert: false).",
    )
    router_dim: int = option(
        64, ge=1, description="Width D of stage 2's query and key (published: 64)."
    )
    task_router: Literal["frozen", "straight_through", "prior"] = option(
        "prior",
        description="How stage 1 learns. frozen: a random projection, as released. "
        "straight_through: gates times one, with the gradient of p. prior: log p_e is added to "
        "stage 2's scores inside the kept set.",
    )
    token_router: Literal["on", "off"] = option(
        "on",
        description="Stage 2. off: tokens choose nothing, and its routers neither train nor "
        "compute: kept experts weigh as stage 1 has them (prior: p inside the kept set; else "
        "alike).",
    )
    instruction_norm: Literal["none", "layernorm", "running"] = option(
        "running",
        description="What stage 1 and 2 see of the instruction vector t. none: t (released). "
        "layernorm: LayerNorm(t). running: (t - m) / sigma with running statistics of the "
        "instructions seen so far, carried with the adapter; it is what lets stage 1 separate "
        "tasks.",
    )
    instruction_turns: Literal["so_far", "all"] = option(
        "so_far",
        description="Which of a conversation's user turns make t. so_far: for what runs from the "
        "end of an answer to the end of the next, the turns up to there, in training as in a chat. "
        "all: one t for all of it, later turns included (released); cannot go on from a cache.",
    )
    instruction_text: Literal["prompt", "joined"] = option(
        "prompt",
        description="Which tokens of these turns. prompt: those of the prompt, and so the line end "
        "that a template writes behind a picture. joined: the turns read back as text, joined by a "
        "line end, without pictures and the blanks behind them, and encoded anew (released); every "
        "micro-batch waits once for its ids.",
    )
    instruction_statistics: Literal["count", "slow", "hold"] = option(
        "hold",
        description="How the running mean and scale move from the second chunk on, while the "
        "stability term acts. count: every instruction counts alike, as in the first chunk. slow: "
        "a step moves them by 1 - ema_decay. hold: not at all.",
    )
    dropout_masks: Literal["shared", "expert"] = dropout_masks_option()
    gate_scale: Literal["one", "num_experts"] = option(
        "one",
        description="What the gates of a token sum to. one: as published. num_experts: E, so that "
        "uniform gates over all experts equal a plain LoRA of the same rank.",
    )
    ema_decay: float = option(
        0.999,
        gt=0,
        lt=1,
        description="Decay b of the teacher routers, an exponential moving average taken after "
        "every optimizer step (published: 0.999).",
    )
    stability_weight: float = option(
        0.1,
        ge=0,
        description="Weight lambda of KL(teacher || student); 0 switches the term and the moving "
        "averages off (published: 0 in the first chunk, then 0.1).",
    )
    stability_on: Literal["scores", "gate", "gate_topk"] = option(
        "gate",
        description="What the term compares. scores: softmax of stage 2's scores in the student's "
        "kept set, so that nothing holds stage 1 (released). gate: the whole gate distribution "
        "before the choice of top_k, softmax(z + log p) over all experts. gate_topk: after it: the "
        "teacher's in its own kept set, the student's in both kept sets together. log p is left "
        "out where stage 1 is frozen.",
    )
    stability_temperature: float = option(
        1.0, gt=0, description="Temperature tau of both distributions in the term (published: 1)."
    )
    stability_reduction: Literal["mean", "sum"] = option(
        "mean",
        description="mean: the term is the mean over the tokens of the global batch, so that "
        "lambda means the same on 1 and on 64 processes. sum: the means of all micro-batches and "
        "processes are added up, as the released code does (effective weight 1.6 there).",
    )
    padding: Literal["mask", "include"] = option(
        "mask",
        description="mask: only real tokens count. include: in training the instruction vector and "
        "the stability term also average over padding, as the released code does.",
    )
    freeze_routers: bool = option(
        False,
        description="Freeze both stages' routers (released: from chunk 5, Gemma 4). The stability "
        "term then has no effect and is switched off.",
    )
    compile_routing: Literal["auto", "on", "off"] = option(
        "auto",
        description="Whether training fuses the routing arithmetic of a layer with torch.compile. "
        "auto: on CUDA only. It changes the speed, not the result (float32 rounding aside).",
    )
    require_teacher: bool = option(
        False,
        stored=False,
        description="Refuse to train from an adapter that carries no moving average.",
    )

    @classmethod
    def tensors_of_layer(cls, saved: Mapping[str, Any]) -> set[str]:
        """Returns `layer_tensors`, without an average of R where the term does not compare it."""
        scores = saved.get("stability_on", "scores") == "scores"
        return set(cls.layer_tensors) - ({"ema_task"} if scores else set())

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        problems = [*experts_problems(options), *top_k_problems(options)]
        if options.token_top_k > options.top_k:
            problems.append(
                f"token_top_k = {options.token_top_k} exceeds top_k = {options.top_k}: "
                f"use token_top_k <= {options.top_k}"
            )
        if options.token_router == "off" and options.token_top_k < options.top_k:
            problems.append(
                f"token_top_k = {options.token_top_k} with token_router = off: no token chooses "
                f"among the kept experts; use token_top_k = {options.top_k}"
            )
        return problems

    def idle_options(self) -> dict[str, str]:
        """Returns {option that does nothing here: the other option's value that makes it so}."""
        idle = {}
        if self.token_top_k == self.top_k:
            idle["unused_expert_gradient"] = f"token_top_k = top_k = {self.top_k}"
        if self.instruction_norm != "running":
            idle["instruction_statistics"] = f"instruction_norm {self.instruction_norm}"
        return idle


def stability_acts(options: Any) -> bool:
    """Whether the stability term of `options` (any object with them) has anything to act on."""
    held = options.stability_on != "scores" and options.task_router != "frozen"
    routed = options.token_router == "on" or held
    return options.stability_weight > 0 and not options.freeze_routers and routed

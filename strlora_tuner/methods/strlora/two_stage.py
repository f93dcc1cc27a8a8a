"""Both stages of a layer's routing, from what the prompt fixes to every token's weighted experts.

Pure functions of tensors, put together from routing.py. :func:`route` is what training runs;
:func:`fused_route` is the same function compiled into a few kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from strlora_tuner.core.gating import at, mask_bias
from strlora_tuner.methods.strlora.routing import (
    expert_keys,
    select_experts,
    stability_divergence,
    token_gates,
    token_scores,
)


class Settings(NamedTuple):
    """The options that routing depends on; `scale` is alpha / r, times E with gate_scale."""

    num_experts: int
    top_k: int
    token_top_k: int
    task_router: str
    unused_expert_gradient: bool
    scale: float
    temperature: float
    stability_on: str


class Routers(NamedTuple):
    """Weights of a router: R (E, H), Wk (D, H) and P (E, D)."""

    task: Tensor
    key: Tensor
    prototypes: Tensor


class Prompt(NamedTuple):
    """What the prompt alone fixes: keys (B, E, D), bias (B, 1, E), kept and p (B, E).

    Where rows have several segments, B is their number.
    """

    keys: Tensor
    bias: Tensor
    kept: Tensor
    probabilities: Tensor


class Projected(NamedTuple):
    """A x (B, L, r), Wq x (B, L, D), Wq x with x detached, and the teacher's Wq x."""

    hidden: Tensor
    query: Tensor
    detached: Tensor
    teacher_query: Tensor


def log_prior(probabilities: Tensor) -> Tensor:
    """Returns log p, (B, 1, E), from p (B, E).

    A sharp stage 1 underflows to p = 0, whose logarithm would make the gradient NaN.
    """
    return probabilities.clamp_min(1e-30).log()[:, None, :]


def stability_biases(student: Prompt, teacher: Prompt, settings: Settings) -> tuple[Tensor, Tensor]:
    """Returns what the stability term adds to the teacher's and the student's z / tau.

    Stage 1 enters here, by its prior and by the sets that it keeps. After the choice of top_k the
    teacher has its own set and the student both, so that the term stays finite where the sets
    differ, and is the divergence of the gates where they agree.

    Returns:
        Both (B, 1, E), the teacher's first.
    """
    if settings.stability_on == "scores":
        inside = mask_bias(student.kept)
        return inside, inside
    zero = torch.zeros_like(teacher.bias)
    priors = [zero, zero]
    if settings.task_router != "frozen":
        # z is divided by tau, and the prior with it: the gates are softmax(z + log p) at tau = 1.
        priors = [log_prior(p.probabilities) / settings.temperature for p in (teacher, student)]
    if settings.stability_on == "gate":
        return priors[0], priors[1]
    both = teacher.kept | student.kept
    return priors[0] + mask_bias(teacher.kept), priors[1] + mask_bias(both)


def route_instruction(
    routers: Routers, instruction: Tensor, settings: Settings, without: int | None = None
) -> Prompt:
    """Stage 1, and stage 2's keys, for instruction vectors (B, H)."""
    probabilities, kept = select_experts(routers.task, instruction, settings.top_k, without)
    bias = mask_bias(kept)
    if settings.task_router == "prior":
        bias = bias + log_prior(probabilities)
    keys = expert_keys(routers.key, routers.prototypes, instruction)
    return Prompt(keys, bias, kept, probabilities)


def compute_gates(
    hidden: Tensor,
    query: Tensor,
    prompt: Prompt,
    settings: Settings,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 2: A x of every expert times its gate and the scale, (B, L, r), and gates (B, L, E).

    `index` (B, L) says which prompt a token takes, if not its row's.
    """
    gates = token_gates(
        token_scores(query, prompt.keys, index) + at(prompt.bias[:, 0], index),
        settings.token_top_k,
        settings.top_k,
        settings.unused_expert_gradient,
    )
    weights = gates
    if settings.task_router == "straight_through":
        p = prompt.probabilities
        weights = weights * at(1 + p - p.detach(), index)
    experts = hidden.unflatten(-1, (settings.num_experts, -1))
    weighted = experts * (weights * settings.scale).to(hidden.dtype).unsqueeze(-1)
    return weighted.flatten(-2), gates


def route(
    projected: Projected,
    instruction: Tensor,
    routers: Routers,
    teacher: Routers,
    token_weights: Tensor,
    settings: Settings,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Prompt, Tensor]:
    """A training forward with the stability term.

    Args:
        projected: the products with x.
        instruction: t, (B, H) float32.
        routers: the student's.
        teacher: their moving averages; `task` is the student's where R has none.
        token_weights: (B, L) float32 that sum to 1.
        settings: the options.
        index: (B, L), which instruction a token takes; None: its row's.

    Returns:
        The weighted experts (B, L, r), the gates (B, L, E), the prompt's part, and the term: KL
        averaged over tokens, without its weight.
    """
    prompt = route_instruction(routers, instruction, settings)
    weighted, gates = compute_gates(projected.hidden, projected.query, prompt, settings, index)
    with torch.no_grad():
        held = route_instruction(teacher, instruction, settings)
        teacher_scores = token_scores(projected.teacher_query, held.keys, index)
    theirs, ours = stability_biases(prompt, held, settings)
    divergence = stability_divergence(
        teacher_scores,
        token_scores(projected.detached, prompt.keys, index),
        (at(theirs[:, 0], index), at(ours[:, 0], index)),
        token_weights,
        settings.temperature,
    )
    return weighted, gates, prompt, divergence


@functools.cache
def fused_route() -> Callable[..., tuple[Tensor, Tensor, Prompt, Tensor]]:
    """Returns :func:`route` compiled by torch.compile: the same numbers in a few kernels.

    Run eagerly it is some fifty small operations a layer. Sizes are symbolic, so that batches of
    another length do not compile anew.
    """
    return torch.compile(route, dynamic=True)

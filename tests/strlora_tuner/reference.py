"""An independent float64 implementation of one StrLoRA layer, straight from the formulas.

Loops over samples, tokens and experts; shares no code with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Weights:
    """A, B stacked over experts; Wq, Wk, P, R; and the teacher's Wq, Wk, P. All float64."""

    A: Tensor
    B: Tensor
    query: Tensor
    key: Tensor
    prototypes: Tensor
    task: Tensor
    ema_query: Tensor
    ema_key: Tensor
    ema_prototypes: Tensor


def layer_norm(t: Tensor) -> Tensor:
    centred = t - t.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5)


def scores(x: Tensor, t: Tensor, query: Tensor, key: Tensor, prototypes: Tensor) -> list[Tensor]:
    """z_e = <Wq x, (Wk LN(t)) * P_e / |P_e|> / sqrt(D) of one token."""
    q, c = query @ x, key @ layer_norm(t)
    rows = [p / torch.sqrt((p**2).sum()) for p in prototypes]
    return [(q * c * p).sum() / math.sqrt(len(q)) for p in rows]


def softmax(values: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(v) for v in values)
    return [torch.exp(v) / total for v in values]


def routed_update(
    x: Tensor, instructions: Tensor, weights: Weights, settings, token_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the update (B, L, d_out) and the unweighted stability divergence of one layer.

    `settings` has num_experts, top_k, token_top_k, task_router, gate_scale, alpha, rank and
    stability_temperature. Gradients of the update flow as in the paper: straight-through where
    weights are hard; x and t are detached in the divergence.
    """
    experts, rank = settings.num_experts, settings.rank // settings.num_experts
    scale = settings.alpha / settings.rank
    if settings.gate_scale == "num_experts":
        scale = scale * experts
    update = torch.zeros(*x.shape[:2], weights.B.shape[0], dtype=torch.float64)
    rows, divergence = [], torch.zeros((), dtype=torch.float64)
    for b in range(x.shape[0]):
        t = instructions[b]
        p = softmax([weights.task[e] @ t for e in range(experts)])
        order = sorted(range(experts), key=lambda e: -float(p[e].detach()))
        kept = sorted(order[: settings.top_k])
        columns = []
        for token in range(x.shape[1]):
            z = scores(x[b, token], t, weights.query, weights.key, weights.prototypes)
            used = [z[e] for e in kept]
            if settings.task_router == "prior":
                used = [z[e] + torch.log(p[e]) for e in kept]
            gates = softmax(used)
            if settings.token_top_k < settings.top_k:
                best = sorted(range(len(kept)), key=lambda i: -float(gates[i].detach()))
                best = best[: settings.token_top_k]
                total = sum(gates[i].detach() for i in best)
                gates = [
                    (g.detach() / total if i in best else 0.0) + g - g.detach()
                    for i, g in enumerate(gates)
                ]
            y = torch.zeros(weights.B.shape[0], dtype=torch.float64)
            for gate, e in zip(gates, kept, strict=True):
                if settings.task_router == "straight_through":
                    gate = gate * (1 + p[e] - p[e].detach())
                part = slice(e * rank, (e + 1) * rank)
                y = y + gate * (weights.B[:, part] @ (weights.A[part] @ x[b, token]))
            columns.append(scale * y)
            divergence = divergence + token_weights[b, token] * _divergence(
                x[b, token].detach(), t.detach(), weights, kept, settings.stability_temperature
            )
        rows.append(torch.stack(columns))
    return update + torch.stack(rows), divergence


def _divergence(x: Tensor, t: Tensor, weights: Weights, kept: list[int], tau: float) -> Tensor:
    student = scores(x, t, weights.query, weights.key, weights.prototypes)
    teacher = scores(x, t, weights.ema_query, weights.ema_key, weights.ema_prototypes)
    p = softmax([teacher[e].detach() / tau for e in kept])
    q = softmax([student[e] / tau for e in kept])
    return sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True))

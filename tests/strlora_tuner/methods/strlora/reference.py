"""An independent float64 implementation of one StrLoRA layer, straight from the formulas.

Loops over samples, tokens and experts; shares no code with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Zero vectors that count as seen before the stream (the package documents the same number).
ZEROS_SEEN = 8


@dataclass
class Weights:
    """A, B stacked over experts; Wq, Wk, P, R; and the teacher's Wq, Wk, P, R. All float64."""

    A: Tensor
    B: Tensor
    query: Tensor
    key: Tensor
    prototypes: Tensor
    task: Tensor
    ema_query: Tensor
    ema_key: Tensor
    ema_prototypes: Tensor
    ema_task: Tensor


@dataclass
class Instructions:
    """Every instruction vector that training has seen, kept as they are."""

    seen: list[Tensor] = field(default_factory=list)

    def vectors(self, embeddings: Tensor, mask: Tensor, norm: str) -> Tensor:
        """Returns t, (B, H): the normalised mean over marked positions; zero for a row with none.

        `embeddings` is (B, L, H) float64, `mask` (B, L) bool.
        """
        rows = []
        for row, marks in zip(embeddings, mask, strict=True):
            marked = [vector for vector, mark in zip(row, marks, strict=True) if mark]
            if not marked:
                rows.append(torch.zeros_like(row[0]))
                continue
            t = sum(marked) / len(marked)
            if norm == "layernorm":
                t = layer_norm(t)
            elif norm == "running":
                t = self.centred(t)
            rows.append(t)
        return torch.stack(rows)

    def centred(self, t: Tensor) -> Tensor:
        """(t - m) / sigma over all seen vectors and the zero vectors that start the stream."""
        everything = torch.stack([*self.seen, *[torch.zeros_like(t)] * ZEROS_SEEN])
        mean = everything.mean(0)
        sigma = torch.sqrt(((everything - mean) ** 2).mean())
        return (t - mean) / (sigma if sigma > 0 else 1.0)

    def count(self, embeddings: Tensor, mask: Tensor) -> None:
        """Adds a step's instructions; rows without one do not count."""
        for row, marks in zip(embeddings, mask, strict=True):
            if marks.any():
                self.seen.append(row[marks].mean(0))


def layer_norm(t: Tensor) -> Tensor:
    centred = t - t.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5)


def scores(x: Tensor, t: Tensor, query: Tensor, key: Tensor, prototypes: Tensor) -> list[Tensor]:
    """z_e = <Wq x, (Wk LN(t)) * P_e / |P_e|> / sqrt(D) of one token."""
    q, c = query @ x, key @ layer_norm(t)
    rows = [p / torch.sqrt((p**2).sum()) for p in prototypes]
    return [(q * c * p).sum() / math.sqrt(len(q)) for p in rows]


def softmax(values: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(v - max(values).detach()) for v in values)
    return [torch.exp(v - max(values).detach()) / total for v in values]


def largest(values: list[Tensor], count: int) -> tuple[list[int], float]:
    """Returns the indices of the `count` largest and how far they are from the next one."""
    order = sorted(range(len(values)), key=lambda i: -float(values[i].detach()))
    if count == len(values):
        return sorted(order), math.inf
    last, following = values[order[count - 1]], values[order[count]]
    return sorted(order[:count]), float((last - following).detach())


@dataclass
class Result:
    """What one layer gives: the update (B, L, d_out), the unweighted divergence, and `gap`.

    `gap` is the smallest distance of two scores that a choice of experts had to tell apart: near
    zero the choice is a tie, which rounding decides.
    """

    update: Tensor
    divergence: Tensor
    gap: float


def routed_update(
    x: Tensor, instructions: Tensor, weights: Weights, settings, token_weights: Tensor
) -> Result:
    """Computes the layer for x (B, L, d_in) and t (B, H); `settings` is a Options.

    Gradients flow as in the paper: straight-through where weights are hard; x and t are detached
    in the divergence, which is averaged with `token_weights` (B, L).
    """
    rank = settings.rank // settings.num_experts
    scale = settings.alpha / settings.rank
    if settings.gate_scale == "num_experts":
        scale = scale * settings.num_experts
    choices, gap = _choose(x, instructions, weights, settings)
    used = {e for row in choices for token in row for e, _, hard in token if hard > 0}
    update = torch.zeros(*x.shape[:2], weights.B.shape[0], dtype=torch.float64)
    divergence = torch.zeros((), dtype=torch.float64)
    rows = []
    for b, row in enumerate(choices):
        p = task_probabilities(weights.task, instructions[b])
        columns = []
        for token, gates in enumerate(row):
            y = torch.zeros(weights.B.shape[0], dtype=torch.float64)
            for e, soft, hard in gates:
                if settings.token_top_k < settings.top_k:
                    passes = settings.unused_expert_gradient or e in used
                    gate = hard + (soft - soft.detach() if passes else 0.0)
                else:
                    gate = soft
                if settings.task_router == "straight_through":
                    gate = gate * (1 + p[e] - p[e].detach())
                part = slice(e * rank, (e + 1) * rank)
                y = y + gate * (weights.B[:, part] @ (weights.A[part] @ x[b, token]))
            columns.append(scale * y)
            divergence = divergence + token_weights[b, token] * _divergence(
                x[b, token].detach(),
                instructions[b].detach(),
                weights,
                settings,
            )
        rows.append(torch.stack(columns))
    return Result(update + torch.stack(rows), divergence, gap)


def task_probabilities(task: Tensor, t: Tensor) -> list[Tensor]:
    """p = softmax(R t) of stage 1."""
    return softmax([row @ t for row in task])


def _choose(x, instructions, weights, settings):
    """Returns, for every token, its kept experts as (expert, soft gate, hard gate); and the gap."""
    choices, gap = [], math.inf
    for b in range(x.shape[0]):
        t = instructions[b]
        p = task_probabilities(weights.task, t)
        kept, distance = largest([row @ t for row in weights.task], settings.top_k)
        tied = not bool(t.any())  # an empty instruction: all scores are equal, the index decides
        gap, row = min(gap, math.inf if tied else distance), []
        for token in range(x.shape[1]):
            z = scores(x[b, token], t, weights.query, weights.key, weights.prototypes)
            used = [z[e] for e in kept]
            if settings.task_router == "prior":
                used = [z[e] + torch.log(p[e]) for e in kept]
            soft = softmax(used)
            best, distance = largest(used, settings.token_top_k)
            gap = min(gap, math.inf if tied else distance)
            total = sum(soft[i].detach() for i in best)
            hard = [float(soft[i].detach() / total) if i in best else 0.0 for i in range(len(kept))]
            row.append(list(zip(kept, soft, hard, strict=True)))
        choices.append(row)
    return choices, gap


def _divergence(x: Tensor, t: Tensor, weights: Weights, settings) -> Tensor:
    """KL(teacher || student) of one token, over what `stability_on` compares."""
    tau, top_k = settings.stability_temperature, settings.top_k
    student = scores(x, t, weights.query, weights.key, weights.prototypes)
    teacher = scores(x, t, weights.ema_query, weights.ema_key, weights.ema_prototypes)
    kept, _ = largest([row @ t for row in weights.task], top_k)
    theirs, ours = kept, kept
    if settings.stability_on != "scores":
        if settings.task_router != "frozen":
            own, old = task_probabilities(weights.task, t), task_probabilities(weights.ema_task, t)
            student = [z + torch.log(p) for z, p in zip(student, own, strict=True)]
            teacher = [z + torch.log(p) for z, p in zip(teacher, old, strict=True)]
        theirs = ours = list(range(len(student)))
    if settings.stability_on == "gate_topk":
        theirs, _ = largest([row @ t for row in weights.ema_task], top_k)
        ours = sorted({*kept, *theirs})
    p = dict(zip(theirs, softmax([teacher[e].detach() / tau for e in theirs]), strict=True))
    q = dict(zip(ours, softmax([student[e] / tau for e in ours]), strict=True))
    return sum(
        (p[e] * (torch.log(p[e]) - torch.log(q[e])) for e in theirs if p[e] > 0),
        torch.zeros((), dtype=torch.float64),
    )

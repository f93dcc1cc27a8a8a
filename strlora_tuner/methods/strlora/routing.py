"""The routing formulas as pure functions of tensors (StrLoRA, sections on the two stages).

Shapes: B samples, L tokens, E experts, D router width, H hidden size of the instruction vector.
All arithmetic on scores is float32, whatever the model's dtype.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.gating import MASKED_SCORE, at, topk_mask


def select_experts(
    task_weight: Tensor, instruction: Tensor, top_k: int, without: int | None = None
) -> tuple[Tensor, Tensor]:
    """Stage 1: the experts that an instruction keeps.

    Args:
        task_weight: R, (E, H).
        instruction: t, (B, H) float32.
        top_k: experts kept.
        without: an expert to leave out, as if the layer had none of that number (ablation).

    Returns:
        p = softmax(R t), (B, E) with its gradient, and the kept set, (B, E) bool.
    """
    logits = F.linear(instruction, task_weight.float())
    if without is not None:
        logits[:, without] = MASKED_SCORE
        top_k = min(top_k, logits.shape[-1] - 1)
    probabilities = logits.softmax(-1)
    return probabilities, topk_mask(probabilities.detach(), top_k)


def expert_keys(key_weight: Tensor, prototypes: Tensor, instruction: Tensor) -> Tensor:
    """What a token's query is compared with: c * P_e / sqrt(D), with c = Wk LayerNorm(t).

    Args:
        key_weight: Wk, (D, H).
        prototypes: P, (E, D); rows are L2-normalised here.
        instruction: t, (B, H) float32.

    Returns:
        (B, E, D) float32; without stage 2, D = 0 and every score a sum of nothing, 0.
    """
    normed = F.layer_norm(instruction, instruction.shape[-1:])
    condition = F.linear(normed, key_weight.float())
    unit = F.normalize(prototypes.float(), dim=-1)
    return condition[:, None, :] * unit[None] / math.sqrt(max(unit.shape[-1], 1))


class _Scores(torch.autograd.Function):
    """Float32 products of queries and keys that keep the queries in their own dtype."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, index: Tensor | None) -> Tensor:
        """Returns (B, L, E) float32 from queries (B, L, D) and float32 keys (S, E, D)."""
        # Autograd of query.float() would keep a float32 copy of the queries until backward.
        ctx.save_for_backward(query, keys, index)
        if index is None:
            return torch.matmul(query.float(), keys.transpose(1, 2))
        return torch.einsum("bld,bled->ble", query.float(), keys[index])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Returns the gradients of queries and keys."""
        query, keys, index = ctx.saved_tensors
        to_query = to_keys = None
        if index is None:
            if ctx.needs_input_grad[0]:
                to_query = torch.matmul(grad, keys).to(query.dtype)
            if ctx.needs_input_grad[1]:
                to_keys = torch.matmul(grad.transpose(1, 2), query.float())
            return to_query, to_keys, None
        if ctx.needs_input_grad[0]:
            to_query = torch.einsum("ble,bled->bld", grad, keys[index]).to(query.dtype)
        if ctx.needs_input_grad[1]:
            outer = torch.einsum("ble,bld->bled", grad, query.float()).flatten(0, 1)
            to_keys = torch.zeros_like(keys).index_add_(0, index.flatten(), outer)
        return to_query, to_keys, None


def token_scores(query: Tensor, keys: Tensor, index: Tensor | None = None) -> Tensor:
    """Returns z, (B, L, E) float32, from queries (B, L, D) in any dtype and keys (S, E, D).

    `index` (B, L) says which keys a token takes; without it S is B, and they are its row's.
    """
    if torch.compiler.is_compiling():  # a sum that fuses with what follows
        return (query.float()[:, :, None] * at(keys, index)).sum(-1)
    return _Scores.apply(query, keys, index)


def token_gates(
    scores: Tensor, token_top_k: int, top_k: int, unused_gradient: bool = True
) -> Tensor:
    """Stage 2: weights of the experts for every token, from biased scores (B, L, E).

    With token_top_k < top_k the largest token_top_k weights are kept and renormalised in the
    forward pass, while the gradient is that of the dense softmax (straight-through). Without
    `unused_gradient` an expert that no token of the batch uses gets no gradient, as in the
    published loop over experts, which skips it.
    """
    soft = scores.softmax(-1)
    if token_top_k >= top_k:
        return soft
    with torch.no_grad():
        hard = soft * topk_mask(soft, token_top_k)
        hard = hard / hard.sum(-1, keepdim=True)
        used = (hard > 0).any(0).any(0) if not unused_gradient else None
    dense = soft - soft.detach()
    return hard + (dense if used is None else dense * used)


def stability_divergence(
    teacher: Tensor,
    student: Tensor,
    biases: tuple[Tensor, Tensor],
    token_weights: Tensor,
    temperature: float,
) -> Tensor:
    """KL(teacher || student) of the softmax of scores and biases, averaged over tokens.

    Args:
        teacher, student: raw scores z, (B, L, E) float32.
        biases: the teacher's and the student's, (B, 1 or L, E), added to z / tau; an expert that
            the teacher uses must not be masked for the student.
        token_weights: (B, L) float32 that sum to 1.
        temperature: tau.

    Returns:
        A scalar with gradient to `student` and its bias only.
    """
    target = ((teacher.detach() / temperature) + biases[0].detach()).log_softmax(-1)
    learned = ((student / temperature) + biases[1]).log_softmax(-1)
    divergence = (target.exp() * (target - learned)).sum(-1)
    return (divergence * token_weights).sum()

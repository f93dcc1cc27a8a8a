"""Numbers about routing for the training log."""

from __future__ import annotations

import torch
from torch import Tensor

from strlora_tuner.model import StrLoraModel


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy of each distribution in the last dimension, in nats."""
    return torch.special.entr(probabilities.float()).sum(-1)


@torch.no_grad()
def routing_metrics(tuner: StrLoraModel) -> dict[str, Tensor]:
    """Returns scalars of the last recorded forward, averaged over layers.

    `task_entropy` (stage 1) and `token_entropy` (stage 2) in nats, `expert_<e>` the mean share of
    expert e over real tokens, `empty_instructions` the rows without one. Empty without a record.
    """
    entries = [mixture.record for _, mixture in tuner.mixtures() if mixture.record is not None]
    if not entries:
        return {}
    gates = torch.stack([_token_mean(g, w) for g, _, _, w in entries]).mean(0)
    result = {
        "task_entropy": torch.stack([entropy(p).mean() for _, _, p, _ in entries]).mean(),
        "token_entropy": torch.stack([(entropy(g) * w).sum() for g, _, _, w in entries]).mean(),
    }
    result |= {f"expert_{index}": share for index, share in enumerate(gates)}
    if tuner.routing.empty_rows is not None:
        result["empty_instructions"] = tuner.routing.empty_rows.float()
    return result


def _token_mean(gates: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean gate of every expert, (E), weights (B, L) summing to 1."""
    return torch.einsum("ble,bl->e", gates.float(), weights)

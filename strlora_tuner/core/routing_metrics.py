"""Numbers about routing for the training log."""

from __future__ import annotations

import torch
from torch import Tensor

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.core.model import RoutedModel


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy of each distribution in the last dimension, in nats."""
    return torch.special.entr(probabilities.float()).sum(-1)


@torch.no_grad()
def routing_metrics(tuner: RoutedModel) -> dict[str, Tensor]:
    """Returns scalars of the last recorded forward, averaged over layers and real tokens.

    `task_entropy` (stage 1) and `token_entropy` (stage 2) in nats, `expert_<e>` the mean share of
    expert e, `empty_instructions` the share of those that are empty. Empty without
    a record.
    """
    entries = [mixture.recorded for _, mixture in tuner.mixtures() if mixture.recorded is not None]
    if not entries:
        return {}
    gates = torch.stack([_token_mean(e.gates, e.tokens) for e in entries]).mean(0)
    rows = [(entropy(e.preference) * e.share).sum() for e in entries]
    tokens = [(entropy(e.gates) * e.tokens).sum() for e in entries]
    result = {
        "task_entropy": torch.stack(rows).mean(),
        "token_entropy": torch.stack(tokens).mean(),
    }
    result |= {f"expert_{index}": share for index, share in enumerate(gates)}
    if tuner.routing.empty_rows is not None:
        empty = tuner.routing.empty_rows.float()
        result["empty_instructions"] = empty / tuner.routing.instructions
    return result


class StepMetrics:
    """Averages over the micro-batches of one optimizer step, weighted by their real tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._tokens: Tensor | float = 0.0

    @torch.no_grad()
    def add(self, tuner: RoutedModel, tokens: Tensor) -> None:
        """Counts the forward pass that just ended; `tokens` are those it averaged over."""
        values = {**tuner.losses(), **routing_metrics(tuner)}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * tokens
        self._tokens = self._tokens + tokens

    def take(self) -> dict[str, Tensor]:
        """Returns the step's averages and starts anew; call it on all processes or on none.

        The mean of the results over processes is the mean over all tokens of the step.
        """
        total = torch.as_tensor(self._tokens, dtype=torch.float32)
        tokens, processes = sum_over_processes(torch.stack([total, torch.ones_like(total)]))
        total = tokens / processes
        result = {name: value / total for name, value in self._sums.items()}
        self._sums, self._tokens = {}, 0.0
        return result


def _token_mean(gates: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean gate of every expert, (E), weights (B, L) summing to 1."""
    return torch.einsum("ble,bl->e", gates.float(), weights)

"""The PEFT model of SAME, which holds back what the optimizer did."""

from __future__ import annotations

import torch

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.same.layer import StabilizedExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry SAME's experts."""

    bank_class = StabilizedExperts
    moves_parameters = True

    def after_optimizer_step(self) -> None:
        """Sums what the step's tokens were over all processes, and scales the step's updates."""
        banks = [bank for _, bank in self.mixtures()]
        parts = [bank.seen() for bank in banks]
        sums = sum_over_processes(torch.cat([part.to(parts[0].device) for part in parts]))
        for bank, seen in zip(banks, sums.split([len(part) for part in parts]), strict=True):
            bank.end_step(seen)

    def after_load(self, adapter_name: str) -> None:
        """Weights that were loaded are no step of the optimizer."""
        for _, bank in self.mixtures(adapter_name):
            bank.forget_step()

"""The PEFT model of BranchLoRA, which freezes branches and opens routers between chunks."""

from __future__ import annotations

import torch

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.methods.branchlora.keyed_model import KeyedModel
from strlora_tuner.methods.branchlora.keys import ChunkKeys
from strlora_tuner.methods.branchlora.layer import Branches


class Model(KeyedModel):
    """A base model whose chosen linear layers carry BranchLoRA's branches."""

    bank_class = Branches
    state_class = ChunkKeys

    def after_optimizer_step(self) -> None:
        """Adds the step's features to the chunk's keys and the branches' use to its counts."""
        super().after_optimizer_step()
        banks = [bank for _, bank in self.mixtures() if bank.counted is not None]
        if not banks:
            return
        counts = sum_over_processes(torch.stack([bank.counted.to(banks[0].uses) for bank in banks]))
        for bank, count in zip(banks, counts, strict=True):
            bank.uses += count.to(bank.uses)
            bank.counted = None

"""The PEFT model of BranchLoRA, which freezes branches and opens routers between chunks."""

from __future__ import annotations

import torch

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.methods.branchlora.config import Config
from strlora_tuner.methods.branchlora.keyed_model import KeyedModel
from strlora_tuner.methods.branchlora.keys import ChunkKeys
from strlora_tuner.methods.branchlora.layer import Branches
from strlora_tuner.methods.branchlora.options import Options


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

    def begin_chunk(self) -> None:
        """Freezes what the chunk before used most; opens a router and keys of its own."""
        config = self.peft_config[self.active_adapters[0]]
        assert isinstance(config, Config)
        options: Options = config.options()
        most = max(options.num_experts - options.top_k, config.frozen)
        frozen = min(config.frozen + options.frozen_per_chunk, most)
        for _, bank in self.mixtures():
            bank.close_chunk(frozen)
        self.statistics().close_chunk()
        config.frozen, config.past_chunks = frozen, config.past_chunks + 1

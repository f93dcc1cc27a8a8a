"""The PEFT model of SAME as released."""

from __future__ import annotations

import torch.distributed as dist

from strlora_tuner.core.expert_bank import several_processes
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.same_released.layer import ReleasedExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry SAME's experts as its code has them."""

    bank_class = ReleasedExperts

    def after_optimizer_step(self) -> None:
        """Takes over the first process's statistics: each has those of its own batch."""
        if several_processes():
            for _, bank in self.mixtures():
                for buffer in bank.buffers():
                    dist.broadcast(buffer, 0)

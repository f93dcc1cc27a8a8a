"""The PEFT model of O-LoRA, which opens a subspace for every chunk."""

from __future__ import annotations

from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.olora.config import Config
from strlora_tuner.methods.olora.layer import OrthogonalExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry O-LoRA's subspaces."""

    bank_class = OrthogonalExperts

    def begin_chunk(self) -> None:
        """Freezes what the chunk before learnt and opens a subspace of its own."""
        for _, bank in self.mixtures():
            bank.open_chunk()
        config = self.peft_config[self.active_adapters[0]]
        assert isinstance(config, Config)
        config.subspaces += 1

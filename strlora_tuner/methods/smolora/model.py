"""The PEFT model of SMoLoRA, which embeds the sentences that its layers read."""

from __future__ import annotations

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.embedded_text import use_embedder
from strlora_tuner.methods.smolora.layer import SeparableExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry SMoLoRA's experts."""

    bank_class = SeparableExperts

    def _add_state(self, adapter_name: str, config: RoutedConfig) -> None:
        use_embedder(self, config)
        super()._add_state(adapter_name, config)

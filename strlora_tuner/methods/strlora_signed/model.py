"""The PEFT model of fixed gates."""

from __future__ import annotations

from typing import Any

from torch import nn

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.embedded_text import use_embedder
from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora_signed.config import Config
from strlora_tuner.methods.strlora_signed.layer import SignedExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry LoRA with fixed gates."""

    bank_class = SignedExperts

    @classmethod
    def new_state(cls, hidden: int, config: Config) -> InstructionStatistics:  # type: ignore[override]
        """Returns fresh statistics of the instruction's vectors."""
        return InstructionStatistics(config.vector_width(hidden), config)

    def _add_state(self, adapter_name: str, config: RoutedConfig) -> None:
        if config.sentence_vectors:
            use_embedder(self, config)
        super()._add_state(adapter_name, config)

    def _injected(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if config.map_scope == "block":
            first: dict[str, SignedExperts] = {}
            for name, bank in self.mixtures(adapter_name):
                bank.take_map(first.setdefault(name.rpartition(".")[0], bank))

    def after_optimizer_step(self) -> None:
        """Merges the step's instruction statistics, unless they rest."""
        config = self.own_config
        statistics, most = self.statistics(), config.instruction_count
        rests = config.goes_on and config.instruction_statistics == "hold"
        rests = rests or (most and int(statistics.count) >= most)
        statistics.commit(0.0 if rests else None)

    def after_load(self, adapter_name: str) -> None:
        """Checks that this machine draws the maps that the adapter was trained with."""
        for _, bank in self.mixtures(adapter_name):
            bank.forget_map()
            if bank.map_seed.device.type != "meta":
                bank.gate_map()

    def check_alive(self) -> None:
        """Raises RuntimeError when no prompt of the first batch has an instruction."""
        self.check_instructions()

"""The BranchLoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from typing_extensions import Self

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.branchlora.options import Options


@dataclass
class Config(RoutedConfig):
    """Configuration of a BranchLoRA adapter; :class:`Options` explains the options."""

    past_chunks: int = field(
        default=0, metadata={"help": "Chunks before this one: each left a router and its keys."}
    )
    frozen: int = field(default=0, metadata={"help": "Frozen branches of every layer."})

    def at_chunk(self, chunk: int) -> Self:
        """Returns the configuration with the routers and frozen branches of the chunks before."""
        options: Options = self.options()
        most = options.num_experts - options.top_k
        frozen = min((chunk - 1) * options.frozen_per_chunk, most)
        return replace(self, past_chunks=chunk - 1, frozen=frozen)

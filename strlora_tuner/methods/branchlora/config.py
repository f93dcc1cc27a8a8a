"""The BranchLoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.branchlora.options import Options


@dataclass
class Config(RoutedConfig):
    """Configuration of a BranchLoRA adapter; :class:`Options` explains the options."""

    past_chunks: int = field(
        default=0, metadata={"help": "Chunks before this one: each left a router and its keys."}
    )
    frozen: int = field(default=0, metadata={"help": "Frozen branches of every layer."})

    def begin_chunk(self) -> None:
        """Counts the router of the chunk before, and the branches that freeze now."""
        options: Options = self.options()
        most = max(options.num_experts - options.top_k, self.frozen)
        self.frozen = min(self.frozen + options.frozen_per_chunk, most)
        self.past_chunks += 1

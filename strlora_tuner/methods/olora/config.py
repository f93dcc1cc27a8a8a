"""The O-LoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from strlora_tuner.core.config import RoutedConfig


@dataclass
class Config(RoutedConfig):
    """Configuration of an O-LoRA adapter; `Options` in options.py explains the options."""

    subspaces: int = field(
        default=0, metadata={"help": "Frozen subspaces of earlier chunks that the adapter holds."}
    )

    def begin_chunk(self) -> None:
        """Counts the subspace of the chunk before."""
        self.subspaces += 1

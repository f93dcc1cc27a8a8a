"""The O-LoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from typing_extensions import Self

from strlora_tuner.core.config import RoutedConfig


@dataclass
class Config(RoutedConfig):
    """Configuration of an O-LoRA adapter; `Options` in options.py explains the options."""

    subspaces: int = field(
        default=0, metadata={"help": "Frozen subspaces of earlier chunks that the adapter holds."}
    )

    def at_chunk(self, chunk: int) -> Self:
        """Returns the configuration with a subspace for every chunk before `chunk`."""
        return replace(self, subspaces=chunk - 1)

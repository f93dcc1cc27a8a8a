"""The O-LoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from typing_extensions import Self

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.olora.options import Options
from strlora_tuner.options import AdapterOptions


@dataclass
class Config(RoutedConfig):
    """Configuration of an O-LoRA adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "olora"
    options_class: ClassVar[type[AdapterOptions]] = Options

    subspaces: int = field(
        default=0, metadata={"help": "Frozen subspaces of earlier chunks that the adapter holds."}
    )

    def at_chunk(self, chunk: int) -> Self:
        """Returns the configuration with a subspace for every chunk before `chunk`."""
        return replace(self, subspaces=chunk - 1)

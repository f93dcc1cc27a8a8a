"""The StrLoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.options import AdapterOptions


@dataclass
class Config(RoutedConfig):
    """Configuration of a StrLoRA adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "strlora"
    options_class: ClassVar[type[AdapterOptions]] = Options

    @property
    def side_loss_reduction(self) -> str:
        """How the stability loss adds up, see the option `stability_reduction`."""
        return str(self.options().stability_reduction)

"""The SMoLoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass

from strlora_tuner.core.config import RoutedConfig


@dataclass
class Config(RoutedConfig):
    """Configuration of a SMoLoRA adapter; `Options` in options.py explains the options."""

    @property
    def kept_experts(self) -> int:
        """One expert of each half."""
        return 2

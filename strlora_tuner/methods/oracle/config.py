"""The oracle adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass

from strlora_tuner.core.config import RoutedConfig


@dataclass
class Config(RoutedConfig):
    """Configuration of an oracle adapter; `Options` in options.py explains the options."""

    @property
    def num_experts(self) -> int:  # type: ignore[override]
        """An expert a task."""
        return self.options().task_experts  # type: ignore[no-any-return]

    @property
    def kept_experts(self) -> int:
        """The task's own."""
        return 1

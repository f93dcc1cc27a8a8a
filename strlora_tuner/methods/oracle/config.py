"""The oracle adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.oracle.options import Options
from strlora_tuner.options import AdapterOptions


@dataclass
class Config(RoutedConfig):
    """Configuration of an oracle adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "oracle"
    options_class: ClassVar[type[AdapterOptions]] = Options

    @property
    def num_experts(self) -> int:  # type: ignore[override]
        """An expert a task."""
        return self.options().task_experts  # type: ignore[no-any-return]

    @property
    def kept_experts(self) -> int:
        """The task's own."""
        return 1

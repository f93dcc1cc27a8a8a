"""The SMoLoRA adapter's configuration as PEFT stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig, option_field
from strlora_tuner.methods.smolora.options import Options
from strlora_tuner.options import AdapterOptions
from strlora_tuner.register import register


@dataclass
class Config(RoutedConfig):
    """Configuration of a SMoLoRA adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "smolora"
    options_class: ClassVar[type[AdapterOptions]] = Options

    num_experts: int = option_field(Options, "num_experts")
    gate_scale: str = option_field(Options, "gate_scale")
    embedder: str = option_field(Options, "embedder")
    embedding_width: int = option_field(Options, "embedding_width")
    sentence: str = option_field(Options, "sentence")

    @property
    def kept_experts(self) -> int:
        """One expert of each half."""
        return 2


register()

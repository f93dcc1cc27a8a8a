"""The MoELoRA adapter's configuration as PEFT stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig, option_field
from strlora_tuner.methods.moelora.options import Options
from strlora_tuner.options import AdapterOptions
from strlora_tuner.register import register


@dataclass
class Config(RoutedConfig):
    """Configuration of a MoELoRA adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "moelora"
    options_class: ClassVar[type[AdapterOptions]] = Options

    num_experts: int = option_field(Options, "num_experts")
    gate_scale: str = option_field(Options, "gate_scale")


register()

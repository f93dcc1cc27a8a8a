"""The SAME adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.same.options import Options
from strlora_tuner.options import AdapterOptions


@dataclass
class Config(RoutedConfig):
    """Configuration of a SAME adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "same"
    options_class: ClassVar[type[AdapterOptions]] = Options

"""The configuration of a SAME adapter of the released kind, as PEFT stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.same_released.options import Options
from strlora_tuner.options import AdapterOptions


@dataclass
class Config(RoutedConfig):
    """Configuration of such an adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "same_released"
    options_class: ClassVar[type[AdapterOptions]] = Options

"""The configuration of a SAME adapter of the released kind, as PEFT stores it."""

from __future__ import annotations

from dataclasses import dataclass

from strlora_tuner.core.config import RoutedConfig


@dataclass
class Config(RoutedConfig):
    """Configuration of such an adapter; `Options` in options.py explains the options."""

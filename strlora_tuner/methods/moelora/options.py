"""Options of a MoELoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.options import MixtureOptions


@dataclass
class Options(MixtureOptions):
    """MoELoRA has no options of its own."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "router")

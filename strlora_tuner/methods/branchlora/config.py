"""The BranchLoRA adapter's configuration as PEFT stores it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from strlora_tuner.core.config import RoutedConfig, option_field
from strlora_tuner.methods.branchlora.options import Options
from strlora_tuner.options import AdapterOptions
from strlora_tuner.register import register


@dataclass
class Config(RoutedConfig):
    """Configuration of a BranchLoRA adapter; :class:`Options` explains the options."""

    method: ClassVar[str] = "branchlora"
    options_class: ClassVar[type[AdapterOptions]] = Options

    num_experts: int = option_field(Options, "num_experts")
    top_k: int = option_field(Options, "top_k")
    gate_scale: str = option_field(Options, "gate_scale")
    frozen_per_chunk: int = option_field(Options, "frozen_per_chunk")
    past_chunks: int = field(
        default=0, metadata={"help": "Chunks before this one: each left a router and its keys."}
    )
    frozen: int = field(default=0, metadata={"help": "Frozen branches of every layer."})


register()

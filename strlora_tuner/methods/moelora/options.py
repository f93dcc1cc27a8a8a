"""Options of a MoELoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strlora_tuner.options import MixtureOptions, dropout_masks_option


@dataclass
class Options(MixtureOptions):
    """A mixture that every token weighs anew."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "router")
    dropout_masks: Literal["shared", "expert"] = dropout_masks_option()

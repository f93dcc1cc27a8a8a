"""Options of an O-LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.options import AdapterOptions, option


@dataclass
class Options(AdapterOptions):
    """LoRA whose A is kept orthogonal to the frozen ones of earlier chunks."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "past_A", "past_B")
    grows: ClassVar[bool] = True
    scheduled: ClassVar[tuple[str, ...]] = ("orthogonality_weight",)
    orthogonality_weight: float = option(
        0.5,
        ge=0,
        description="Weight lambda of the sum over layers and earlier chunks of |A_i A^T|^2 "
        "(published: 0.5).",
    )

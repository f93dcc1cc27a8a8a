"""Options of an O-LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strlora_tuner.options import AdapterOptions, option


@dataclass
class Options(AdapterOptions):
    """LoRA whose A is kept orthogonal to the frozen ones of earlier chunks."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "past_A", "past_B")
    grows: ClassVar[bool] = True
    scheduled: ClassVar[tuple[str, ...]] = ("orthogonality_weight", "orthogonality_form")
    orthogonality_weight: float = option(
        0.5,
        ge=0,
        description="Weight lambda of the sum over layers and earlier chunks of |A_i A^T| "
        "(published: 0.5, for the absolute form).",
    )
    orthogonality_form: Literal["squared", "absolute"] = option(
        "squared",
        description="squared: the squares of all products of rows are summed, as in the paper's "
        "equation. absolute: their absolute values, as in its code. At r 64 and d_in 2,048 the "
        "first gradient of the squares is some 140 times weaker under one weight.",
    )

"""Options of a BranchLoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from strlora_tuner.options import MixtureOptions, experts_problems, option, top_k_problems


@dataclass
class Options(MixtureOptions):
    """One A for all branches, of which a prompt uses `top_k`."""

    layer_tensors: ClassVar[tuple[str, ...]] = (
        "A",
        "B",
        "frozen_B",
        "order",
        "uses",
        "router",
        "past_routers",
    )
    state_tensors: ClassVar[tuple[str, ...]] = ("keys", "sums")
    grows: ClassVar[bool] = True
    scheduled: ClassVar[tuple[str, ...]] = ("gate_scale", "top_k", "frozen_per_chunk")
    num_experts: int = option(
        8, ge=1, description="Branches N of B a layer (published: 8); each has rank / N."
    )
    top_k: int = option(2, ge=1, description="Branches that a prompt uses (published: 2).")
    frozen_per_chunk: int = option(
        1,
        ge=0,
        description="The most used trainable branches of a layer that freeze when a chunk ends; "
        "top_k branches always stay trainable.",
    )

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        return [*experts_problems(options), *top_k_problems(options)]

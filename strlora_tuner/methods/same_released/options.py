"""Options of a SAME adapter of the released kind; the defaults are its code's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from strlora_tuner.options import AdapterOptions, experts_problems, option


@dataclass
class Options(AdapterOptions):
    """One mixture for all tokens of a batch; dropout has no effect, as in the released code."""

    layer_tensors: ClassVar[tuple[str, ...]] = (
        "A",
        "B",
        "router",
        "directions",
        "spectrum",
        "past_directions",
        "past_spectrum",
        "utilization",
        "importance",
        "active",
        "passes",
        "past_chunks",
    )
    structure: ClassVar[tuple[str, ...]] = ("num_experts", "components")
    scheduled: ClassVar[tuple[str, ...]] = ("energy", "damping", "window", "freeze_score")
    num_experts: int = option(
        4, ge=1, description="Experts E a layer, each of rank / E; expert c stays on in chunk c."
    )
    components: int = option(64, ge=1, description="K: random directions of a batch's covariance.")
    energy: float = option(
        0.9, gt=0, lt=1, description="Share of the squares that the first directions make."
    )
    damping: float = option(
        0.9, gt=0, description="mu: what is added to a direction's deviation before it divides."
    )
    window: int = option(3, ge=1, description="Deviations that the router's scale averages over.")
    freeze_score: float = option(
        0.1, ge=-1, description="tau: experts whose use less importance is below are left out."
    )

    @property
    def loras(self) -> int:
        """Its own, and as many as the directions that it keeps have rows for."""
        return 1 + math.ceil(self.components / self.rank)

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        return experts_problems(options)

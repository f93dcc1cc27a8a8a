"""Options of a SAME adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from strlora_tuner.options import MixtureOptions, dropout_masks_option, option


@dataclass
class Options(MixtureOptions):
    """A mixture that every token weighs anew, held back where earlier inputs had their energy."""

    layer_tensors: ClassVar[tuple[str, ...]] = (
        "A",
        "B",
        "router",
        "sketch",
        "tokens",
        "directions",
        "spectrum",
        "past_directions",
        "past_spectrum",
        "usage",
        "importance",
        "past_importance",
        "active",
        "steps",
    )
    structure: ClassVar[tuple[str, ...]] = ("num_experts", "components")
    scheduled: ClassVar[tuple[str, ...]] = (
        "gate_scale",
        "energy",
        "damping",
        "window",
        "freeze_score",
        "refresh_steps",
    )
    dropout_masks: Literal["shared", "expert"] = dropout_masks_option()
    components: int = option(
        64,
        ge=1,
        description="K: directions of the inputs' covariance that a layer keeps (its code: 64). "
        "From the layer's width on the covariance is exact.",
    )
    energy: float = option(
        0.9,
        gt=0,
        lt=1,
        description="delta: the largest directions are taken until their squared eigenvalues make "
        "this share of all squares (its code: 0.9).",
    )
    damping: float = option(
        0.9,
        gt=0,
        description="mu: experts move by mu / (sigma + mu) of the optimizer's step along a "
        "direction of eigenvalue sigma (its code: 0.9).",
    )
    window: int = option(
        3, ge=1, description="Eigenvalues that the router's scale averages over (its code: 3)."
    )
    freeze_score: float = option(
        0.1,
        ge=-1,
        description="tau: an expert whose use in this chunk less its importance in earlier ones, "
        "each scaled to 0..1, is below rests for the chunk (its code: 0.1). -1: none rests.",
    )
    refresh_steps: int = option(
        20,
        ge=1,
        description="Optimizer steps after which the router's directions and the resting experts "
        "are found anew (its code: 20, and every step).",
    )

    @property
    def loras(self) -> int:
        """Its own, and as many as the directions that it keeps have rows for."""
        return 1 + math.ceil(self.components / self.rank)

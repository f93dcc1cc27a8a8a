"""Options that mixtures of LoRA experts share, whatever routes them; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from strlora_tuner.options import AdapterOptions, experts_problems, option


@dataclass
class MixtureOptions(AdapterOptions):
    """Options of a mixture whose experts share out the rank."""

    structure: ClassVar[tuple[str, ...]] = ("num_experts",)
    scheduled: ClassVar[tuple[str, ...]] = ("gate_scale",)
    num_experts: int = option(4, ge=1, description="Experts E a layer; each gets rank / E.")
    gate_scale: Literal["one", "num_experts"] = option(
        "one",
        description="What the gates of a token are multiplied with. one: as published. "
        "num_experts: E, so that uniform gates over all experts equal a plain LoRA of the rank.",
    )

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        return experts_problems(options)

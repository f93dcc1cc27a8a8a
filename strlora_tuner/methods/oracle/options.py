"""Options of the oracle's adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strlora_tuner.options import AdapterOptions, option


@dataclass
class Options(AdapterOptions):
    """A LoRA of the full rank for every task; which one answers is looked up, not chosen."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B")
    structure: ClassVar[tuple[str, ...]] = ("task_experts", "sentence")
    task_experts: int = option(
        12, ge=1, description="Experts a layer, each of the full rank: as many as tasks may come."
    )
    sentence: Literal["number"] = option(
        "number",
        description="What is looked up by the text, in training and evaluation: the number of its "
        "task, in the order in which the stream brings them. Reports say so.",
    )

    @property
    def loras(self) -> int:
        """One a task."""
        return self.task_experts

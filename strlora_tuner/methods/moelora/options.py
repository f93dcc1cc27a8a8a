"""Options of a MoELoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.options import MixtureOptions, Size


@dataclass
class Options(MixtureOptions):
    """MoELoRA has no options of its own."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "router")

    def layer_size(self, d_in: int, d_out: int, hidden: int) -> Size:
        """Counts A, B and the router (E, d_in)."""
        count = self.rank * (d_in + d_out) + self.num_experts * d_in
        return Size(count, count)

"""The configuration of an adapter with fixed gates, as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.methods.strlora_signed.options import BASE, experts, kept_experts


@dataclass
class Config(RoutedConfig):
    """Configuration of an adapter with fixed gates; :class:`Options` explains the options."""

    goes_on: bool = field(
        default=False, metadata={"help": "Whether an earlier chunk has trained the adapter."}
    )

    if TYPE_CHECKING:  # options that are fields
        embedder: str = BASE
        embedding_width: int = 0

    def begin_chunk(self) -> None:
        """The adapter goes on from a chunk."""
        self.goes_on = True

    @property
    def num_experts(self) -> int:  # type: ignore[override]
        """E, how many gates a layer has."""
        return experts(self.options())

    @property
    def kept_experts(self) -> int:
        """k, how many experts a prompt uses: with signs all of them."""
        return kept_experts(self.options())

    @property
    def sentence_vectors(self) -> bool:  # type: ignore[override]
        """Whether a sentence embedder gives the instruction's vector."""
        return self.embedder != BASE

    def vector_width(self, hidden: int) -> int:
        """The width of the instruction's vector, of a base model whose embeddings have `hidden`."""
        return self.embedding_width if self.sentence_vectors else hidden

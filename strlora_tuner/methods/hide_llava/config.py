"""The HiDe-LLaVA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from strlora_tuner.core.config import RoutedConfig


@dataclass
class Config(RoutedConfig):
    """Configuration of a HiDe-LLaVA adapter; `Options` in options.py explains the options."""

    past_chunks: int = field(
        default=0, metadata={"help": "Chunks before this one: each left a LoRA and its anchors."}
    )

    @property
    def num_experts(self) -> int:  # type: ignore[override]
        """A LoRA a chunk, this one's included."""
        return self.past_chunks + 1

    def begin_chunk(self) -> None:
        """Counts the LoRA of the chunk before."""
        self.past_chunks += 1

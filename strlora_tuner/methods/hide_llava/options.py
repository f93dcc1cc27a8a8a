"""Options of a HiDe-LLaVA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strlora_tuner.options import AdapterOptions, option


@dataclass
class Options(AdapterOptions):
    """A LoRA of the full rank for every chunk; they meet in evaluation only."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "past_A", "past_B")
    state_tensors: ClassVar[tuple[str, ...]] = ("keys", "sums")
    grows: ClassVar[bool] = True
    scheduled: ClassVar[tuple[str, ...]] = ("temperature", "fusion")
    temperature: float = option(
        0.1,
        gt=0,
        description="The top layer weighs the chunks' LoRAs by a softmax of their mean cosine over "
        "this (published: 0.1).",
    )
    fusion: Literal["sum", "mean"] = option(
        "sum",
        description="What the other layers make of n LoRAs. sum: all A are added up and all B "
        "(published), which also pairs the B of one chunk with the A of another. mean: the mean of "
        "the n updates, each with its own A.",
    )

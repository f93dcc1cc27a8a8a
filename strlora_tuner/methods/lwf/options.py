"""Options of learning without forgetting; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strlora_tuner.options import read_environment

PREFIX = "LWF_"


@dataclass(frozen=True)
class Options:
    """The options of one chunk.

    Attributes:
        weight: lambda of the distillation.
        temperature: T, which both distributions are softened by.
        teacher: the folder of the adapter that the chunk before left; None in the first chunk.
    """

    weight: float
    temperature: float = 2.0
    teacher: str | None = None


def options_from_environment(environment: Mapping[str, str]) -> Options:
    """Reads the options that ms-swift exported from `--model_kwargs '{"lwf_weight": ...}'`.

    Raises:
        ValueError: no weight, an unknown option, or a value that cannot be read.
    """
    given = read_environment(environment, PREFIX, Options)
    if "weight" not in given:
        raise ValueError("callback lwf needs its weight: --model_kwargs '{\"lwf_weight\": 1}'")
    return Options(**given)

"""Options of elastic weight consolidation; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strlora_tuner.options import read_environment

PREFIX = "EWC_"


@dataclass(frozen=True)
class Options:
    """The options of one chunk.

    Attributes:
        weight: lambda.
        decay: gamma, what is kept of the Fisher information of earlier chunks.
        samples: of a chunk, drawn at random for its Fisher information; None: all.
        fisher: whether Fisher information weighs the parameters; False: F = 1.
        gradient: whether the penalty acts; False: it is a number in the log and nothing else.
        seed: of that draw.
        state: the folder of the chunk before that holds `ewc.safetensors`; None in the first chunk.
        data: the chunk's own samples, where the training file also holds replayed ones; None: the
            training file itself.
    """

    weight: float
    decay: float = 1.0
    samples: int | None = None
    fisher: bool = True
    gradient: bool = True
    seed: int = 0
    state: str | None = None
    data: str | None = None


def options_from_environment(environment: Mapping[str, str]) -> Options:
    """Reads the options that ms-swift exported from `--model_kwargs '{"ewc_weight": ...}'`.

    Raises:
        ValueError: no weight, an unknown option, or a value that cannot be read.
    """
    given = read_environment(environment, PREFIX, Options)
    if "weight" not in given:
        raise ValueError("callback ewc needs its weight: --model_kwargs '{\"ewc_weight\": 100}'")
    return Options(**given)

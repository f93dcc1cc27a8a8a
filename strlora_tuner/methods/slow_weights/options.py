"""Options of the average of the weights; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from strlora_tuner.options import read_environment

Kind = Literal["slow", "fast"]
KINDS: tuple[Kind, ...] = ("slow", "fast")
PREFIX = "SLOW_WEIGHTS_"


@dataclass(frozen=True)
class Options:
    """The options of one chunk.

    Attributes:
        window: about the share of all steps so far that the average stands for.
        max_decay: the most that is kept of the average in a step.
        state: the file with the average that this chunk (or, resumed, this step) begins with; None
            where a fresh adapter begins.
    """

    window: float = 0.1
    max_decay: float = 0.995
    state: str | None = None

    def decay(self, step: int) -> float:
        """What is kept of the average at `step`, counted from 1 over the whole stream.

        b = min(max_decay, (1 + n) / (1 / window + n)): with window 0.1 the new weights count
        9 / (10 + n).
        """
        return min(self.max_decay, (1 + step) / (1 / self.window + step))


def options_from_environment(environment: Mapping[str, str]) -> Options:
    """Reads the options that ms-swift exported from `--model_kwargs '{"slow_weights_...": ...}'`.

    Raises:
        ValueError: an unknown option, or a value that cannot be read or is out of bounds.
    """
    bounded = {"window": _fraction, "max_decay": _fraction}
    return Options(**read_environment(environment, PREFIX, Options, **bounded))


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError("expected a number between 0 and 1")
    return value

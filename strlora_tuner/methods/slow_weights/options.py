"""Options of the average of the weights; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strlora_tuner.callback_options import CallbackOptions
from strlora_tuner.options import option

Kind = Literal["slow", "fast"]
KINDS: tuple[Kind, ...] = ("slow", "fast")


@dataclass
class Options(CallbackOptions):
    """The options of one chunk.

    Attributes:
        state: the file with the average that this chunk (or, resumed, this step) begins with; None
            where a fresh adapter begins.
    """

    name: ClassVar[str] = "slow_weights"
    window: float = option(
        0.1,
        gt=0,
        lt=1,
        description="about the share of all steps so far that the average stands for",
    )
    max_decay: float = option(
        0.995, gt=0, lt=1, description="the most that is kept of the average in a step"
    )
    state: str | None = None

    def decay(self, step: int) -> float:
        """What is kept of the average at `step`, counted from 1 over the whole stream.

        b = min(max_decay, (1 + n) / (1 / window + n)): with window 0.1 the new weights count
        9 / (10 + n).
        """
        return min(self.max_decay, (1 + step) / (1 / self.window + step))

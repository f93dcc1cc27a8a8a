"""Options of learning without forgetting; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strlora_tuner.callback_options import CallbackOptions
from strlora_tuner.options import option


@dataclass
class Options(CallbackOptions):
    """The options of one chunk.

    Attributes:
        teacher: the folder of the adapter that the chunk before left; None in the first chunk.
    """

    name: ClassVar[str] = "lwf"
    weight: float = option(1.0, gt=0, description="lambda of the distance from the last adapter")
    temperature: float = option(2.0, gt=0, description="T, which softens both distributions")
    teacher: str | None = None

"""Options of elastic weight consolidation; imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import ClassVar

from strlora_tuner.callback_options import CallbackOptions
from strlora_tuner.options import option


@dataclass
class Options(CallbackOptions):
    """The options of one chunk.

    Attributes:
        seed: of the draw of `samples`.
        state: the folder of the chunk before that holds `ewc.safetensors`; None in the first chunk.
        data: the chunk's own samples, where the training file also holds replayed ones; None: the
            training file itself.
    """

    name: ClassVar[str] = "ewc"
    weight: float = option(MISSING, gt=0, description="lambda of lambda/2 sum F (theta - theta*)^2")
    decay: float = option(
        0.9,
        ge=0,
        le=1,
        description="gamma: what is kept of the past Fisher information a chunk",
    )
    samples: int | None = option(
        None,
        ge=1,
        description="samples of a chunk that its Fisher information is estimated on; null: all",
    )
    fisher: bool = option(
        True, description="false: F = 1, a plain pull to the last chunk's weights (method l2)"
    )
    gradient: bool = option(
        True,
        description="false: the penalty is logged and has no gradient, as in published code "
        "(method ewc_released)",
    )
    seed: int = 0
    state: str | None = None
    data: str | None = None

"""The tuners that a recipe can name: StrLoRA, the host's LoRA, and one folder here for each other.

A folder `NAME/` holds `options.py` (a dataclass `Options`, standard library only, so that a laptop
can check a recipe), `config.py` (`Config`, as PEFT stores it) and `mixture.py` (`Mixture`, the
formula of one layer). Nothing else names the method: it is found by its folder.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from strlora_tuner.schema import AdapterOptions, TunerOptions

STRLORA, LORA = "strlora", "lora"


@cache
def folders() -> tuple[str, ...]:
    """Names of the methods in this folder, sorted."""
    here = Path(__file__).resolve().parent
    return tuple(sorted(path.parent.name for path in here.glob("*/options.py")))


@cache
def tuner_types() -> tuple[str, ...]:
    """Every name that a method's `tuner_type` may have."""
    return (LORA, STRLORA, *folders())


def is_routed(tuner_type: str) -> bool:
    """Whether our plug-in supplies this tuner; LoRA is the host's own."""
    return tuner_type != LORA


def options_class(tuner_type: str) -> type[AdapterOptions]:
    """Returns the dataclass of a tuner's options, without importing torch.

    Raises:
        ValueError: no tuner has this name.
    """
    if tuner_type == STRLORA:
        return TunerOptions
    if tuner_type == LORA:
        return AdapterOptions
    if tuner_type not in folders():
        raise ValueError(f"tuner {tuner_type!r}: expected one of {', '.join(tuner_types())}")
    found: type[AdapterOptions] = importlib.import_module(
        f"{__name__}.{tuner_type}.options"
    ).Options
    return found

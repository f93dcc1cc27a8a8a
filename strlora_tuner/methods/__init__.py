"""The tuners that a recipe can name: StrLoRA, the host's LoRA, and one folder here for each other.

A folder `NAME/` holds `options.py` (a dataclass `Options`, standard library only, so that a laptop
can check a recipe), `config.py` (`Config`, a RoutedConfig: what PEFT stores) and `model.py`
(`Model`, a RoutedModel, which names the bank of experts that is the formula). config.py and
model.py end in `register()`. Nothing else names the method: it is found by its folder.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from strlora_tuner.options import AdapterOptions, TunerOptions

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig
    from strlora_tuner.core.model import RoutedModel

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


def classes_of(tuner_type: str) -> tuple[type[RoutedConfig], type[RoutedModel]]:
    """Returns the configuration and the PEFT model of a tuner of ours; imports torch and PEFT."""
    if tuner_type == STRLORA:
        from strlora_tuner.methods.strlora.config import StrLoraConfig
        from strlora_tuner.methods.strlora.model import StrLoraModel

        return StrLoraConfig, StrLoraModel
    folder = f"{__name__}.{tuner_type}"
    config = importlib.import_module(f"{folder}.config").Config
    return config, importlib.import_module(f"{folder}.model").Model

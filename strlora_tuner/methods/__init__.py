"""The tuners that a recipe can name: the host's LoRA, and one folder here for each of ours.

A folder `NAME/` holds `options.py` (a dataclass `Options`, standard library only, so that a laptop
can check a recipe), `layer.py` (the bank of experts that is the formula) and `model.py` (`Model`, a
RoutedModel, which names the bank); and where PEFT stores more than the options, or a chunk changes
what it stores, `config.py` (`Config`, a RoutedConfig).
Nothing else names the method: it is found by its folder. `ewc/`, `lwf/` and `slow_weights/` hold no
tuner but what a callback does beside any of them, and `embedded_text.py` what several of them read.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from strlora_tuner.options import AdapterOptions

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig

METHODS = __name__
_HERE = Path(__file__).resolve().parent
LORA = "lora"


@cache
def folders() -> tuple[str, ...]:
    """Names of the tuners in this folder, sorted."""
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/model.py")))


@cache
def tuner_types() -> tuple[str, ...]:
    """Every name that a method's `tuner_type` may have."""
    return (LORA, *folders())


def is_routed(tuner_type: str) -> bool:
    """Whether our plug-in supplies this tuner; LoRA is the host's own."""
    return tuner_type != LORA


def options_class(tuner_type: str) -> type[AdapterOptions]:
    """Returns the dataclass of a tuner's options, without importing torch.

    Raises:
        ValueError: no tuner has this name.
    """
    if tuner_type == LORA:
        return AdapterOptions
    if tuner_type not in folders():
        raise ValueError(f"tuner {tuner_type!r}: expected one of {', '.join(tuner_types())}")
    options: type[AdapterOptions] = _part(tuner_type, "options").Options
    return options


def has_config(tuner_type: str) -> bool:
    """Whether a method has a config.py; else its options are all that PEFT stores."""
    return (_HERE / tuner_type / "config.py").is_file()


@cache
def config_class(tuner_type: str) -> type[RoutedConfig]:
    """Returns the PEFT configuration of a tuner of ours; imports torch and PEFT."""
    from strlora_tuner.core.config import RoutedConfig

    # Cached above: this makes a class, and PEFT must meet the same one every time.
    if not has_config(tuner_type):
        return RoutedConfig.of_options(f"{METHODS}.{tuner_type}.options")
    config: type[RoutedConfig] = _part(tuner_type, "config").Config
    return config


def _part(tuner_type: str, name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{tuner_type}.{name}")

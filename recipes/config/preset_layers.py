"""What a recipe's tuner preset fixes, and what the recipe changed of it.

Naming a preset sets all that belongs to it: what the files below and the method's tuned values say
of those keys went with another preset and is dropped. What stands beside the name or above it, in
a file or on the command line, modifies the preset, and its label says so.
"""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from recipes.config.method import Method
from strlora_tuner.methods import LORA, options_class
from strlora_tuner.options import preset_table

FREEZE = "freeze_routers_from_chunk"  # of schedule.later: a tuner does not know its chunk


def named_preset(layer: DictConfig) -> Any:
    """The preset that a recipe's file or an override names; None: none."""
    tuner = layer.get("tuner")
    return tuner.get("preset") if isinstance(tuner, DictConfig) else None


def without_preset(config: DictConfig, tuner_type: str | None) -> DictConfig:
    """A copy of `config` without its preset and all that belongs to the tuner's presets."""
    kind = options_class(tuner_type or LORA)
    kept = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(config, resolve=False)))
    if kind.default_preset is None:
        return kept
    owned = ("preset", *preset_table(kind, kind.default_preset))
    for dotted, keys in (("tuner", owned), ("schedule.later", (FREEZE,))):
        block = OmegaConf.select(kept, dotted)
        if isinstance(block, DictConfig):
            for key in keys:
                block.pop(key, None)
    return kept


def lay_file(below: DictConfig, layer: DictConfig, method: Method) -> DictConfig:
    """A recipe's file over those that it extends.

    Where the method has presets of its own and the file, meant for other methods, names another
    one, what the file says of that preset is left out.
    """
    named = named_preset(layer)
    foreign = method.presets and named not in method.presets
    if named is not None and foreign and layer.get("method") != method.name:
        layer = without_preset(layer, method.tuner_type)
    elif named is not None:
        below = without_preset(below, method.tuner_type)
    return cast(DictConfig, OmegaConf.merge(below, layer))

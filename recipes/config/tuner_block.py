"""The `tuner` block: the options of the method's tuner, checked by the tuner's own dataclass."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, cast, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError

from recipes.config.blocks import Block, declared
from recipes.config.problems import (
    Places,
    Problem,
    did_you_mean,
    from_pydantic,
    rule_problems,
    shown,
)
from strlora_tuner.methods import options_class, tuner_types
from strlora_tuner.options import with_preset

# Options that the schedule decides chunk by chunk.
SCHEDULED_TUNER_KEYS = {
    "stability_weight": "set schedule.first.stability_weight and schedule.later.stability_weight",
    "freeze_routers": "set schedule.later.freeze_routers_from_chunk",
    "require_teacher": "set automatically: every chunk after the first must find its teacher",
}


class TunerBlock(Block):
    """Strict, as the dataclass is, which gets the values as they are written: 8.0 is no rank."""

    model_config = ConfigDict(strict=True)


@cache
def tuner_block(tuner_type: str) -> type[Block]:
    """A tuner's options as a block."""
    return cast(type[Block], declared(options_class(tuner_type), TunerBlock))


def known_tuner_keys() -> set[str]:
    """Every key that the `tuner` block of some method has."""
    options = {
        item.name for kind in tuner_types() for item in dataclasses.fields(options_class(kind))
    }
    return options | {"preset"}


@cache
def tuner_choices() -> dict[str, tuple[Any, ...]]:
    """Key of the `tuner` block -> the words that it takes; empty for other types."""
    hints = (get_type_hints(options_class(kind)) for kind in tuner_types())
    return {name: get_args(hint) for each in hints for name, hint in each.items()}


def check_tuner_block(
    tuner: dict[str, Any], tuner_type: str, places: Places, elsewhere: dict[str, str]
) -> list[Problem]:
    """Checks the options of the method's tuner; other tuners' keys may stand there."""
    problems = []
    kind = options_class(tuner_type)
    own = {item.name for item in dataclasses.fields(kind)}
    # Keys of other methods are no mistakes, so that one recipe serves all of them.
    others = known_tuner_keys() - own - {"preset"}
    options = {key: value for key, value in tuner.items() if key not in others}
    preset = options.pop("preset", None)
    named = (name for each in tuner_types() for name in options_class(each).presets)
    presets = list(dict.fromkeys(named))
    if preset is not None and preset not in presets:
        message = f"found {shown(preset)}, allowed: {', '.join(presets)}"
        hint = did_you_mean(str(preset), presets)
        problems.append(Problem(places["tuner.preset"], "tuner.preset", message, hint))
        preset = None
    for key, advice in SCHEDULED_TUNER_KEYS.items():
        if options.pop(key, None) is not None:
            dotted = f"tuner.{key}"
            problems.append(Problem(places[dotted], dotted, f"changes with the chunks: {advice}"))
    if kind.default_preset is not None:
        options["preset"] = preset or kind.default_preset
    block = tuner_block(tuner_type)
    try:
        checked = block(**with_preset(kind, options))
        problems += rule_problems(kind.cross_field_problems(checked), places, "tuner")
    except ValidationError as error:
        problems += from_pydantic(
            error, block, places, elsewhere, prefix="tuner", also_known=("preset",)
        )
    return problems

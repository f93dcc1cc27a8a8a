"""Keys of a recipe that do nothing beside its others, and why."""

from __future__ import annotations

from recipes.config.blocks import LaterPhase
from recipes.config.schema import Recipe
from strlora_tuner.methods.strlora.options import Options as StrLoraOptions

# What the stability term alone reads.
_OF_STABILITY = (
    "stability_on",
    "stability_temperature",
    "stability_reduction",
    "ema_decay",
    "instruction_statistics",
)


def idle_keys(recipe: Recipe) -> dict[str, str]:
    """Returns {dotted key that does nothing: the end of a sentence that says why}."""
    method, schedule, options = recipe.method, recipe.schedule, recipe.tuner_options
    own = recipe.own_tuner_keys
    has = f": method {method} has {', '.join(sorted(own)) or 'no option'}"
    idle = {f"tuner.{key}": has for key in recipe.unused_tuner_keys}
    for name, cause in options.idle_options().items():
        idle[f"tuner.{name}"] = f" with tuner.{cause}"
    phases = {"schedule.first": schedule.first, "schedule.later": schedule.later}
    for phase, values in phases.items():
        if values.lr_scheduler_type == "constant" and values.warmup_ratio:
            idle[f"{phase}.warmup_ratio"] = f" with {phase}.lr_scheduler_type constant"
        if "stability_weight" not in own:
            idle[f"{phase}.stability_weight"] = f": method {method} has no stability term"
    if "freeze_routers" not in own:
        why = f": method {method} has no routers that freeze"
        idle["schedule.later.freeze_routers_from_chunk"] = why
    if isinstance(options, StrLoraOptions):
        given = [values.stability_weight for values in phases.values()]
        if not any(options.stability_weight if each is None else each for each in given):
            why = " with a stability_weight of 0 in every chunk"
            idle |= {f"tuner.{name}": why for name in _OF_STABILITY}
    if not recipe.protocol.continues:
        why = f": with method {method} no chunk goes on from the one before"
        idle |= {f"schedule.later.{name}": why for name in LaterPhase.model_fields}
    if recipe.ewc is not None and not recipe.ewc.fisher:
        idle |= {f"ewc.{name}": " with ewc.fisher false" for name in ("decay", "samples")}
    return idle

"""Recipes that earlier versions recorded in a run folder, as this version writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.config.method import FREEZE

_NO_CACHE = "it saved 5.6 % of a training's time at best"
# Keys that are gone -> why. A recorded recipe loses them; one that a user writes is refused.
REMOVED = {"launcher.sample_cache": _NO_CACHE, "launcher.sample_cache_gb": _NO_CACHE}


def is_recorded(path: Path) -> bool:
    """Whether a recipe's file is the one that a run folder keeps."""
    return path.name == "recipe.yaml" and path.with_name("manifest.json").is_file()


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe without the keys that are gone; they never changed a number.

    What a key meant when it was recorded it means still.

    Keys that came since are not added here: they get their defaults when the recipe is validated.
    """
    kept = _without_removed(values, "")
    later = kept.get("schedule", {}).get("later")
    if later is not None and later.get(FREEZE) is None:  # which meant never, whatever the preset
        later[FREEZE] = 0
    return kept


def _without_removed(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted not in REMOVED:
            kept[key] = _without_removed(value, f"{dotted}.") if isinstance(value, dict) else value
    return kept

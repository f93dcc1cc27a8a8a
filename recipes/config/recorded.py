"""Recipes that earlier versions recorded in a run folder, as this version writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NO_CACHE = "it saved 5.6 % of a training's time at best"
# Keys that are gone -> why. A recorded recipe loses them; one that a user writes is refused.
REMOVED = {"launcher.sample_cache": _NO_CACHE, "launcher.sample_cache_gb": _NO_CACHE}


def is_recorded(path: Path) -> bool:
    """Whether a recipe's file is the one that a run folder keeps."""
    return path.name == "recipe.yaml" and path.with_name("manifest.json").is_file()


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe without the keys that are gone; they never changed a number.

    Keys that came since are not added here: they get their defaults when the recipe is validated.
    """
    return _without_removed(values, "")


def _without_removed(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted not in REMOVED:
            kept[key] = _without_removed(value, f"{dotted}.") if isinstance(value, dict) else value
    return kept

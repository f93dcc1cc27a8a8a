"""Recipes that earlier versions recorded in a run folder, as this version writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.config.method import FREEZE

_NO_CACHE = "it saved 5.6 % of a training's time at best"
# Keys that are gone -> why. A recorded recipe loses them; one that a user writes is refused.
REMOVED = {
    "launcher.sample_cache": _NO_CACHE,
    "launcher.sample_cache_gb": _NO_CACHE,
    "ewc.released": "the plain pull is ewc.fisher: false, or method: l2; what published code runs "
    "under the name EWC has no pull and is method: ewc_released",
}


def is_recorded(path: Path) -> bool:
    """Whether a recipe's file is the one that a run folder keeps."""
    return path.name == "recipe.yaml" and path.with_name("manifest.json").is_file()


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe without the keys that are gone.

    What a key meant when it was recorded it means still. `ewc.released` was the plain pull, and the
    method of that name is `l2`: it goes on under that name, in its old folder.

    Keys that came since are not added here: they get their defaults when the recipe is validated.
    """
    kept = _without_removed(values, "")
    pulled = (values.get("ewc") or {}).get("released")
    if pulled is not None:
        kept["ewc"]["fisher"] = not pulled
    if pulled and values.get("method") == "ewc_released":
        folder = values.get("run_dir") or f"runs/{values.get('name')}-ewc_released"
        kept |= {"method": "l2", "run_dir": folder}
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

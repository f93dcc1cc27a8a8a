"""TensorBoard, W&B and SwanLab (`swift.report_to`): a chunk's run has its name and lies with it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.config.schema import Recipe

# What `swift.report_to` calls them -> the package that the host imports.
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}


def trackers(recipe: Recipe) -> list[str]:
    """The names in `swift.report_to`."""
    value = recipe.swift.get("report_to") or []
    return [value] if isinstance(value, str) else list(value)


def tracker_arguments(recipe: Recipe, chunk: int) -> dict[str, Any]:
    """Project and name of a chunk's run; a start that resumes a chunk is a second run of it."""
    name = f"{Path(recipe.folder).name}-chunk-{chunk:03d}"
    settings: dict[str, Any] = {}
    if "wandb" in trackers(recipe):
        settings["run_name"] = name
    if "swanlab" in trackers(recipe):
        settings |= {"swanlab_project": recipe.name, "swanlab_exp_name": name}
    return settings


def tracker_environment(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Has W&B and SwanLab write into `folder`, with the chunks of a run as one group.

    W&B's project is the recipe's name, unless WANDB_PROJECT is set.
    """
    asked, run = trackers(recipe), Path(recipe.folder).name
    settings: dict[str, str] = {}
    if "wandb" in asked:
        settings |= {"WANDB_DIR": str(folder), "WANDB_RUN_GROUP": run}
        settings["WANDB_PROJECT"] = os.environ.get("WANDB_PROJECT", recipe.name)
    if "swanlab" in asked:
        settings |= {"SWANLAB_LOG_DIR": str(folder), "SWANLAB_GROUP": run}
    return settings


def missing_trackers(recipe: Recipe) -> list[str]:
    """Says which tracker is asked for and not installed; the host would say so after minutes."""
    return [
        f"swift.report_to asks for {name} and it is not installed. Get it: pip install "
        f"{PACKAGES[name]}, or set swift.report_to: none"
        for name in trackers(recipe)
        if name in PACKAGES and find_spec(PACKAGES[name]) is None
    ]

"""Fixtures of the orchestrator's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.config.schema import Recipe
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in recipes start at the repository's root, as behind the command line."""
    monkeypatch.chdir(REPO)
    for name in ("NPROC_PER_NODE", "NNODES", "CUDA_VISIBLE_DEVICES"):
        if name in os.environ:
            monkeypatch.delenv(name)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """A stream of two chunks."""
    return write_stream(tmp_path / "stream")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes for a model as long as nothing loads it."""
    return write_model(tmp_path / "model")


@pytest.fixture
def toy_yaml(tmp_path: Path, stream: Path, model: Path) -> Callable[..., Path]:
    """Writes a recipe on the toy stream; keyword arguments replace whole blocks."""

    def write(**changes: Any) -> Path:
        values = recipe_values(stream, tmp_path / "run", model, **changes)
        return write_recipe(tmp_path / "toy.yaml", values)

    return write


@pytest.fixture
def toy(toy_yaml: Callable[..., Path]) -> Callable[..., Recipe]:
    """Loads a recipe on the toy stream; positional arguments are overrides."""

    def load(*overrides: str, **changes: Any) -> Recipe:
        return load_recipe(str(toy_yaml(**changes)), list(overrides))

    return load

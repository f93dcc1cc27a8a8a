"""The fixture: each model folder is built once a session, where its tokenizer can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real_shapes.folders import Family, build
from tests.real_shapes.vocabularies import Unreachable

Folder = Callable[[Family], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Returns the model folder of a family; skips the test where its tokenizer cannot be had."""
    root = tmp_path_factory.mktemp("models")

    def built(family: Family) -> Path:
        try:
            return build(family, root)
        except Unreachable as error:
            pytest.skip(f"no tokenizer for {family.name}: {error}")

    return built

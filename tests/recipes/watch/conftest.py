"""A shop whose data keep arriving."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.growth.test_growth import begin
from tests.recipes.toy import recipe_values, write_recipe


@pytest.fixture
def shop(tmp_path: Path, model: Path) -> Path:
    """The recipe of a stream of one month, beside its empty inbox."""
    (tmp_path / "inbox").mkdir()
    values = recipe_values(begin(tmp_path), tmp_path / "run", model)
    del values["data"]["chunks"]
    return write_recipe(tmp_path / "shop.yaml", values)

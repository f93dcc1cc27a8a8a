"""Every shipped recipe on its near-real folder, as `python -m tests.real_shapes.run` does it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data_prep.files import read_json
from recipes.config.loading import load_recipe
from tests.real_shapes.families import OTHER_WEIGHTS, RECIPES
from tests.real_shapes.run import ALL, EMBEDDED, PAGE, STORED, page, run_recipe, table
from tests.real_shapes.vocabularies import Unreachable
from tests.recipes.real_host import needs_host

pytestmark = [pytest.mark.slow, needs_host]
LONG = os.environ.get("FULL_LONG") == "1"


def test_every_recipe_with_a_model_of_the_hub_has_a_folder() -> None:
    shipped = {path.stem for path in Path("recipes").glob("*.yaml")}
    assert set(ALL) == shipped
    assert set(OTHER_WEIGHTS.values()) <= set(RECIPES)


@pytest.mark.parametrize("recipe", ALL)
def test_a_recipe_runs(recipe: str, tmp_path: Path) -> None:
    if not LONG:
        pytest.skip("five minutes and more; FULL_LONG=1 (make long) runs it")
    try:
        row = run_recipe(recipe, tmp_path, kill=True, every=1)
    except Unreachable as error:
        pytest.skip(f"no tokenizer: {error}")
    print(table([row]))
    assert row.works, row.output[-6000:]
    if recipe in EMBEDDED:
        return
    chunk = tmp_path / "runs" / recipe / "chunks" / "002"
    for line in (chunk / "train_metrics.jsonl").read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        assert step["learning_rate"] == 2e-5
        if load_recipe(recipe).model.aligner is not None:
            assert (step["adapter_learning_rate"], step["aligner_learning_rate"]) == (2e-5, 1e-5)
    for log in ("train.log", "eval.log"):
        text = (chunk / log).read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text
        assert "Please install" not in text


def test_the_page_shows_what_was_measured() -> None:
    stored, text = read_json(STORED), PAGE.read_text(encoding="utf-8")
    assert text == page(text, stored)
    for name, entry in stored.items():
        row = entry["row"]
        worked = [row[each] for each in ("starts", "trains", "evaluates", "resumes")]
        assert (row["recipe"], worked) == (name, [True] * 4)

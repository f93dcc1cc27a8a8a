"""`python -m recipes.tune` on the real host: two rates, one chunk, the better one is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from recipes import REPO
from recipes.config import method as methods
from recipes.config.swift_arguments import installed_version
from recipes.tune import __main__ as tune
from tests.recipes.toy import recipe_values, write_recipe, write_stream

BASE = REPO / "assets" / "tiny_base"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        installed_version() is None or not BASE.is_dir(), reason="needs ms-swift and the tiny base"
    ),
]


def test_the_better_of_two_rates_is_written_with_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = write_stream(tmp_path / "reported", chunks=1, samples=8)
    kept = write_stream(tmp_path / "kept", chunks=1, samples=96, tests=12)
    values = recipe_values(reported, tmp_path / "run", BASE, method="lora")
    values["data"] |= {"chunks": 1}
    values["launcher"] |= {"resident": True}
    path = write_recipe(tmp_path / "toy.yaml", values)
    shutil.copytree(methods.FOLDER, tmp_path / "methods")
    monkeypatch.setattr(tune, "FOLDER", tmp_path / "tune")
    own = methods.Method("lora", "lora")
    monkeypatch.setattr(methods.Method, "file", tmp_path / "methods" / "lora.yaml")
    monkeypatch.setattr(tune, "find_method", lambda name: own)

    words = [str(path), "--methods", "lora", "--stream", str(kept), "--grid", "scale=0.00001,4"]
    assert tune.main([*words, "--write"]) == 0
    tables = tmp_path / "tune" / "toy-kept-1chunks"
    table = json.loads((tables / "trials-lora.json").read_text(encoding="utf-8"))
    assert [row["state"] for row in table] == ["done", "done"]
    assert table[1]["last"] > table[0]["last"], "a rate of 1e-8 learns nothing"
    assert [row["chosen"] for row in table] == [False, True]
    text = (tmp_path / "methods" / "lora.yaml").read_text(encoding="utf-8")
    chosen = yaml.safe_load(text)["tuned"]["toy"]["schedule"]
    assert chosen == {"first": {"learning_rate": 0.004}, "later": {"learning_rate": 0.004}}
    assert "# | **lora** | **0** | **0** | **0.004** |" in text

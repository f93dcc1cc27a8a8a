"""Which folder the embedded stream lies in, and that it is the one that the recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.stream import StreamError
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.run.chunk_data import open_recipe_stream
from tests.recipes.toy import write_stream


def test_the_embedded_stream_is_named_by_size_and_seed() -> None:
    def folder(name: str, *overrides: str) -> str:
        return load_recipe(name, overrides).data.stream

    shipped = [folder(name) for name in ("tiny", "smoke", "mini")]
    assert shipped == ["data/mini-tiny", "data/mini-smoke", "data/mini"], "as in older runs"
    assert folder("tiny", "data.seed=7") == "data/mini-tiny-seed7"
    assert folder("mini", "data.seed=2") == "data/mini-seed2"
    assert folder("tiny", "data.seed=7", "data.stream=data/x") == "data/x"
    other = load_recipe("tiny", ["data.size=ambiguous"]).data
    assert (other.stream, other.chunks) == ("data/mini-ambiguous", 25), "the count is its own, too"
    with pytest.raises(RecipeError, match=r"data\.seed: found 'abc'"):
        load_recipe("tiny", ["data.size=smoke", "data.seed=abc"])
    with pytest.raises(RecipeError, match=r"data\.stream: is missing"):
        load_recipe("tiny", ["data.source=folder"])


def test_an_embedded_stream_of_another_seed_is_refused(tmp_path: Path) -> None:
    write_stream(tmp_path / "stream")
    path = tmp_path / "stream" / "stream.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest |= {"name": "mini-strcvit-tiny", "generator": {"name": "data_prep.mini"}, "seed": 3}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    here = [f"data.stream={path.parent}", "data.chunks=2", f"run_dir={tmp_path / 'run'}"]
    assert open_recipe_stream(load_recipe("tiny", [*here, "data.seed=3"])).facts["seed"] == 3
    for wrong in ("data.seed=0", "data.size=mini"):
        with pytest.raises(StreamError, match=r"of seed 3, but .* leave data.stream out"):
            open_recipe_stream(load_recipe("tiny", [*here, wrong]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").touch()
    open_recipe_stream(load_recipe("tiny", [*here, "data.seed=0"]))  # began before this was asked

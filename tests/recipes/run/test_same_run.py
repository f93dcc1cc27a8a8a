"""Which recipes go on with a run, and which are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.stream import open_stream
from eval.run_files import read_manifest
from recipes.cli import main
from recipes.config.loading import load_recipe
from recipes.config.schema import Recipe
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run, resolved, write_manifest
from recipes.run_folder.state import ChunkRecord, RunState, save_state
from tests.recipes.toy import recipe_values, write_recipe


@pytest.fixture
def started(tmp_path: Path, stream: Path, model: Path) -> tuple[RunLayout, Recipe]:
    """A run folder with a manifest that records the recipe."""
    values = recipe_values(stream, tmp_path / "run", model)
    recipe = load_recipe(str(write_recipe(tmp_path / "toy.yaml", values)))
    layout = RunLayout(tmp_path / "run")
    record(layout, recipe, lambda values: None)
    return layout, recipe


@pytest.fixture
def begun(started: tuple[RunLayout, Recipe], stream: Path) -> tuple[RunLayout, Recipe]:
    """The same with all that a manifest holds."""
    layout, recipe = started
    layout.manifest.unlink()
    write_manifest(layout, recipe, open_stream(stream), RunState(), 1)
    return layout, recipe


def record(layout: RunLayout, recipe: Recipe, change: Callable[[dict[str, Any]], None]) -> None:
    """Writes the manifest of a run that was started with the changed recipe."""
    values = json.loads(json.dumps(resolved(recipe)))
    change(values)
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.manifest.write_text(json.dumps({"recipe": values}), encoding="utf-8")


def drop(values: dict[str, Any], *keys: str) -> None:
    """Takes keys out."""
    for key in keys:
        del values[key]


def test_another_folder_is_named_as_a_shell_takes_it(
    tmp_path: Path, stream: Path, model: Path
) -> None:
    folder = tmp_path / "my run"
    values = recipe_values(stream, folder, model)
    recipe = load_recipe(str(write_recipe(tmp_path / "toy.yaml", values)))
    record(RunLayout(folder), recipe, lambda recorded: recorded.update(seed=5))
    with pytest.raises(RunChanged, match=re.escape(f"own folder: 'run_dir={folder}-2'")):
        check_same_run(RunLayout(folder), recipe)


def test_the_same_recipe_goes_on(started: tuple[RunLayout, Recipe]) -> None:
    check_same_run(*started)


@pytest.mark.parametrize(
    "path", [("eval", "max_new_tokens"), ("launcher", "cpu"), ("schedule", "weight_decay")]
)
def test_a_key_that_came_since_is_at_its_default(
    started: tuple[RunLayout, Recipe], path: tuple[str, str]
) -> None:
    layout, recipe = started
    block, key = path
    default = type(getattr(recipe, block)).model_fields[key].default
    today = recipe.model_copy(
        update={block: getattr(recipe, block).model_copy(update={key: default})}
    )
    record(layout, today, lambda values: values[block].pop(key))
    check_same_run(layout, today)

    other = today.model_copy(
        update={block: getattr(today, block).model_copy(update={key: not default})}
    )
    with pytest.raises(RunChanged, match=rf"{block}\.{key}: "):
        check_same_run(layout, other)


def test_whole_blocks_that_came_since(started: tuple[RunLayout, Recipe]) -> None:
    layout, recipe = started
    record(layout, recipe, lambda values: drop(values, "replay", "ewc"))
    check_same_run(layout, recipe)


def test_an_option_at_its_default_is_the_same_as_none(started: tuple[RunLayout, Recipe]) -> None:
    layout, recipe = started
    option = "dropout"
    default = getattr(recipe.tuner_options, option)
    record(layout, recipe, lambda values: values["tuner"].update({option: default}))
    check_same_run(layout, recipe)
    record(layout, recipe, lambda values: values["tuner"].update({option: 0.25}))
    with pytest.raises(RunChanged, match=rf"tuner\.{option}: 0\.25 in the run"):
        check_same_run(layout, recipe)


def test_a_recipe_that_the_schema_no_longer_takes_is_told(
    started: tuple[RunLayout, Recipe],
) -> None:
    layout, recipe = started
    record(layout, recipe, lambda values: values.update({"old_key": 3}))
    with pytest.raises(RunChanged, match="old_key: 3 in the run"):
        check_same_run(layout, recipe)


def test_a_plain_pull_of_before_goes_on_as_l2(
    tmp_path: Path, stream: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was recorded as `ewc_released`, which is now the name of what published code does."""
    monkeypatch.chdir(tmp_path)
    values = {**recipe_values(stream, None, model), "method": "l2"}
    today = load_recipe(str(write_recipe(tmp_path / "toy.yaml", values)))
    layout = RunLayout(Path(f"runs/{today.name}-ewc_released"))

    def as_before(values: dict[str, Any]) -> None:
        values["method"], values["run_dir"] = "ewc_released", None
        drop(values["ewc"], "fisher", "gradient")
        values["ewc"]["released"] = True

    record(layout, today, as_before)
    check_same_run(layout, today)
    recorded = json.loads(layout.manifest.read_text(encoding="utf-8"))["recipe"]
    write_recipe(layout.recipe, recorded)
    again = load_recipe(str(layout.recipe))
    assert (again.method, again.folder, again.ewc) == ("l2", str(layout.root), today.ewc)
    assert read_manifest(layout.manifest).method == "l2"
    published = load_recipe(str(tmp_path / "toy.yaml"), ["method=ewc_released"])
    with pytest.raises(RunChanged, match="method: 'l2' in the run, 'ewc_released' now"):
        check_same_run(layout, published)


def test_what_looks_before_a_run_says_that_its_folder_is_another_run(
    begun: tuple[RunLayout, Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run itself refuses to go on there: a dry run must not call it ready."""
    layout, _ = begun
    recipe = str(tmp_path / "toy.yaml")
    assert main([recipe, "--dry-run"]) == 0
    assert "# Nothing is missing" in capsys.readouterr().out
    for words in ([recipe, "seed=5", "--dry-run"], ["validate", recipe, "seed=5"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"# MISSING  run folder: {layout.root} was started with another recipe:\n" in out
        assert re.search(r"\n#            seed: \d+ in the run, 5 now\n", out)
        assert "Nothing is missing" not in out
    slurm = ["launcher.kind=slurm", "--slurm"]
    assert main([recipe, "seed=5", *slurm]) == 1
    assert "was started with another recipe" in capsys.readouterr().err


def test_a_dry_run_says_what_is_done(
    begun: tuple[RunLayout, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, recipe = begun
    chunks = [ChunkRecord(0, evaluated=True), ChunkRecord(1, trained=True, evaluated=True)]
    save_state(layout.state, RunState(chunks, done=1))
    assert main([str(tmp_path / "toy.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    done = f"has trained 1 of {recipe.data.chunks} chunks; they stay\n"
    assert f"# NOTE     run folder: {layout.root} {done}" in out


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_manifest_is_told_by_name(
    started: tuple[RunLayout, Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    layout, _ = started
    layout.manifest.write_text(text, encoding="utf-8")
    assert main([str(tmp_path / "toy.yaml")]) == 1
    assert f"stopped: {layout.manifest} is damaged (" in capsys.readouterr().err
    assert main([str(tmp_path / "toy.yaml"), "--dry-run"]) == 0
    assert f"# MISSING  run folder: {layout.manifest} is damaged (" in capsys.readouterr().out

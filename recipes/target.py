"""What a command line means by RECIPE: a shipped recipe, a file, a run folder, or a sweep."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.files import write_text
from recipes import REPO
from recipes.config.loading import find_recipe, load_recipe
from recipes.config.problems import COMMAND_LINE, Place, Problem, RecipeError
from recipes.config.schema import Recipe
from recipes.processes.run_lock import RunLocked
from recipes.run_folder.layout import RunLayout
from recipes.sweep.axes import sweep_block
from recipes.sweep.cells import plan_sweep


def load_target(options: argparse.Namespace) -> Recipe:
    """Loads the recipe; from then on relative paths in it start at the repository's root."""
    name, overrides = options.recipe, list(options.overrides)
    folder = Path(name) if Path(name).is_dir() else REPO / name
    if len(Path(name).parts) > 1 and folder.is_dir():  # a run folder
        name = str(folder / "recipe.yaml")
        if not Path(name).is_file():
            message = f"{folder} is not a run folder: it holds no recipe.yaml"
            raise RecipeError([Problem(Place(COMMAND_LINE), "RECIPE", message)])
        if options.command == "sweep":
            message = f"{folder} is a run, resolved for one method; give the recipe that it is of"
            raise RecipeError([Problem(Place(COMMAND_LINE), "RECIPE", message)])
        overrides.insert(0, f"run_dir={_from_root(folder)}")
    options.of_run = name != options.recipe
    options.of_sweep = getattr(options, "of_sweep", False)
    if getattr(options, "cells", None):
        overrides += _of_cell(Path(options.cells), options.cell)
        options.of_sweep = True
    options.word = _word(options.recipe)
    recipe_here = str(find_recipe(name).resolve())
    os.chdir(REPO)
    options.loaded = recipe_here, overrides
    if options.command == "sweep":
        options.sweep = plan_sweep(Path(recipe_here), options)
        return options.sweep.cells[0].recipe
    if not options.of_sweep and not options.of_run:
        _refuse_sweep(Path(recipe_here), options)
    return load_recipe(recipe_here, overrides)


def _refuse_sweep(file: Path, options: argparse.Namespace) -> None:
    """One run of a file that describes many would be a guess."""
    if sweep_block(file) is not None:
        message, fix = "describes a sweep, not one run", "bash recipes/run_stream.sh sweep"
        raise RecipeError([Problem(Place(str(file)), "sweep", message, f"{fix} {options.recipe}")])


def _word(name: str) -> str:
    """The recipe as a job finds it from the checkout's root: files and folders by whole paths."""
    path = Path(name)
    is_path = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    return str(path.resolve()) if is_path and path.exists() else name


def _from_root(folder: Path) -> str:
    """The folder as a recipe would name it, so that it is the same run from anywhere."""
    path = folder.resolve()
    return str(path.relative_to(REPO) if path.is_relative_to(REPO) else path)


def _of_cell(cells: Path, cell: int) -> list[str]:
    """The overrides of one run of a sweep: line `cell` (from 0) of a JSON lines file."""
    return list(json.loads(cells.read_text(encoding="utf-8").splitlines()[cell]))


@contextmanager
def failure_noted(recipe: Recipe) -> Iterator[None]:
    """Leaves in a sweep's run why it failed; another that works on it is no failure of it."""
    failure = RunLayout(Path(recipe.folder)).failure
    failure.unlink(missing_ok=True)
    try:
        yield
    except RunLocked:
        raise
    except Exception as error:
        write_text(failure, str(error))
        raise

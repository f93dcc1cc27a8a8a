"""What a command line means by RECIPE: a shipped recipe, a file, a run folder, or a sweep."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from data_prep.files import write_text
from recipes import REPO
from recipes.config.loading import find_recipe, load_recipe
from recipes.config.problems import COMMAND_LINE, Place, Problem, RecipeError
from recipes.config.rules import idle_keys
from recipes.config.schema import Recipe
from recipes.config.yaml_values import as_override, leaves
from recipes.processes.run_lock import RunLocked
from recipes.run_folder.layout import RunLayout
from recipes.sweep.axes import sweep_block
from recipes.sweep.cells import plan_sweep


def load_target(options: argparse.Namespace) -> Recipe:
    """Loads the recipe; from then on relative paths in it start at the repository's root."""
    name, overrides = options.recipe, list(options.overrides)
    folder = Path(name) if Path(name).is_dir() else REPO / name
    if _is_place(name) and folder.is_dir():  # a run folder
        name, message = str(folder / "recipe.yaml"), ""
        if not Path(name).is_file():
            message = f"{folder} is not a run folder: it holds no recipe.yaml"
        elif options.command == "sweep":
            message = f"{folder} is a run, resolved for one method; give the recipe that it is of"
        if message:
            raise RecipeError([Problem(Place(COMMAND_LINE), "RECIPE", message)])
        path = folder.resolve()  # as a recipe would name it: the same run from anywhere
        named = path.relative_to(REPO) if path.is_relative_to(REPO) else path
        overrides.insert(0, as_override("run_dir", named))
    options.of_run = name != options.recipe
    options.of_sweep = getattr(options, "of_sweep", False)
    if getattr(options, "cells", None):  # line `cell` (from 0) has the overrides of this run
        lines = Path(options.cells).read_text(encoding="utf-8").splitlines()
        overrides = [*json.loads(lines[options.cell]), *overrides]  # the job's own words win
        options.of_sweep = True
    options.word = _word(options.recipe)
    recipe_here = str(find_recipe(name).resolve())
    os.chdir(REPO)
    options.loaded = recipe_here, overrides
    if options.command == "sweep":
        options.sweep = plan_sweep(Path(recipe_here), options)
        cells = options.sweep.cells
        axes = {word for cell in cells for word in cell.overrides} - set(overrides)
        _remark([cell.recipe for cell in cells], recipe_here, overrides, axes)
        return options.sweep.cells[0].recipe
    of_one = options.of_sweep or options.of_run
    if not of_one and sweep_block(Path(recipe_here)) is not None:  # which of them would be a guess
        message, fix = "describes a sweep, not one run", "bash recipes/run_stream.sh sweep"
        raise RecipeError(
            [Problem(Place(recipe_here), "sweep", message, f"{fix} {options.recipe}")]
        )
    recipe = load_recipe(recipe_here, overrides)
    if options.command in _REMARKING and not of_one:
        _remark([recipe], recipe_here, overrides)
    return recipe


_REMARKING = ("run", "validate", "plan")


def _remark(
    recipes: Sequence[Recipe], file: str, overrides: Sequence[str], axes: Iterable[str] = ()
) -> None:
    """Says on standard error what a user asked for that has no effect, or not the expected one."""
    written = dict.fromkeys((word.partition("=")[0] for word in axes), "sweep")
    for word in overrides:  # a value may be a block: ewc={weight: 1, decay: 0.5}
        given = OmegaConf.to_container(OmegaConf.from_dotlist([word]), resolve=False)
        written |= dict.fromkeys(leaves(cast(dict[str, Any], given)), COMMAND_LINE)
    if file not in map(str, (REPO / "recipes").glob("*.yaml")):  # shipped ones serve all methods
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        written = dict.fromkeys(leaves(values), file) | written
    lines = []
    for recipe in recipes:
        lines += [
            f"{written[key]}: {key} does nothing{why}"
            for key, why in idle_keys(recipe).items()
            if key in written
        ]
        name = "schedule.later" if recipe.protocol.continues else "schedule.first"
        kind = recipe.phase(2).lr_scheduler_type
        if recipe.slow_weights is not None and not kind.startswith("constant"):
            lines.append(
                f"slow_weights beside {name}.lr_scheduler_type {kind}: an average wants a rate "
                f"that stays; {name}.lr_scheduler_type=constant {name}.warmup_ratio=0.0 "
                "(docs/methods.md)"
            )
    for line in dict.fromkeys(lines):
        print(f"note: {line}", file=sys.stderr)


def _word(name: str) -> str:
    """The recipe as a job finds it from the checkout's root: files and folders by whole paths."""
    path = Path(name)
    is_path = path.suffix in (".yaml", ".yml") or _is_place(name)
    return str(path.resolve()) if is_path and path.exists() else name


def _is_place(name: str) -> bool:
    """Whether a word is a path and not a recipe's name: ./run, run/ and . are, run is not."""
    return os.sep in name or name in (os.curdir, os.pardir)


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

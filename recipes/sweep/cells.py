"""The runs of a sweep: every combination as a checked recipe with a folder of its own."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypedDict, cast

from data_prep.files import read_json, write_json
from eval.study.groups import whole_settings
from eval.study.run_csv import read_run
from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.config.problems import COMMAND_LINE, Place, Problem, RecipeError
from recipes.config.schema import Recipe
from recipes.config.tuner_block import known_tuner_keys
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run
from recipes.sweep.axes import (
    FIRST,
    LATER,
    RELATIVE,
    TAKEN,
    Asked,
    Axes,
    Settings,
    asked_for,
    combinations,
    short_names,
    sweep_block,
)

REGISTER = "sweep.json"
FORMAT = "strlora-sweep/1"
FOLDER = Path("runs/sweeps")
LONGEST_NAME = 150  # of a run's folder; file systems take 255 bytes
# Overrides that a CSV has other columns for, or that say where and how a run is made.
_UNTOLD = {"method", "seed", "data.seed", "run_dir", "name", "data.prepare", "model.download"}
_PLACES = {"data.stream", "model.path"}  # told by their last part: the rest is of this machine


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        overrides: all that its command gives besides the recipe's file.
        kept: the CSV of its results; a run that has one is not run again. None: it keeps none.
    """

    name: str
    recipe: Recipe
    settings: Settings
    overrides: tuple[str, ...]
    kept: Path | None = None

    @property
    def layout(self) -> RunLayout:
        """Its run folder."""
        return RunLayout(Path(self.recipe.folder))

    @property
    def changed(self) -> Settings:
        """What grid and command line changed of the recipe's file."""
        given = dict(word.partition("=")[::2] for word in self.overrides)
        return tuple(
            (key, Path(value).name if key in _PLACES else value)
            for key, value in given.items()
            if key not in _UNTOLD and not key.startswith("launcher.")
        )

    @property
    def told(self) -> Settings:
        """`changed`, and what of each question the method is given: the CSV's settings."""
        label, key = self.recipe.task_labels, "tuner.sentence"
        given = bool(label) and self.recipe.method != "oracle" and key not in dict(self.changed)
        return (*self.changed, *([(key, label)] if given else []))


class CellEntry(TypedDict):
    """A cell in sweep.json; its run folder is `name`, beside the file."""

    name: str
    method: str
    seed: int
    stream_seed: int
    settings: dict[str, str]
    chunks: int
    overrides: list[str]
    kept: str | None


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, in the order in which they are started."""

    path: str
    folder: Path
    cells: list[Cell]

    def groups(self) -> dict[tuple[str, Settings], list[Cell]]:
        """The cells by method and settings: those of a group differ in seeds alone."""
        groups: dict[tuple[str, Settings], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.recipe.method, cell.settings), []).append(cell)
        return groups

    def save(self) -> None:
        """Writes sweep.json: these cells, and those that an earlier sweep of the folder began."""
        here = {cell.name for cell in self.cells}
        before = read_cells(self.folder) if (self.folder / REGISTER).is_file() else []
        # Runs of an earlier call stay listed, so that status goes on showing them.
        kept = [e for e in before if e["name"] not in here and (self.folder / e["name"]).is_dir()]
        cells = [*kept, *(entry_of(cell) for cell in self.cells)]
        write_json(self.folder / REGISTER, {"format": FORMAT, "recipe": self.path, "cells": cells})


def entry_of(cell: Cell) -> CellEntry:
    """The cell as it stands in sweep.json."""
    recipe = cell.recipe
    return {
        "name": cell.name,
        "method": recipe.method,
        "seed": recipe.seed,
        "stream_seed": recipe.data.seed,
        "settings": dict(cell.settings),
        "chunks": recipe.data.chunks,
        "overrides": list(cell.overrides),
        "kept": None if cell.kept is None else str(cell.kept),
    }


def read_cells(folder: Path) -> list[CellEntry]:
    """The cells of a sweep's folder. Raises ValueError when sweep.json is damaged."""
    return cast("list[CellEntry]", read_json(folder / REGISTER)["cells"])


def find_sweep(name: str) -> Path | None:
    """The sweep's folder that a name means: the folder itself, or a file that describes a sweep.

    None: it means a run or a recipe.
    """
    path = Path(name)
    places = [path, REPO / path]
    if path.suffix in (".yaml", ".yml") and path.is_file() and sweep_block(path) is not None:
        places.append(REPO / FOLDER / path.stem)
    return next((place for place in places if (place / REGISTER).is_file()), None)


def plan_sweep(path: Path, options: argparse.Namespace) -> Sweep:
    """The sweep of a command line.

    Raises:
        RecipeError: with everything that is wrong with any of its runs.
    """
    folder = Path(options.into) if options.into else FOLDER / path.stem
    return make_sweep(path, options.overrides, asked_for(options, path), folder)


def make_sweep(
    path: Path,
    overrides: Sequence[str],
    asked: Asked,
    folder: Path,
    default_grid: Callable[[Recipe], Axes] = lambda recipe: {},
) -> Sweep:
    """Makes every combination, and checks each as a recipe and against what its folder holds.

    Args:
        default_grid: what takes the place of a grid where none is asked for, by method.

    Raises:
        RecipeError: with everything that is wrong with any of them.
    """
    problems = [*asked.problems, *_overruled(overrides, asked)]
    cells: list[Cell] = []
    for method in asked.methods or (None,):
        words = [*overrides, *([] if method is None else [f"method={method}"])]
        try:
            # The recipe's own rates: `scale` and `later` multiply those, not what a tuning chose
            # from them.
            base = load_recipe(str(path), words, tuned=False)
        except RecipeError as error:
            problems += error.problems
            continue
        grid = asked.grid or default_grid(base)
        problems += _unused(base, grid)
        for settings in combinations(base, grid):
            values = [f"{key}={value}" for key, value in settings]
            try:
                cells += _seeded(path, [*words, *values], asked, folder, settings)
            except RecipeError as error:
                problems += error.problems
    problems += [*_twice(cells), *_clashes(cells), *_kept_clashes(cells)]
    if problems:
        raise RecipeError(problems)
    return Sweep(str(path), folder, cells)


def _seeded(
    path: Path, words: Sequence[str], asked: Asked, folder: Path, settings: Settings
) -> Iterator[Cell]:
    """The cells of one method and one combination: a run for each seed of stream and model."""
    streams = set()
    for stream_seed in asked.stream_seeds or (None,):
        of_stream = [] if stream_seed is None else [f"data.seed={stream_seed}"]
        recipe = load_recipe(str(path), [*words, *of_stream])
        streams.add(recipe.data.stream)
        for seed in asked.seeds or (recipe.seed,):
            name = cell_name(recipe.method, seed, stream_seed, settings)
            run = folder / name
            own = [f"seed={seed}", *of_stream, f"run_dir={run}"]
            of_cell = recipe.model_copy(update={"seed": seed, "run_dir": str(run)})
            results = str(asked.results or "").replace("{size}", recipe.data.size or "folder")
            kept = Path(results) / f"{name}.csv" if results else None
            yield Cell(name, of_cell, settings, (*words, *own), kept)
    if len(streams) < len(asked.stream_seeds):
        message = f"every run would read {streams.pop()}"
        fix = "leave data.stream out; only source mini makes a stream for each seed"
        raise RecipeError([Problem(Place(COMMAND_LINE), "--stream-seeds", message, fix)])


def cell_name(method: str, seed: int, stream_seed: int | None, settings: Settings) -> str:
    """The run's folder: what it differs in, whatever the order of the axes. Letters that no file's
    name should have are replaced, and part of a hash then keeps two values apart."""
    settings = tuple(sorted(settings))
    short = short_names([key for key, _ in settings])
    parts = [method, f"seed{seed}", *([] if stream_seed is None else [f"stream{stream_seed}"])]
    text = "-".join([*parts, *(f"{short[key]}={value}" for key, value in settings)])
    name = re.sub(r"[^A-Za-z0-9.,=_-]", "_", text)[:LONGEST_NAME]
    return name if name == text else f"{name}-{sha256(text.encode()).hexdigest()[:8]}"


def _overruled(overrides: Sequence[str], asked: Asked) -> Iterator[Problem]:
    """Overrides that every run would set otherwise."""
    axes = {"method": asked.methods, "seed": asked.seeds, "data.seed": asked.stream_seeds}
    for word in overrides:
        key = word.partition("=")[0]
        if key == "run_dir" or axes.get(key) or key in asked.grid:
            by = TAKEN.get(key, "its axis of the grid")
            message = f"would be ignored: {by} sets it for each run"
            yield Problem(Place(COMMAND_LINE), word, message, "leave it out")
    for key in {FIRST, LATER} & asked.grid.keys() if asked.grid.keys() & set(RELATIVE) else ():
        message = "would set the rates that scale and later set, too"
        yield Problem(Place(COMMAND_LINE), f"--grid {key}", message, "leave one of the two out")


def _twice(cells: Sequence[Cell]) -> Iterator[Problem]:
    """Combinations that are one run: 1 and 1.0 of an axis, for example."""
    for name, count in Counter(cell.name for cell in cells).items():
        if count > 1:
            message = f"{count} combinations of the grid are this one run"
            yield Problem(Place(COMMAND_LINE), name, message, "give each value once")


def _unused(base: Recipe, grid: Axes) -> Iterator[Problem]:
    """Axes of the tuner that the method does not have: its runs would differ in nothing."""
    for key in grid:
        name = key.removeprefix("tuner.")
        if key != name and name in known_tuner_keys() - base.own_tuner_keys:
            fix = "leave the axis out, or sweep the methods that have it by themselves"
            message = f"method {base.method} has no {key}"
            yield Problem(Place(COMMAND_LINE), f"--grid {key}", message, fix)


def _clashes(cells: Sequence[Cell]) -> Iterator[Problem]:
    """Folders that hold a run of other settings."""
    for cell in cells:
        try:
            check_same_run(cell.layout, cell.recipe)
        except RunChanged as error:
            lines = str(error).partition("\nIts numbers")[0].splitlines()
            message = f"{lines[0]} {'; '.join(line.strip() for line in lines[1:])}"
            fix = f"give the sweep another folder (--into) or remove {cell.layout.root}"
            yield Problem(Place(COMMAND_LINE), cell.name, message, fix)


def _kept_clashes(cells: Sequence[Cell]) -> Iterator[Problem]:
    """CSVs that are named as a cell's, but hold a run of other settings, or no whole run."""
    for cell in cells:
        if cell.kept is None or not cell.kept.is_file():
            continue
        fix = f"give the sweep other --results, or remove {cell.kept}"
        try:
            run = read_run(cell.kept)
        except ValueError as error:
            yield Problem(Place(COMMAND_LINE), cell.name, str(error), fix)
            continue
        data = cell.recipe.data
        facts: dict[str, tuple[object, object]] = {
            "method": (run.method, cell.recipe.method),
            "seed": (run.seed, cell.recipe.seed),
            "seed of the stream": (run.stream_seed, data.seed),
            "settings": (whole_settings(run), dict(sorted(cell.told))),
        }
        if not run.has_no_stream:
            facts["chunks"] = len(run.values) - 1, data.chunks
        differing = [
            f"{what} {found}, asked for: {asked}"
            for what, (found, asked) in facts.items()
            if found != asked
        ]
        if differing:
            message = f"{cell.kept} holds another run: {'; '.join(differing)}"
            yield Problem(Place(COMMAND_LINE), cell.name, message, fix)

"""What a sweep varies: methods, seeds, seeds of the stream, and any keys of the recipe.

Values stay the text that one would type behind `key=`, so that a run gets exactly what was asked
for. Two axes are no keys but factors of the learning rates, so that one grid serves all recipes:

    scale    factor on the recipe's own schedule.first.learning_rate
    later    schedule.later.learning_rate as a share of the first's; without this axis the recipe's
             own share is kept
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import yaml

from recipes.config.problems import COMMAND_LINE, Place, Problem
from recipes.config.schema import Recipe

T = TypeVar("T")
FIRST, LATER = "schedule.first.learning_rate", "schedule.later.learning_rate"
RELATIVE = ("scale", "later")
MOST_OF_A_RANGE = 1000  # more is a slip of the pen, and each would be a run
PARTS = ("methods", "seeds", "stream_seeds", "grid", "results")
# Keys that have an option of their own, or follow from the cell.
TAKEN = {"method": "--methods", "seed": "--seeds", "data.seed": "--stream-seeds"}
TAKEN |= {"run_dir": "--into", "name": "--into", "data.stream": "a sweep for each stream"}

Axes = dict[str, tuple[str, ...]]
Settings = tuple[tuple[str, str], ...]  # keys and values of one combination, in the grid's order


@dataclass(frozen=True)
class Asked:
    """The axes of a sweep; one that is empty stays as the recipe has it.

    `results` is the folder in which finished runs leave a CSV each, `{size}` in it stands for
    data.size; None: in none. `problems`: everything that is wrong about the axes.
    """

    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    stream_seeds: tuple[int, ...] = ()
    grid: Axes = field(default_factory=dict)
    results: Path | None = None
    problems: tuple[Problem, ...] = ()


def sweep_block(path: Path) -> Any:
    """The block `sweep` of a recipe's file, as YAML has it; None without one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None  # the loader says so
    return values.get("sweep") if isinstance(values, dict) else None


def asked_for(options: argparse.Namespace, path: Path) -> Asked:
    """The axes of the command line over those of the file's block `sweep`."""
    problems: list[Problem] = []
    block = sweep_block(path)
    if block is not None and not isinstance(block, dict):
        problems.append(Problem(Place(str(path)), "sweep", f"found {block!r}, expected a mapping"))
    block = block if isinstance(block, dict) else {}
    for key in block.keys() - set(PARTS):
        message = f"unknown key; expected {', '.join(PARTS)}"
        problems.append(Problem(Place(str(path)), f"sweep.{key}", message))

    def wrong(part: str, text: str, message: str) -> None:
        key = f"--{part.replace('_', '-')} {text}"
        problems.append(Problem(Place(COMMAND_LINE), key, message))

    def words(part: str) -> list[str]:
        given = getattr(options, part, None)
        listed = _words(block.get(part) if given is None else given)
        if given is not None and not listed:
            wrong(part, repr(given), "names nothing; leave the option out, or name some")
        return listed

    def once(part: str, values: list[T]) -> tuple[T, ...]:
        for value, count in Counter(values).items():
            if count > 1:
                wrong(part, str(value), "is given twice; write each once")
        return tuple(dict.fromkeys(values))

    def numbers(part: str) -> tuple[int, ...]:
        given: list[int] = []
        for text in words(part):
            try:
                given += _range(text)
            except ValueError as error:
                wrong(part, text, str(error))
        return once(part, given)

    methods = once("methods", words("methods"))
    seeds, stream_seeds = numbers("seeds"), numbers("stream_seeds")
    grid: Axes = {}
    for key, values in [*_of_mapping(block.get("grid"), options), *map(_split, options.grid)]:
        try:
            if key in grid:
                raise ValueError("the key was given before; put all values into one list")
            grid[key] = _checked(key, values)
        except ValueError as error:
            wrong("grid", key, str(error))
    results = getattr(options, "results", None) or block.get("results")
    folder = Path(str(results)) if results else None
    return Asked(methods, seeds, stream_seeds, grid, folder, tuple(problems))


def _words(given: Any) -> list[str]:
    """The words of a list or of a text such as "0-2,7"."""
    texts = given if isinstance(given, list) else str(given).split(",") if given is not None else ()
    return [str(text).strip() for text in texts if str(text).strip()]


def _range(text: str) -> range:
    """The numbers of "3" or "0-2"."""
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise ValueError("expected numbers from 0 on or ranges, for example 0-4,7")
    if dash and int(last) < int(first):
        raise ValueError(f"the range ends before it begins; write {last}-{first}")
    if int(last or first) >= 2**32:
        raise ValueError("expected numbers below 2**32")
    if int(last or first) - int(first) >= MOST_OF_A_RANGE:
        raise ValueError(f"expected at most {MOST_OF_A_RANGE:,} numbers in a range")
    return range(int(first), int(last or first) + 1)


def _of_mapping(grid: Any, options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """The axes of a file; one that the command line names, too, is left to it."""
    if grid is None:
        return
    if not isinstance(grid, dict):
        yield "sweep.grid", []
        return
    named = {text.partition("=")[0] for text in options.grid}
    for key, values in grid.items():
        if key not in named:
            listed = values if isinstance(values, list) else [values]
            yield str(key), [v if isinstance(v, str) else json.dumps(v) for v in listed]


def _split(text: str) -> tuple[str, list[str]]:
    """Key and values of `key=a,b`; commas inside brackets, braces and quotes part nothing."""
    key, _, values = text.partition("=")
    listed = f"[{values}]"
    try:
        node = yaml.compose(listed, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return key, []
    if not key or not values or not isinstance(node, yaml.SequenceNode):
        return key or text, []
    return key, [listed[v.start_mark.index : v.end_mark.index].strip() for v in node.value]


def _checked(key: str, values: list[str]) -> tuple[str, ...]:
    if not values or "" in values:
        raise ValueError("expected KEY=VALUE,VALUE, for example tuner.rank=8,16")
    if len(set(values)) < len(values):
        raise ValueError("a value is given twice; write each once")
    if key in TAKEN:
        raise ValueError(f"is no axis of a grid: use {TAKEN[key]}")
    if key in RELATIVE and not all(_positive(value) for value in values):
        raise ValueError("is a factor, expected positive numbers")
    return tuple(values)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def combinations(recipe: Recipe, axes: Axes) -> Iterator[Settings]:
    """Yields every combination of the axes, the last axis fastest.

    Args:
        recipe: the method's recipe, whose rates `scale` and `later` multiply.
    """
    own = recipe.schedule
    share = own.later.learning_rate / own.first.learning_rate
    for values in product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        settings: dict[str, str] = {}
        if given.keys() & set(RELATIVE):
            first = own.first.learning_rate * float(given.pop("scale", "1"))
            settings[FIRST] = f"{first:.6g}"  # 0.1 x 3 shall be called 0.3
            settings[LATER] = f"{first * float(given.pop('later', share)):.6g}"
        yield tuple((settings | given).items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key by the fewest of its last parts that tell it from the others."""
    names = {}
    for key in keys:
        others = [f".{other}" for other in keys if other != key]
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        free = (end for end in ends if not any(each.endswith(f".{end}") for each in others))
        names[key] = next(free, key)
    return names

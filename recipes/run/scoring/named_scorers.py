"""Scorers that the recipe names over the stream's: loaded, tried before a run, hashed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.files import sha256_file
from data_prep.stream import Stream
from eval.predictions import try_scorer
from eval.scorers.registry import Scorer, find_scorer, is_own, own_scorer
from recipes.config.schema import Recipe
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import read_manifest


def named_scorers(recipe: Recipe, stream: Stream) -> dict[str, Scorer]:
    """Return the scorers that the recipe names, by task; `stream` is `open_recipe_stream`'s.

    Raises:
        ValueError: a function of one's own cannot be loaded.
    """
    named = recipe.eval.scorer
    chosen = {named} if isinstance(named, str) else set((named or {}).values())
    known = {n: own_scorer(n) if is_own(n) else find_scorer(n) for n in chosen}
    return {task: known[t.scorer] for task, t in stream.tests.items() if t.scorer in known}


def scorer_problems(recipe: Recipe, stream: Stream) -> Iterator[str]:
    """Say what is wrong with the recipe's scorers, once each, tried on a sample of each task."""
    try:
        scorers = named_scorers(recipe, stream)
    except ValueError as error:
        yield str(error).removeprefix("scorer: ")
        return
    wrong = set[str]()
    for task, scorer in scorers.items():
        try:
            if scorer.name not in wrong:
                try_scorer(scorer, stream, task)
        except OSError:
            continue  # the test set's own check names it
        except ValueError as error:
            wrong.add(scorer.name)
            text = str(error).removeprefix("scorer: ")
            yield f"{text} (task {task}, tried before the run on its first test sample)"


def scorer_hashes(recipe: Recipe) -> dict[str, str]:
    """Return the sha256 of the file of every scorer of one's own, by its name.

    Raises:
        OSError: a file is not there.
    """
    named = recipe.eval.scorer
    names = [named] if isinstance(named, str) else list((named or {}).values())
    return {name: sha256_file(Path(name.rpartition(":")[0])) for name in names if is_own(name)}


def scorers_changed(layout: RunLayout, recipe: Recipe) -> bool:
    """Tell whether the run's scores were given by other scorers than the recipe names now.

    A file that is gone changed nothing: the preflight asks for it where it is needed.
    """
    if not layout.manifest.is_file():
        return False
    manifest = read_manifest(layout)
    try:
        now = scorer_hashes(recipe)
    except OSError:
        return manifest["recipe"]["eval"].get("scorer") != recipe.eval.scorer
    before = manifest["recipe"]["eval"].get("scorer"), manifest.get("scorers", {})
    return before != (recipe.eval.scorer, now)

"""`python -m recipes.cli`: what stands behind `bash recipes/run_stream.sh`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType

from recipes.commands import REPO
from recipes.loading import find_recipe, load_recipe, shipped_recipes
from recipes.problems import RecipeError
from recipes.schema import Recipe

DONE, FAILED, BAD_RECIPE = 0, 1, 2


class Stopped(BaseException):
    """A signal asked us to stop; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 done, 1 the run failed, 2 the recipe is wrong."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        recipe = _load(options)
    except RecipeError as error:
        print(error, file=sys.stderr)
        count = len(error.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in the recipe.", file=sys.stderr)
        return BAD_RECIPE
    if options.validate:
        print(f"{options.recipe}: valid ({recipe.method}, {recipe.data.chunks} chunks)")
        return DONE
    if options.dry_run:
        from recipes.preview import preview

        return _print_all(preview(recipe))
    if options.status:
        from recipes.status import status

        return _print_all(status(recipe))
    return _run(recipe)


def _load(options: argparse.Namespace) -> Recipe:
    """Loads the recipe; from then on relative paths in it start at the repository's root."""
    path = find_recipe(options.recipe)
    recipe_here = str(path.resolve())
    os.chdir(REPO)
    return load_recipe(recipe_here, options.overrides)


def _print_all(lines: Iterable[str]) -> int:
    for line in lines:
        print(line)
    return DONE


def _run(recipe: Recipe) -> int:
    from recipes.lock import RunLocked
    from recipes.manifest import RunChanged
    from recipes.progress import Progress
    from recipes.runner import RunError, run
    from recipes.state import StateError
    from recipes.stream import StreamError

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    try:
        with Progress(recipe.name, recipe.data.chunks) as progress:
            run(recipe, progress)
    except (RunError, RunChanged, RunLocked, StateError, StreamError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:  # a full disk, a read-only folder
        print(f"\nstopped: {error}; what was done before is safe", file=sys.stderr)
        return FAILED
    except Stopped as stopped:
        text = "what is done is safe, and the same command goes on from there"
        print(f"\nstopped by {stopped}: {text}", file=sys.stderr)
        return 128 + stopped.number
    return DONE


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second signal of the kind ends us at once
    raise Stopped(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_stream.sh",
        description="Trains and evaluates a stream, chunk after chunk. The same command goes on "
        "where it stopped.",
        epilog="Relative paths in a recipe and in overrides start at the repository's root.",
    )
    names = ", ".join(shipped_recipes())
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {names}, or a YAML file")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="e.g. schedule.later.learning_rate=1e-3"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print every command, run nothing")
    what.add_argument("--validate", action="store_true", help="check the recipe, name all mistakes")
    what.add_argument("--status", action="store_true", help="say where the run stands")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m recipes.ablate RUN`: evaluate a run's adapter with parts of its router switched off.

stage1_off: all experts kept, no prior. stage2_uniform: every kept expert weighs the same.
without_expert_<e>: expert e (from 0) does not exist. Writes RUN/ablation.json (the score that each
part is worth, on the same test samples) and the report again. Nothing is trained or changed.
After an interruption the same command continues.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from data_prep.files import read_json, write_json
from data_prep.stream import Stream, StreamError
from eval.routing.stage_ablation import write_ablation
from recipes import REPO, UserError
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.config.yaml_values import as_override
from recipes.processes.run_lock import RunLock
from recipes.run import evaluation
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.preflight.all_checks import look, stopping
from recipes.run.session import RunError, run_host
from recipes.run_folder.layout import RunLayout, SideLayout
from recipes.run_folder.state import load_state
from strlora_tuner.options import ABLATION

ASKED = "asked.json"  # in the folder of an ablation


def ablation_layout(run: Path, name: str) -> SideLayout:
    """Where an ablation's evaluation leaves its files: RUN/ablation/<name>."""
    return SideLayout(run, run / "ablation" / name)


def ablation_names(recipe: Recipe) -> list[str]:
    """All ablations of a recipe's adapter; none without a router of two stages."""
    options = recipe.tuner_options
    if not hasattr(options, "task_router"):
        return []
    experts = getattr(options, "num_experts", 1)
    without = [f"without_expert_{e}" for e in range(experts)] if experts > 1 else []
    return ["stage1_off", "stage2_uniform", *without]


def ablate(run: Path, only: Sequence[str], overrides: Sequence[str], again: bool) -> Path:
    """Evaluates and writes RUN/ablation.json; returns its path.

    Args:
        run: the run folder.
        only: names of ablations; empty means all.
        overrides: of the recipe's `eval` block, for example eval.limit=40.
        again: repeat evaluations that exist already.

    Raises:
        RunError, RecipeError, RunLocked, StreamError: with what is wrong.
    """
    layout = RunLayout(run)
    if not layout.recipe.is_file():
        raise RunError(f"{run} is not a run folder: {layout.recipe} is missing")
    recipe = load_recipe(str(layout.recipe), [*overrides, as_override("run_dir", run)])
    if not (known := ablation_names(recipe)):
        raise RunError(
            f"the method {recipe.method} has no router of two stages: nothing to switch off"
        )
    if unknown := [name for name in only if name not in known]:
        raise RunError(f"--only {' '.join(unknown)}: expected some of {', '.join(known)}")
    names = [name for name in known if not only or name in only]
    chunk = max((r.index for r in load_state(layout.state).chunks if r.evaluated), default=0)
    if chunk == 0:
        raise RunError(f"{run}: no chunk is trained and evaluated yet")
    stream = open_recipe_stream(recipe)
    asked = _asked(recipe, layout, stream, chunk)
    if missing := stopping(look(recipe)):
        raise RunError("\n  ".join(["this machine cannot evaluate the run:", *map(str, missing)]))
    with RunLock(layout.lock) as lock:
        for number, name in enumerate(names, start=1):
            where = ablation_layout(run, name)
            if again or not _is_done(where, asked):
                print(f"[{recipe.name}] chunk {chunk}, {number}/{len(names)}: {name}", flush=True)
                _evaluate(recipe, where, stream, asked, lock)
    layouts = {name: ablation_layout(run, name) for name in known}
    done = [name for name, where in layouts.items() if _is_done(where, asked)]
    there = [name for name, where in layouts.items() if where.scores(chunk).is_file()]
    if others := [name for name in there if name not in done]:
        text = ", ".join(others)
        print(f"left out, asked otherwise or by an earlier version: {text}", flush=True)
    path = write_ablation(run, stream.root, chunk, done, recipe.eval.scorer)
    evaluation.write_report(layout, print)
    return path


class Asked(TypedDict):
    """What an ablation was asked: those that differ in it are not compared."""

    chunk: int
    tasks: list[str]
    limit: int | None
    max_new_tokens: int


def _asked(recipe: Recipe, layout: RunLayout, stream: Stream, chunk: int) -> Asked:
    """What is asked now: of the recipe's tasks those that the chunk itself was asked."""
    there = {path.stem for path in layout.predictions(chunk).glob("*.jsonl")}
    named = recipe.eval.tasks or [task for task in stream.tasks if task in there]
    if lacking := [task for task in named if task not in there] if there else ["any task"]:
        raise RunError(
            f"{layout.predictions(chunk)}: no answers of {', '.join(lacking)}, with which those of "
            f"an ablation could be compared; found {', '.join(sorted(there)) or 'none'}: name "
            "others (eval.tasks), or evaluate the chunk again"
        )
    longest = recipe.eval.max_new_tokens
    return {"chunk": chunk, "tasks": named, "limit": recipe.eval.limit, "max_new_tokens": longest}


def _is_done(where: SideLayout, asked: Asked) -> bool:
    return where.scores(asked["chunk"]).is_file() and _was_asked(where) == asked


def _was_asked(where: SideLayout) -> Any:
    path = where.side / ASKED
    return read_json(path) if path.is_file() else None


def _evaluate(
    recipe: Recipe, where: SideLayout, stream: Stream, asked: Asked, lock: RunLock
) -> None:
    chunk, tasks = asked["chunk"], asked["tasks"]
    # Its presence is what says that an ablation is done: with --again a kill from here on must not
    # leave the old one.
    where.scores(chunk).unlink(missing_ok=True)
    if _was_asked(where) != asked:
        # Answers that a killed ablation left are of another adapter, or to other questions.
        where.answers(chunk).unlink(missing_ok=True)
        write_json(where.side / ASKED, asked)
    questions = evaluation.prepare(recipe, where, stream, tasks, chunk)
    if questions.command is not None:
        environment = {**questions.command.environment, ABLATION: where.side.name}
        command = replace(questions.command, environment=environment)
        run_host(lock, command, where.eval_log(chunk), where.side.name)
    evaluation.score(recipe, where, stream, tasks, chunk)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 done, 1 it failed."""
    parser = argparse.ArgumentParser(prog="python -m recipes.ablate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="the run folder, for example runs/tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. eval.limit=40")
    text = "only these ablations"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=text)
    text = "repeat evaluations that exist already"
    parser.add_argument("--again", action="store_true", help=text)
    options = parser.parse_intermixed_args(arguments)
    # Before the change of folder: what the user named lies where the command was given.
    run = options.run.resolve()
    os.chdir(REPO)  # relative paths in the recipe start there
    try:
        print(ablate(run, options.only, options.overrides, options.again))
    except (UserError, RecipeError, StreamError, ValueError, OSError) as error:
        print(f"recipes.ablate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

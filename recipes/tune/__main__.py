"""Choose learning rates and gate scale for methods, with one grid for all, on unreported data.

A sweep (recipes/sweep) in runs/tune/ on another rendering of the stream (another seed), whose
validation split takes the place of the test sets, and a choice among its runs. After an
interruption the same command continues.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from omegaconf import OmegaConf

from data_prep.files import write_json, write_text
from data_prep.stream import MANIFEST, StreamError
from recipes import REPO, UserError
from recipes.arguments import positive
from recipes.config.loading import find_recipe, load_recipe
from recipes.config.method import METHOD_BLOCKS, find_method
from recipes.config.problems import COMMAND_LINE, Place, Problem, RecipeError
from recipes.config.schema import Recipe
from recipes.processes.stopping import Stopped, stop_on_signals
from recipes.sweep.axes import Asked, Axes, asked_for
from recipes.sweep.cells import Sweep, make_sweep
from recipes.sweep.parallel_runs import run_cells
from recipes.sweep.results import FAILED, OPEN, Result, Setting, as_csv, as_markdown, choose, rows
from recipes.sweep.sweep_command import plan_text
from recipes.tune.tuning_stream import ensure_tuning_stream, trained_tasks, tuning_data
from recipes.tune.writing import write_tuned

FOLDER = Path("runs/tune")
GATE_SCALE = "gate_scale"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 done, 1 a run failed, 2 the command line is wrong."""
    options = _parser().parse_intermixed_args(arguments)
    if options.stream is not None:
        # Before the change of folder below: the user named it from where the command was given.
        options.stream = options.stream.resolve()
    try:
        path = find_recipe(options.recipe).resolve()
        os.chdir(REPO)
        asked = replace(asked_for(options, path), results=None)  # of reported runs alone
        base = load_recipe(str(path), options.overrides, tuned=False)
        data = tuning_data(base, options.stream)
        sweep = tuning_sweep(path, options, asked, base, data)
        if not options.dry_run and options.stream is None:
            ensure_tuning_stream(base)
            sweep = tuning_sweep(path, options, asked, base, data)  # whose tasks are known now
    except (RecipeError, StreamError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.dry_run:
        print("\n".join([*plan_text(sweep), *(cell.name for cell in sweep.cells)]))
        print("# nothing was run")
        return 0
    stop_on_signals()
    try:
        sweep.save()
        results = run_cells(sweep, options.jobs, lambda line: print(line, flush=True))
        return _finish(sweep, options.write, path.stem, results)
    except (Stopped, UserError, StreamError, ValueError, OSError) as error:
        print(f"\nstopped: {error}; the same command continues from there", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.tune", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe or a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="applied to every run")
    parser.add_argument("--methods", required=True, metavar="a,b", help="files of recipes/methods/")
    parser.add_argument("--seeds", metavar="0-2", help="a setting counts by its mean over them")
    text = (
        "an axis: scale (factor on the recipe's first rate), later (later rate as a share of the "
        "first's) or any key of the recipe; repeat it. Default: scale=0.5,1,2 later=0.5,1, and "
        "tuner.gate_scale=one,num_experts where the method has gates"
    )
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V,V", help=text)
    parser.add_argument("--stream", type=Path, help="a stream folder kept for tuning")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs")
    text = "write the choice into recipes/methods/NAME.yaml"
    parser.add_argument("--write", action="store_true", help=text)
    return parser


def tuning_sweep(
    path: Path, options: argparse.Namespace, asked: Asked, base: Recipe, data: dict[str, str]
) -> Sweep:
    """The runs of a tuning: evaluated once, on the tasks that their chunks hold.

    Raises:
        RecipeError: something asked for cannot be.
    """
    count = base.data.chunks
    overrides = [f"eval.every={count}", f"data.chunks={count}", *options.overrides]
    overrides += [f"data.{key}={value}" for key, value in data.items()]
    if (Path(data["stream"]) / MANIFEST).is_file():
        tasks = trained_tasks(base, Path(data["stream"]))
        overrides.append(f"eval.tasks=[{','.join(tasks)}]")
    stream = "" if options.stream is None else f"-{options.stream.name}"
    folder = FOLDER / f"{path.stem}{stream}-{base.data.chunks}chunks"
    found = make_sweep(path, overrides, asked, folder, default_axes)
    problems = [
        Problem(Place(COMMAND_LINE), f"--grid {key}", f"method {cell.recipe.method} has no {block}",
                "leave the axis out, or tune the method that has it in a call of its own")
        for cell in found.cells for key, _ in cell.settings
        if (block := key.partition(".")[0]) in METHOD_BLOCKS
        and block not in cell.recipe.definition.own_blocks and getattr(base, block) is None
    ]  # fmt: skip
    problems += [
        Problem(Place(COMMAND_LINE), "--methods", f"{cell.recipe.method} trains nothing")
        for cell in found.cells
        if cell.recipe.tuner_type is None
    ]
    if problems:
        raise RecipeError(problems)
    return found


def default_axes(recipe: Recipe) -> Axes:
    """The rates times 1/2, 1 and 2; later chunks at half and at the same rate; both gate scales.

    Joint training has no later chunks, nor have independent adapters a chunk: one axis less there.
    """
    axes: Axes = {"scale": ("0.5", "1", "2")}
    if recipe.protocol.continues:
        axes["later"] = ("0.5", "1")
    if hasattr(recipe.tuner_options, GATE_SCALE):
        axes[f"tuner.{GATE_SCALE}"] = ("one", "num_experts")
    return axes


def _finish(sweep: Sweep, write: bool, recipe: str, results: list[Result]) -> int:
    chosen = choose(results)
    for method in {result.cell.recipe.method: None for result in results}:
        own = [result for result in results if result.cell.recipe.method == method]
        file = sweep.folder / f"trials-{method}"  # others may be tuned in this folder, too
        table = rows(own, chosen)
        write_json(file.with_suffix(".json"), table)
        write_text(file.with_suffix(".csv"), as_csv(table))
        write_text(file.with_suffix(".md"), as_markdown(own, chosen))
    print(f"\n{as_markdown(results, chosen)}\ntables: {sweep.folder}/trials-METHOD.json, .csv, .md")
    bad = [result.cell.name for result in results if result.state in (FAILED, OPEN)]
    if bad:
        print(f"{len(bad)} runs failed: {', '.join(bad)}; the same command tries them again")
        return 1
    return _write_choices(sweep, recipe, results, chosen) if write else 0


def _write_choices(
    sweep: Sweep, recipe: str, results: list[Result], chosen: dict[str, Setting]
) -> int:
    code = 0
    for method in {cell.recipe.method: None for cell in sweep.cells}:
        if method not in chosen:
            print(
                f"{method}: no setting has a score; nothing is written. If the runs diverged, see "
                "the table, try smaller rates"
            )
            code = 1
            continue
        own = [result for result in results if result.cell.recipe.method == method]
        path = find_method(method).file
        day, data = datetime.now(timezone.utc).date().isoformat(), own[0].cell.recipe.data
        comments = [  # when, on what, and the table that chose them
            f"chosen by recipes.tune on {day}: highest Last after {data.chunks} chunks",
            f"on {data.stream}, a stream kept for tuning; what the table does not name was kept",
            *as_markdown(own, chosen).splitlines(),
        ]
        # As OmegaConf reads a value: PyYAML takes 1e-5 for a word.
        pairs = [f"{key}={text}" for key, text in chosen[method].settings]
        write_tuned(path, recipe, OmegaConf.from_dotlist(pairs), comments)
        print(f"{method}: written into {os.path.relpath(path, REPO)}")
    return code


if __name__ == "__main__":
    sys.exit(main())

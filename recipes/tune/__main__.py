"""Choose learning rates and gate scale for methods, with one grid for all, on unreported data.

Each trial is an ordinary run in runs/tune/ on another rendering of the stream (another seed), whose
validation split takes the place of the test sets. After an interruption the same command continues.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from data_prep.files import write_json, write_text
from data_prep.stream import StreamError
from recipes import REPO
from recipes.config.loading import find_recipe, load_recipe
from recipes.config.method import METHOD_BLOCKS, find_method
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.config.tuner_block import known_tuner_keys
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run
from recipes.run_folder.state import StateError
from recipes.tune.grid import Trial, default_axes, parse_axes, trials
from recipes.tune.results import (
    FAILED,
    OPEN,
    Result,
    as_csv,
    as_markdown,
    choose,
    read_result,
    rows,
)
from recipes.tune.tuning_stream import ensure_tuning_stream, trained_tasks, tuning_data
from recipes.tune.writing import write_tuned

FOLDER = Path("runs/tune")
RESULTS = "trials"
RUNNER = "recipes.cli"  # the module that runs a trial


class CannotTune(Exception):
    """The tuning cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """All trials of a tuning.

    `recipe` is the name that the choice is written under, `path` its YAML; `overrides` apply to
    every trial, `bases` holds each method's recipe that the trials start from.
    """

    recipe: str
    path: str
    folder: Path
    overrides: tuple[str, ...]
    bases: dict[str, Recipe]
    trials: list[Trial]

    def run_of(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.folder / trial.method / trial.name

    def overrides_of(self, trial: Trial) -> list[str]:
        """All overrides of a trial."""
        own = [f"method={trial.method}", f"run_dir={self.run_of(trial)}", *trial.overrides]
        return [*self.overrides, *own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 done, 1 a trial failed, 2 the command line is wrong."""
    options = _parser().parse_intermixed_args(arguments)
    if options.stream is not None:
        options.stream = options.stream.resolve()
    try:
        name = find_recipe(options.recipe)
        os.chdir(REPO)
        plan = make_plan(name.resolve(), options)
    except (RecipeError, StreamError, CannotTune, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.dry_run:
        _show(plan)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return _tune(plan, options)
    except (StreamError, StateError, CannotTune, ValueError, OSError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.tune", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe or a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="applied to every trial")
    parser.add_argument("--methods", required=True, metavar="a,b", help="files of recipes/methods/")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="an axis: scale (factor on the recipe's first rate), later (later rate as a share of "
        "the first's) or any key of the recipe; repeat it. Default: scale=0.5,1,2 later=0.5,1, "
        "and tuner.gate_scale=one,num_experts where the method has gates",
    )
    parser.add_argument("--stream", type=Path, help="a stream folder kept for tuning")
    parser.add_argument("--dry-run", action="store_true", help="only list the trials")
    parser.add_argument(
        "--write", action="store_true", help="write the choice into recipes/methods/NAME.yaml"
    )
    return parser


def make_plan(path: Path, options: argparse.Namespace) -> Plan:
    """Lists all trials and checks each as a recipe, before any is run.

    Raises:
        RecipeError, StreamError, ValueError, CannotTune: something asked for cannot be.
    """
    axes = parse_axes(options.grid)
    methods = list(dict.fromkeys(options.methods.split(",")))
    base = load_recipe(str(path), options.overrides, tuned=False)
    data = tuning_data(base, options.stream)
    overrides = [f"eval.every={base.data.chunks}", *options.overrides]
    overrides += [f"data.{key}={value}" for key, value in data.items()]
    stream = "" if options.stream is None else f"-{options.stream.name}"
    folder = FOLDER / f"{path.stem}{stream}-{base.data.chunks}chunks"
    bases: dict[str, Recipe] = {}
    found: list[Trial] = []
    for method in methods:
        recipe = load_recipe(str(path), [*options.overrides, f"method={method}"], tuned=False)
        if recipe.tuner_type is None:
            raise CannotTune(f"method {method} trains nothing: there is no rate to choose")
        bases[method] = recipe
        found += trials(recipe, axes or default_axes(recipe))
    plan = Plan(path.stem, str(path), folder, tuple(overrides), bases, found)
    for trial in found:
        _check_axes(bases[trial.method], trial)
        load_recipe(str(path), plan.overrides_of(trial))
    return plan


def _check_axes(base: Recipe, trial: Trial) -> None:
    """Refuses a setting that the method does not have: its trials would differ in nothing, or it
    would be another method."""
    unused = {f"tuner.{key}" for key in known_tuner_keys() - base.own_tuner_keys}
    for key, _ in trial.settings:
        block = key.partition(".")[0]
        added = block in METHOD_BLOCKS and getattr(base, block) is None
        if key in unused or added:
            raise CannotTune(
                f"--grid {key}: method {trial.method} has no {key if key in unused else block}; "
                "leave the axis out, or tune the method that has it in a call of its own"
            )


def _show(plan: Plan) -> None:
    for trial in plan.trials:
        words = " ".join(shlex.quote(text) for text in plan.overrides_of(trial))
        print(f"bash recipes/run_stream.sh {plan.recipe} {words}")
    print(
        f"# {len(plan.trials)} trials, each with eval.tasks=[those that its chunks hold] besides; "
        "nothing was run"
    )


def _tune(plan: Plan, options: argparse.Namespace) -> int:
    if options.stream is None:
        ensure_tuning_stream(next(iter(plan.bases.values())))
    results: list[Result] = []
    for number, trial in enumerate(plan.trials, 1):
        print(f"[tune] trial {number}/{len(plan.trials)}: {trial.method} {trial.name}", flush=True)
        results.append(_run(plan, trial))
        _print_result(results[-1])
        _write_table(plan, [r for r in results if r.trial.method == trial.method])
    of_method = [[r for r in results if r.trial.method == m] for m in plan.bases]
    chosen = [best for group in of_method if (best := choose(group)) is not None]
    print(
        f"\n{as_markdown(results, chosen)}\ntables: {plan.folder}/METHOD/{RESULTS}.json, .csv, .md"
    )
    bad = [r for r in results if r.state in (FAILED, OPEN)]
    if bad:
        names = ", ".join(f"{r.trial.method}/{r.trial.name}" for r in bad)
        print(f"{len(bad)} trials failed: {names}; the same command tries them again")
        return 1
    return _write_choices(plan, results) if options.write else 0


def _run(plan: Plan, trial: Trial) -> Result:
    """Brings one trial to its end as an ordinary run, or finds it there.

    Raises:
        CannotTune: a signal stopped the run, so the whole tuning stops; or what lies there was
            run with other settings.
    """
    run = plan.run_of(trial)
    tasks = trained_tasks(load_recipe(plan.path, plan.overrides_of(trial)), _stream_of(plan))
    words = [*plan.overrides_of(trial), f"eval.tasks=[{','.join(tasks)}]"]
    try:
        check_same_run(RunLayout(run), load_recipe(plan.path, words))
    except RunChanged as error:
        message = str(error).partition("\nIts numbers")[0]
        raise CannotTune(f"{message}\nRemove or rename {run} to repeat the trial") from error
    found = read_result(trial, run)
    if found.state not in (FAILED, OPEN):
        return found
    command = [sys.executable, "-m", RUNNER, plan.path, *words]
    run.mkdir(parents=True, exist_ok=True)
    code = _start(command, run / "tune.log")
    if code < 0 or code > 128:
        raise CannotTune(f"the run {run} was stopped by a signal; the same command continues")
    return read_result(trial, run, _last_words(run / "tune.log") if code else "")


def _start(command: list[str], log: Path) -> int:
    """Runs a command to its end and returns its code; when we are stopped, it is asked to stop."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=REPO, start_new_session=True
        )
    try:
        return process.wait()
    except BaseException:
        process.terminate()  # it saves inside the chunk, then ends
        process.wait()
        raise


def _stop(number: int, frame: FrameType | None) -> None:
    raise CannotTune(f"by {signal.Signals(number).name}; the same command continues from there")


def _stream_of(plan: Plan) -> Path:
    (text,) = [o for o in plan.overrides if o.startswith("data.stream=")][-1:]
    return Path(text.partition("=")[2])


def _last_words(log: Path) -> str:
    """The run's last message, from `stopped:` on."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return " ".join(text.rpartition("stopped: ")[2].split())[:600]


def _print_result(result: Result) -> None:
    if result.state == "done":
        print(f"[tune]   Last {100 * result.last:.1f}, Avg {100 * result.average:.1f}", flush=True)
    else:
        print(f"[tune]   {result.state}: {result.why}", flush=True)


def _write_table(plan: Plan, results: Sequence[Result]) -> None:
    """One method's table, beside its trials: other methods may be tuned at the same time."""
    best = choose(results)
    chosen = [] if best is None else [best]
    table = rows(results, chosen)
    file = plan.folder / results[0].trial.method / RESULTS
    write_json(file.with_suffix(".json"), table)
    write_text(file.with_suffix(".csv"), as_csv(table))
    write_text(file.with_suffix(".md"), as_markdown(results, chosen))


def _write_choices(plan: Plan, results: Sequence[Result]) -> int:
    code = 0
    for method in plan.bases:
        own = [r for r in results if r.trial.method == method]
        best = choose(own)
        if best is None:
            print(f"{method}: every trial diverged; nothing is written. Try smaller rates")
            code = 1
            continue
        path = find_method(method).file
        write_tuned(path, plan.recipe, dict(best.trial.settings), _comments(plan, own, best))
        print(f"{method}: written into {os.path.relpath(path, REPO)}")
    return code


def _comments(plan: Plan, results: Sequence[Result], best: Result) -> list[str]:
    """Over the values: when, on what, and the table that chose them."""
    day = datetime.now(timezone.utc).date().isoformat()
    recipe = plan.bases[best.trial.method]
    how = f"chosen by recipes.tune on {day}: highest Last after {recipe.data.chunks} chunks"
    where = f"on {_stream_of(plan)}, a stream kept for tuning, seed {recipe.seed}; what the table"
    where += " does not name was kept"
    return [how, where, *as_markdown(results, [best]).splitlines()]


if __name__ == "__main__":
    sys.exit(main())

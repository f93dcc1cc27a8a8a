"""`--slurm`: writes the job file of a recipe and submits it; no shell reads a recipe's values.

Options come from the recipe, checked by its schema, as `#SBATCH` lines; recipe and overrides are
arguments of sbatch, as a list. Words that must stand in the script are quoted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from data_prep.files import write_text
from recipes import REPO
from recipes.config.schema import Recipe
from recipes.run.preflight.all_checks import look, stopping
from recipes.run.preflight.finding import Finding

TEMPLATES = REPO / "recipes" / "slurm"
_NO_SBATCH = (
    "there is no sbatch here: submit from a login node of the cluster, or look at the job file "
    "with --slurm --dry-run"
)
_SETUP = "# setup: modules and environment, filled in from launcher.slurm\n"


class SubmitError(Exception):
    """The job could not be submitted; the message says why."""


def submit(recipe: Recipe, options: argparse.Namespace, after: str | None = None) -> Iterator[str]:
    """Yields what is written and submitted; with --dry-run the job file and the commands.

    `after` is what the first job waits for, as sbatch's option --dependency names it.

    Raises:
        SubmitError: there is no sbatch, or it refuses.
    """
    if recipe.launcher.kind != "slurm":
        raise SubmitError(
            f"launcher.kind is {recipe.launcher.kind}; --slurm needs launcher.kind=slurm"
        )
    findings = look(recipe, on_submit_host=True)
    grid = make_grid(recipe, options)
    folder = REPO / recipe.folder / "slurm"
    name = "array.sbatch" if grid else "stream.sbatch"
    arguments = [options.word, *options.overrides]
    extra: list[str] = []
    if grid:
        arguments += ["--grid", str(folder / "grid.jsonl")]
        extra = [f"--array=0-{len(grid) - 1}"]
    scripts = {name: render(recipe, name)}
    findings += check_submission(scripts[name], extra)
    evaluate = _Evaluation(folder / f"evaluate-{name}", arguments, extra, bool(grid))
    if recipe.launcher.slurm.eval_jobs:
        scripts[f"evaluate-{name}"] = render(_on_one_node(recipe), name)
        arguments = [*arguments, "--train-only"]
    if options.dry_run:
        yield from scripts.values()
        yield from (f"# task {i}: {' '.join(words)}" for i, words in enumerate(grid))
        yield "# " + shlex.join(sbatch_command(folder / name, arguments, extra, None))
        if len(scripts) > 1:
            yield "# " + shlex.join(evaluate.after("JOB"))
        yield from (finding.line() for finding in findings)
        yield "# nothing was written or submitted."
        return
    if missing := stopping(findings):
        raise SubmitError("\n  ".join(["the job could not run:", *map(str, missing)]))
    for file, script in scripts.items():
        write_text(folder / file, script)
    (REPO / recipe.launcher.slurm.logs).mkdir(parents=True, exist_ok=True)
    if grid:
        text = "".join(json.dumps(words) + "\n" for words in grid)
        write_text(folder / "grid.jsonl", text)
    for _ in range(options.chain):
        job = _sbatch(sbatch_command(folder / name, arguments, extra, after))
        after = f"afterany:{job}"
        yield f"submitted job {job}; logs in {recipe.launcher.slurm.logs}/"
    if len(scripts) > 1:
        yield f"submitted job {_sbatch(evaluate.after(job))} for the evaluation, after job {job}"
    yield "bash recipes/run_stream.sh status " + shlex.join(arguments[:1] + list(options.overrides))


def _on_one_node(recipe: Recipe) -> Recipe:
    launcher = recipe.launcher.model_copy(update={"nodes": 1})
    return recipe.model_copy(update={"launcher": launcher})


class _Evaluation(NamedTuple):
    """The job that evaluates what a training job has left, on one machine."""

    script: Path
    arguments: list[str]
    extra: list[str]
    is_array: bool

    def after(self, job: str) -> list[str]:
        """Its sbatch command: it waits until the training has ended well, and goes if it has not.

        Of an array each task waits for its own.
        """
        extra = [*self.extra, "--kill-on-invalid-dep=yes"]
        dependency = f"{'aftercorr' if self.is_array else 'afterok'}:{job}"
        arguments = [*self.arguments, "launcher.nodes=1"]
        return sbatch_command(self.script, arguments, extra, dependency)


def make_grid(recipe: Recipe, options: argparse.Namespace) -> list[list[str]]:
    """The overrides of every array task; empty when neither seeds nor methods are given."""
    seeds = [word for word in options.seeds.split(",") if word]
    methods = [word for word in options.methods.split(",") if word]
    if not seeds and not methods:
        return []
    grid = []
    for method, seed in product(methods or [recipe.method], seeds or [str(recipe.seed)]):
        name = f"run_dir={recipe.folder}-{method}-seed{seed}"
        grid.append([f"method={method}", f"seed={seed}", name])
    return grid


def sbatch_command(
    script: Path, arguments: list[str], extra: list[str], after: str | None
) -> list[str]:
    """The argument list of sbatch; `after` is a dependency such as afterany:7."""
    chain = [] if after is None else [f"--dependency={after}"]
    return ["sbatch", "--parsable", f"--chdir={REPO}", *extra, *chain, str(script), *arguments]


def check_submission(script: str, extra: list[str]) -> list[Finding]:
    """What the cluster says of the job file (partition, account, time, size), without a job."""
    command = ["sbatch", "--test-only", f"--chdir={REPO}", *extra]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return [Finding("sbatch", _NO_SBATCH)]
    except subprocess.TimeoutExpired:
        return [Finding("sbatch", "the cluster did not answer for 60 s: does `sinfo` answer?")]
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    answer = "; ".join(line.removeprefix("sbatch: ") for line in lines)
    if not done.returncode:
        return [Finding("sbatch", answer, stops=False)]
    keys = "partition, account, time, gpus_per_node, memory, cpus_per_task, options"
    text = f"the cluster refuses the job: {answer}. Correct launcher.nodes or launcher.slurm"
    return [Finding("sbatch", f"{text} ({keys})")]


def _sbatch(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SubmitError(_NO_SBATCH) from error
    if done.returncode:
        raise SubmitError(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip().split(";")[0]


def render(recipe: Recipe, template: str) -> str:
    """The job file: the template with its header and set-up from the recipe."""
    lines = (TEMPLATES / template).read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    body = [line for line in lines[last + 1 :] if line != _SETUP]
    comments = [line for line in lines[:last] if not line.startswith("#SBATCH")]
    first = body.index("set -uo pipefail\n") + 1
    header = [f"#SBATCH --{option}\n" for option in header_options(recipe, template)]
    return "".join([*comments, *header, *body[:first], *_setup(recipe), *body[first:]])


def header_options(recipe: Recipe, template: str) -> list[str]:
    """The job's options, as sbatch spells them."""
    launcher, slurm = recipe.launcher, recipe.launcher.slurm
    log = "%x-%A_%a.out" if template == "array.sbatch" else "%x-%j.out"
    options = [
        f"job-name={recipe.name}",
        f"nodes={launcher.nodes}",
        "ntasks-per-node=1",
        f"time={slurm.time}",
        "requeue",
        "open-mode=append",
        f"signal=B:USR1@{slurm.stop_before}",
        f"output={slurm.logs}/{log}",
    ]
    gpus = slurm.gpus_per_node
    if gpus is None:
        gpus = 0 if launcher.cpu else launcher.nproc
    asked: dict[str, str | int | None] = {
        "gpus-per-node": gpus or None,
        "cpus-per-task": slurm.cpus_per_task,
    }
    asked |= {"mem": slurm.memory, "partition": slurm.partition, "account": slurm.account}
    options += [f"{key}={value}" for key, value in asked.items() if value is not None]
    return options + list(slurm.options)


def _setup(recipe: Recipe) -> list[str]:
    slurm = recipe.launcher.slurm
    lines = [f"module load {shlex.quote(module)}\n" for module in slurm.modules]
    if slurm.venv is not None:
        lines.append(f"export PYTHON={shlex.quote(slurm.venv + '/bin/python')}\n")
    return lines

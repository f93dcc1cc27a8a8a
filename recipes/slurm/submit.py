"""`--slurm`: writes the job file of a recipe and submits it; no shell reads a recipe's values.

Options come from the recipe, checked by its schema, as `#SBATCH` lines; recipe and overrides are
arguments of sbatch, as a list. Words that must stand in the script are quoted.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import write_text
from recipes import REPO, UserError
from recipes.config.schema import Recipe
from recipes.run.preflight.all_checks import stopping
from recipes.run.preflight.finding import Finding

TEMPLATES = REPO / "recipes" / "slurm"
_NO_SBATCH = (
    "there is no sbatch here: submit from a login node of the cluster, or look at the job file "
    "with --slurm --dry-run"
)
_SETUP = "# setup: modules and environment, filled in from launcher.slurm\n"


class SubmitError(UserError):
    """The job could not be submitted; the message says why."""


@dataclass(frozen=True)
class Job:
    """What is submitted.

    Attributes:
        recipe: its launcher block says what the job asks for.
        arguments: of `recipes.cli run`.
        folder: where the job file is kept.
        status: the words behind the command `status` that show how it goes.
        array: of an array the tasks and how many run at a time, as sbatch takes it; else empty.
    """

    recipe: Recipe
    arguments: tuple[str, ...]
    folder: Path
    status: tuple[str, ...]
    array: str = ""

    @property
    def options(self) -> list[str]:
        """The options of sbatch that are not in the job file."""
        return [f"--array={self.array}"] if self.array else []

    def command(self, script: Path, arguments: Sequence[str], after: str | None) -> list[str]:
        """The argument list of sbatch; `after` is a dependency such as afterany:7."""
        chain = [] if after is None else [f"--dependency={after}"]
        # --chdir: SLURM runs a copy of the script, which finds the checkout by its working
        # directory.
        words = ["sbatch", "--parsable", f"--chdir={REPO}", *self.options, *chain]
        return [*words, str(script), *arguments]


def submit(
    job: Job, findings: list[Finding], dry_run: bool, chain: int = 1, after: str | None = None
) -> Iterator[str]:
    """Yields what is written and submitted; with `dry_run` the job file and the commands.

    Args:
        findings: what was found out about the machine; some of it may stop the job.
        chain: the number of jobs, each after the one before.
        after: what the first job waits for, as sbatch's option --dependency names it.

    Raises:
        SubmitError: there is no sbatch, or it refuses, or something is missing.
    """
    recipe, name = job.recipe, "array.sbatch" if job.array else "stream.sbatch"
    if recipe.launcher.kind != "slurm":
        raise SubmitError(
            f"launcher.kind is {recipe.launcher.kind}; --slurm needs launcher.kind=slurm"
        )
    scripts = {name: render(recipe, name)}
    findings = [*findings, *check_submission(scripts[name], job.options)]
    arguments = list(job.arguments)
    # The evaluation is a job on one machine, whatever the training takes.
    later = [*arguments, "launcher.nodes=1"]
    if recipe.launcher.slurm.eval_jobs:
        launcher = recipe.launcher.model_copy(update={"nodes": 1})
        scripts[f"evaluate-{name}"] = render(recipe.model_copy(update={"launcher": launcher}), name)
        arguments.append("--train-only")

    def evaluation(after: str) -> list[str]:
        """It waits until the training has ended well, an array's task for its own, and goes if it
        has not."""
        dependency = f"{'aftercorr' if job.array else 'afterok'}:{after}"
        words = job.command(job.folder / f"evaluate-{name}", later, dependency)
        return [*words[:2], "--kill-on-invalid-dep=yes", *words[2:]]

    if dry_run:
        yield from scripts.values()
        yield "# " + shlex.join(job.command(job.folder / name, arguments, None))
        if len(scripts) > 1:
            yield "# " + shlex.join(evaluation("JOB"))
        yield from (finding.line() for finding in findings)
        yield "# nothing was written or submitted."
        return
    if missing := stopping(findings):
        raise SubmitError("\n  ".join(["the job could not run:", *map(str, missing)]))
    for file, script in scripts.items():
        write_text(job.folder / file, script)
    (REPO / recipe.launcher.slurm.logs).mkdir(parents=True, exist_ok=True)
    for _ in range(chain):
        number = _sbatch(job.command(job.folder / name, arguments, after))
        after = f"afterany:{number}"
        yield f"submitted job {number}; logs in {recipe.launcher.slurm.logs}/"
    if len(scripts) > 1:
        done = _sbatch(evaluation(number))
        yield f"submitted job {done} for the evaluation, after job {number}"
    yield "bash recipes/run_stream.sh status " + shlex.join(job.status)


def check_submission(script: str, extra: list[str]) -> list[Finding]:
    """What the cluster says of the job file (partition, account, time, size), without a job."""
    command = ["sbatch", "--test-only", f"--chdir={REPO}", *extra]
    try:
        # By standard input: a dry run writes no job file.
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return [Finding("sbatch", _NO_SBATCH)]
    except subprocess.TimeoutExpired:
        return [Finding("sbatch", "the cluster did not answer for 60 s: does `sinfo` answer?")]
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    answer = "; ".join(line.removeprefix("sbatch: ") for line in lines)
    if not done.returncode:
        return [Finding("sbatch", answer, stops=False)]
    if re.search(r"configuration source|[Uu]nable to contact", answer):
        text = (
            f"no cluster answers sbatch here: {answer}. Submit where `sinfo` shows its partitions"
        )
        return [Finding("sbatch", text)]
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
    # --parsable prints "number;cluster" where several clusters are served.
    return done.stdout.strip().split(";")[0]


def render(recipe: Recipe, template: str) -> str:
    """The job file: the template with its header and set-up from the recipe."""
    lines = (TEMPLATES / template).read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    body = [line for line in lines[last + 1 :] if line != _SETUP]
    comments = [line for line in lines[:last] if not line.startswith("#SBATCH")]
    first = body.index("set -uo pipefail\n") + 1
    header = [f"#SBATCH --{option}\n" for option in header_options(recipe, template)]
    slurm = recipe.launcher.slurm
    setup = [f"module load {shlex.quote(module)}\n" for module in slurm.modules]
    if slurm.venv is not None:
        setup.append(f"export PYTHON={shlex.quote(slurm.venv + '/bin/python')}\n")
    return "".join([*comments, *header, *body[:first], *setup, *body[first:]])


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
        "open-mode=append",  # a requeued job goes on in the same log
        f"signal=B:USR1@{slurm.stop_before}",  # B: to the script alone, which passes it on
        f"output={slurm.logs}/{log}",
    ]
    usual = 0 if launcher.cpu else launcher.nproc
    gpus = usual if slurm.gpus_per_node is None else slurm.gpus_per_node
    asked: dict[str, object]
    asked = {"gpus-per-node": gpus or None, "cpus-per-task": slurm.cpus_per_task}
    asked |= {"mem": slurm.memory, "partition": slurm.partition, "account": slurm.account}
    options += [f"{key}={value}" for key, value in asked.items() if value is not None]
    return options + list(slurm.options)

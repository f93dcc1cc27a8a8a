"""The list of checks that `--dry-run`, `--slurm`, `validate` and the run itself share.

Nothing is written, and torch is imported in a process of its own, only where there is a GPU driver
(or a disk so full that an adapter must be counted exactly).
"""

from __future__ import annotations

import os

from recipes.baselines.start_adapter import start_problems
from recipes.config.schema import Recipe
from recipes.run.commands import PLUGIN
from recipes.run.preflight import tools
from recipes.run.preflight.earlier_start import check_run_folder
from recipes.run.preflight.finding import Finding
from recipes.run.preflight.free_space import check_disk, check_shared_memory
from recipes.run.preflight.gpus import check_gpus
from recipes.run.preflight.installed import check_packages
from recipes.run.preflight.model_folder import check_model
from recipes.run.preflight.stream_files import check_stream


def look(recipe: Recipe, on_submit_host: bool = False) -> list[Finding]:
    """Everything that stands in the way of a run, all at once; empty: it can start.

    Args:
        on_submit_host: the machine submits the job and does not run it: what only the machines of
            the job can tell is left to the job's own start, and a note says so.
    """
    findings = [*check_model(recipe), *check_stream(recipe), *check_packages(recipe)]
    if recipe.routed and not PLUGIN.is_file():
        findings.append(Finding("tuner", f"{PLUGIN} is not there; the checkout is incomplete"))
    findings += [Finding("start_from", text) for text in start_problems(recipe)]
    findings += [*tools.check_deepspeed_file(recipe), *check_disk(recipe)]
    findings += tools.check_container(recipe, on_submit_host)
    if on_submit_host:
        text = "GPUs, /dev/shm, compiler and ports are looked at when the job starts, where it runs"
        return [*findings, Finding("job", text, stops=False)]
    findings += [*check_gpus(recipe), *check_shared_memory(recipe), *tools.check_caches(recipe)]
    return [*findings, *tools.check_compiler(recipe), *tools.check_network(recipe)]


def look_before_start(recipe: Recipe, on_submit_host: bool = False) -> list[Finding]:
    """What `look` finds, and whether the run's folder goes on with this recipe."""
    return [*check_run_folder(recipe, on_submit_host), *look(recipe, on_submit_host)]


def is_submit_host(recipe: Recipe) -> bool:
    """Whether the recipe is a cluster's and this process is no part of a job of one."""
    return recipe.launcher.kind == "slurm" and "SLURM_JOB_ID" not in os.environ


def stopping(findings: list[Finding]) -> list[Finding]:
    """Those without which the run cannot start."""
    return [finding for finding in findings if finding.stops]

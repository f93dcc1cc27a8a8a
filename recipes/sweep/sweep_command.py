"""The command `sweep`: what will run is shown, then run here or submitted as one SLURM array."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from eval.charts.figure import duration
from recipes.config.sizes.base_model import CountError
from recipes.run.preflight.all_checks import look, stopping
from recipes.run.preflight.finding import Finding
from recipes.run.session import RunError
from recipes.run_folder.state import load_state
from recipes.sweep.array import submit_array
from recipes.sweep.cells import Cell, Sweep
from recipes.sweep.parallel_runs import run_cells
from recipes.sweep.progress import show
from recipes.sweep.results import DIVERGED, DONE, choose, read_result
from recipes.tools.clean import remove_path, size_of
from recipes.tools.plan import Plan, make_plan


def sweep(planned: Sweep, options: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """Shows the plan and brings all runs to their end; returns 1 when one of them has none."""
    for line in plan_text(planned):
        tell(line)
    findings = list(_findings(planned, options.slurm))
    if options.slurm:
        for line in submit_array(planned, findings, options):
            tell(line)
        return 0
    if options.dry_run:
        for finding in findings:
            tell(finding.line())
        tell("# nothing was run or written.")
        return 0
    if missing := stopping(findings):
        raise RunError("\n  ".join(["the runs could not start:", *map(str, missing)]))
    planned.save()
    results = run_cells(planned, options.jobs, tell)
    show(planned.folder)
    if options.keep == "best":
        for line in keep_best(planned):
            tell(line)
    tell(f"compare them: python -m eval.compare {shlex.quote(str(planned.folder))}")
    return 0 if all(result.state == DONE for result in results) else 1


def _findings(planned: Sweep, on_submit_host: bool) -> Iterator[Finding]:
    """What stands in the way of the runs: one of each method and of each stream is looked at."""
    cells = {cell.recipe.method: cell for cell in planned.cells}
    cells |= {cell.recipe.data.stream: cell for cell in planned.cells}
    looked = {cell.name: cell.recipe for cell in cells.values()}
    yield from dict.fromkeys(f for each in looked.values() for f in look(each, on_submit_host))


def plan_text(planned: Sweep) -> Iterator[str]:
    """Yields the table of what will run: a line for each method with its settings."""
    heads = ("runs", "ready", "steps", "trained", "stored", "disk")
    rows = []
    disk, seconds = 0.0, []
    for (method, settings), cells in planned.groups().items():
        plan = _plan(cells[0])
        ready = [read_result(cell).state in (DONE, DIVERGED) for cell in cells]
        steps = [chunk.steps for chunk in plan.chunks] if plan else [None]
        known = [step for step in steps if step is not None]
        model = plan.model if plan else None
        disk += model.adapters_gib * len(cells) if model else 0.0
        seconds.append((ready.count(False), plan.seconds.run if plan and plan.seconds else None))
        rows.append((
            " ".join([method, *(f"{key}={value}" for key, value in settings)]),
            str(len(cells)), str(sum(ready)),
            f"{sum(known):,}" if len(known) == len(steps) else "-",
            f"{model.trained_parameters:,}" if model else "-",
            f"{model.stored_parameters:,}" if model else "-",
            _size(model.adapters_gib) if model else "-",
        ))  # fmt: skip
    wide = max(len(row[0]) for row in rows)
    yield f"{'':<{wide}}" + "".join(f"{head:>13}" for head in heads) + "  of one run"
    for row in rows:
        yield f"{row[0]:<{wide}}" + "".join(f"{cell:>13}" for cell in row[1:])
    seeds = sorted({cell.recipe.seed for cell in planned.cells})
    streams = sorted({cell.recipe.data.seed for cell in planned.cells})
    yield f"seeds {', '.join(map(str, seeds))}; stream seeds {', '.join(map(str, streams))}"
    todo = [(count, each) for count, each in seconds if count]
    if todo and all(each is not None for _, each in todo):
        total = sum(count * (each or 0.0) for count, each in todo)
        time = f"{duration(total)} one after the other (measured on runs of their kind)"
    else:
        time = "time not known: not all were measured on this machine" if todo else "all ready"
    yield f"{len(planned.cells)} runs into {planned.folder}/, adapters {_size(disk)} in all; {time}"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"


def _plan(cell: Cell) -> Plan | None:
    try:
        return make_plan(cell.recipe, [], count=False)
    except CountError:
        return None


def keep_best(planned: Sweep) -> Iterator[str]:
    """Removes the adapters of every setting that is not its method's best; scores stay.

    A setting counts by the mean of Last over its seeds. Nothing goes while a run of the method is
    not finished.
    """
    results = [read_result(cell) for cell in planned.cells]
    best = choose(results)
    freed = 0
    unfinished = {r.cell.recipe.method for r in results if r.state not in (DONE, DIVERGED)}
    for (method, settings), cells in planned.groups().items():
        if method in unfinished or method not in best or settings == best[method].settings:
            continue
        for path in (path for cell in cells for path in _weights(cell)):
            freed += size_of(path)
            remove_path(path)
    for method, setting in best.items():
        values = " ".join(f"{key}={value}" for key, value in setting.settings)
        yield f"best of {method}: {values or 'its only setting'}, Last {100 * setting.last:.1f}"
    yield f"{freed / 2**20:.1f} MiB of the other settings' adapters removed; their scores stay"


def _weights(cell: Cell) -> Iterator[Path]:
    for record in load_state(cell.layout.state).chunks:
        chunk = cell.layout.chunk(record.index)
        yield from chunk.rglob("*.safetensors")

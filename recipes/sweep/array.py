"""A sweep as one SLURM array: a task for each run that is not finished."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from hashlib import sha256

from data_prep.files import write_text
from recipes import REPO
from recipes.run.chunk_data import ensure_stream
from recipes.run.preflight.finding import Finding
from recipes.slurm.submit import Job, SubmitError, submit
from recipes.sweep.cells import Sweep
from recipes.sweep.kept_results import keep_results
from recipes.sweep.results import DIVERGED, DONE, read_result


def submit_array(
    sweep: Sweep, findings: list[Finding], options: argparse.Namespace
) -> Iterator[str]:
    """Yields what is written and submitted; with --dry-run the job file, the tasks, the command.

    Raises:
        SubmitError: the runs ask for different machines; or as :func:`submit` has it.
        StreamError: a stream could not be made.
    """
    if not options.dry_run:
        keep_results(sweep)
    cells = [cell for cell in sweep.cells if read_result(cell).state not in (DONE, DIVERGED)]
    if not cells:
        yield "every run is finished; nothing is submitted"
        return
    first = cells[0].recipe
    if any(cell.recipe.launcher != first.launcher for cell in cells):
        raise SubmitError(
            "the runs of one array ask for the same machines, but the grid changes the block "
            "launcher: submit a sweep for each"
        )
    text = "".join(json.dumps(list(cell.overrides)) + "\n" for cell in cells)
    # Never written again: a task that waits in the queue finds the runs that it was submitted with.
    file = REPO / sweep.folder / "slurm" / f"{sha256(text.encode()).hexdigest()[:12]}.jsonl"
    throttle = f"%{options.throttle}" if options.throttle else ""
    job = Job(
        first.model_copy(update={"name": f"{first.name}-sweep"}),
        (sweep.path, "--cells", str(file)),
        file.parent,
        (str(sweep.folder),),
        f"0-{len(cells) - 1}{throttle}",
    )
    if options.dry_run:
        yield from (f"# task {i}: {' '.join(cell.overrides)}" for i, cell in enumerate(cells))
    else:
        for recipe in {cell.recipe.data.stream: cell.recipe for cell in cells}.values():
            ensure_stream(recipe)  # tasks that start together would hinder each other
        sweep.save()
        write_text(file, text)
    yield from submit(job, findings, options.dry_run)

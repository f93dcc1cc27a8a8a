"""Brings the runs of a sweep to their end on this machine, several at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data_prep.files import write_text
from eval.charts.figure import duration
from recipes import REPO
from recipes.processes.log_errors import exit_text
from recipes.processes.machine import gpu_count
from recipes.processes.process_tree import die_with
from recipes.run.chunk_data import ensure_stream
from recipes.run.commands import default_threads
from recipes.run.session import RunError
from recipes.sweep.cells import Cell, Sweep
from recipes.sweep.kept_results import keep_results
from recipes.sweep.results import DIVERGED, DONE, Result, read_result
from recipes.tools.status import read_status

RUNNER = "recipes.cli"  # the module that runs a cell
LOG = "sweep.log"
POLL_SECONDS = 0.3

Tell = Callable[[str], None]


@dataclass
class _Slot:
    """A share of the machine, and the run that has it now."""

    number: int
    cell: Cell | None = None
    process: subprocess.Popen[bytes] | None = None


def run_cells(sweep: Sweep, jobs: int, tell: Tell) -> list[Result]:
    """Runs what is not finished; returns the results of all.

    A run that fails stops no other, and is tried again by the next call. One that diverged is not.
    One that another process works on is waited for. Whatever interrupts us stops all runs, which
    save what they have.

    Raises:
        RunError: this machine has fewer GPUs than the runs of one moment take.
        StreamError: a stream could not be made.
    """
    _check_gpus(sweep, jobs)
    keep_results(sweep)
    waiting = [cell for cell in sweep.cells if read_result(cell).state not in (DONE, DIVERGED)]
    for recipe in {cell.recipe.data.stream: cell.recipe for cell in waiting}.values():
        ensure_stream(recipe)  # runs that start together would hinder each other
    ready = len(sweep.cells) - len(waiting)
    tell(f"[sweep] {len(waiting)} runs to do, {ready} ready, {jobs} at a time")
    slots = [_Slot(number) for number in range(jobs)]
    try:
        while waiting or any(slot.process for slot in slots):
            for slot in slots:
                if slot.process is not None and slot.process.poll() is not None:
                    _ended(slot, tell)
                    keep_results(sweep)
                if slot.process is None and (cell := _next(waiting)) is not None:
                    _start(sweep, slot, cell, jobs)
                    tell(f"[sweep] {cell.name}: started, log {cell.layout.root / LOG}")
            time.sleep(POLL_SECONDS)
    except BaseException:
        running = [slot.process for slot in slots if slot.process is not None]
        for process in running:
            process.terminate()  # it saves inside the chunk, then ends
        for process in running:
            process.wait()
        raise
    return [read_result(cell) for cell in sweep.cells]


def _next(waiting: list[Cell]) -> Cell | None:
    """Takes the first run that no other process works on; those that it finished drop out."""
    for cell in list(waiting):
        life = read_status(cell.recipe).life
        if life != "running":
            waiting.remove(cell)
        if life not in ("running", "finished"):
            return cell
    return None


def _start(sweep: Sweep, slot: _Slot, cell: Cell, jobs: int) -> None:
    words = [sys.executable, "-m", RUNNER, "run", sweep.path, *cell.overrides, "--of-sweep"]
    environment = dict(os.environ)
    if jobs > 1:
        if cell.recipe.launcher.omp_threads is None:
            share = max(1, default_threads(cell.recipe) // jobs)
            words.append(f"launcher.omp_threads={share}")
        if not cell.recipe.launcher.cpu:
            each = cell.recipe.launcher.nproc
            own = _visible_gpus()[slot.number * each : (slot.number + 1) * each]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    log = cell.layout.root / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        slot.process = subprocess.Popen(
            words,
            stdout=output,
            stderr=output,
            cwd=REPO,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, who end the runs one by one
            preexec_fn=partial(die_with, os.getpid()),
        )
    slot.cell = cell


def _ended(slot: _Slot, tell: Tell) -> None:
    assert slot.process is not None
    assert slot.cell is not None
    code, cell = slot.process.returncode, slot.cell
    slot.process = slot.cell = None
    if code and not cell.layout.failure.is_file():  # it could not say why itself
        why = f"the run {exit_text(code)}; its log: {cell.layout.root / LOG}"
        write_text(cell.layout.failure, why)
    result = read_result(cell)
    if result.state == DONE:
        scores = f"Last {100 * result.last:.1f}, Avg {100 * result.average:.1f}"
        tell(f"[sweep] {cell.name}: done in {duration(result.seconds)}, {scores}")
    else:
        tell(f"[sweep] {cell.name}: {result.state}: {result.why}")


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: gpu_count()] if named else [str(n) for n in range(gpu_count())]


def _check_gpus(sweep: Sweep, jobs: int) -> None:
    needed = jobs * max((c.recipe.launcher.nproc for c in sweep.cells if not c.recipe.launcher.cpu),
                        default=0)  # fmt: skip
    if jobs > 1 and needed > len(_visible_gpus()):
        raise RunError(
            f"--jobs {jobs} takes {needed} GPUs at a time (launcher.nproc), here are "
            f"{len(_visible_gpus())}: lower --jobs"
        )

"""One adapter to train, of a chunk or of a router: what it needs, what is checked at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.config.schema import Recipe
from recipes.processes.host_process import last_error
from recipes.run import checkpoints
from recipes.run.checkpoints import Checkpoint, check_adapter
from recipes.run.layout import RunLayout
from recipes.run.state import write_text
from strlora_tuner.methods.ewc.state_file import check_state_file
from strlora_tuner.saved import AdapterError


class RunError(Exception):
    """The run stopped; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Job:
    """One adapter to train, of a chunk or its router; `data` writes and names its files, in words
    too."""

    recipe: Recipe
    layout: RunLayout
    index: int
    what: str
    data: Callable[[], tuple[Sequence[Path], str]]


def check_finished(job: Job, log: Path) -> Checkpoint:
    """The checkpoint that ends the job's training; RunError when the host left none."""
    last = checkpoints.newest_checkpoint(job.layout.host(job.index))
    if last is None:
        raise RunError(failed(f"training {job.what}", "left no complete checkpoint", log))
    if not last.finished:
        words = f"stopped after {last.step} of {last.max_steps} steps without an error"
        raise RunError(failed(f"training {job.what}", words, log))
    return last


def install(job: Job, checkpoint: Checkpoint) -> None:
    """Checks a finished checkpoint's adapter and brings it into its place, or raises RunError."""
    before = job.recipe.previous(job.index)
    previous = None if before is None else job.layout.adapter(before)
    try:
        check_adapter(checkpoint.path, job.recipe.tuner_type, previous)
        if job.recipe.ewc is not None:
            check_state_file(checkpoint.path, job.recipe.ewc.released)
    except AdapterError as error:
        raise RunError(f"{job.what} was trained, but its adapter is not whole: {error}") from error
    try:
        checkpoints.install_adapter(checkpoint, job.layout.adapter(job.index))
    except AdapterError as error:
        raise RunError(
            f"{job.what}: {error}. Look at {job.layout.train_metrics(job.index)}, then start "
            "again with a lower learning rate and another run_dir"
        ) from error


def keep_metrics(job: Job) -> None:
    """Copies the host's metrics beside the adapter, one row a step."""
    source = job.layout.host(job.index) / "logging.jsonl"
    rows = [line for line in checkpoints.complete_lines(source) if '"loss"' in line[:12]]
    write_text(job.layout.train_metrics(job.index), "".join(rows))


def check_processes(resume: Checkpoint, processes: int, index: int) -> None:
    """Raises RunError when a half-trained chunk was begun by another number of processes.

    The host stores one random state for each process; the order of samples follows their number.
    """
    states = len(list(resume.path.glob("rng_state_*.pth"))) or 1
    if states != processes:
        raise RunError(
            f"chunk {index} was trained up to step {resume.step} by {states} process(es), now it "
            f"would be {processes}: inside a chunk their number cannot change. End the chunk with "
            f"launcher.nproc x launcher.nodes = {states}, or remove {resume.path.parent} to train "
            f"the chunk again with {processes}"
        )


def failed(what: str, how: str, log: Path) -> str:
    """What went wrong, with the end of the host's log, and what to do."""
    cause = "\n".join(f"    {line}" for line in last_error(log))
    return (
        f"{what} {how}. The log ends with:\n{cause}\n"
        f"Whole log: {log}\nMend the cause and give the same command again; it goes on from here."
    )

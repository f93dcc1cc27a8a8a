"""One `swift sft`: an adapter of a chunk or of a router, trained from wherever it stands."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import complete_lines, read_json, write_text
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import zero_settings
from recipes.run.chunk_data import chunk_only_file
from recipes.run.commands import train_command
from recipes.run.session import RunError, Session, failure_text
from recipes.run_folder import checkpoints
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import ChunkRecord
from strlora_tuner.methods.ewc.state_file import check_state_file
from strlora_tuner.methods.slow_weights.both_sets import check_slow_file
from strlora_tuner.saved import AdapterError


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train.

    Attributes:
        recipe: the run's, or the one made of it for a router.
        layout: where its files go.
        index: the chunk.
        what: the adapter in words, for messages.
        data: writes what it is trained on; returns the files, and a text about them.
        start: the adapter that a router starts from, which `data` writes; None: no other than the
            recipe says.
    """

    recipe: Recipe
    layout: RunLayout
    index: int
    what: str
    data: Callable[[], tuple[Sequence[Path], str]]
    start: Path | None = None

    @property
    def host(self) -> Path:
        """The folder that the host writes into."""
        return self.layout.host(self.index)


def train_adapter(session: Session, job: TrainingJob, record: ChunkRecord) -> None:
    """Bring one adapter into its place, from wherever its training stands.

    Raises:
        RunError: the host failed, or left no whole adapter.
    """
    # An adapter is installed last and whole: where its folder is, the training is over.
    if not job.layout.adapter(job.index).is_dir():
        checkpoint = _finished_checkpoint(session, job, record)
        rows = complete_lines(job.host / "logging.jsonl")  # one a step, among others
        steps = "".join(row for row in rows if '"loss"' in row[:12])
        # Before the adapter is installed: from then on the host's folder, which holds them, may go
        # at any time.
        write_text(job.layout.train_metrics(job.index), steps)
        _install(job, checkpoint)
    shutil.rmtree(job.host, ignore_errors=True)  # states of the optimizer: the largest files


def _finished_checkpoint(
    session: Session, job: TrainingJob, record: ChunkRecord
) -> checkpoints.Checkpoint:
    """Train until the host's last checkpoint of the adapter is there, and return it."""
    resume = checkpoints.newest_checkpoint(job.host)
    if resume is not None and resume.finished:
        return resume  # killed between the host's last save and our copy
    if resume is not None:
        check_processes(resume, job.recipe.processes, job.index)
        check_batches(resume, job.recipe, job.index)
    for text in checkpoints.passed_over(job.host, resume):
        session.say(text)
    checkpoints.clean_host_folder(job.host, resume)
    files, text = job.data()
    if resume is not None:
        text += f", resuming at step {resume.step} of {resume.max_steps}"
    session.progress.begin(job.index, "train", text)
    own = chunk_only_file(job.recipe, job.layout, job.index, session.stream)
    checkpoint = resume.path if resume else None
    command = train_command(job.recipe, job.layout, files, job.index, checkpoint, own, job.start)
    log = job.layout.train_log(job.index)
    tick = session.progress.watch_training(job.host / "logging.jsonl")
    peak = session.run_host(command, log, tick, f"training {job.what}")
    record.train_memory_gib = round(max(peak, record.train_memory_gib or 0.0), 3)
    return _last_checkpoint(job, log)


def check_processes(resume: checkpoints.Checkpoint, processes: int, index: int) -> None:
    """Raise RunError when a half-trained chunk was begun by another number of processes.

    The host stores one random state for each process; the order of samples follows their number.
    """
    # A single process writes rng_state.pth, without a number.
    states = len(list(resume.path.glob("rng_state_*.pth"))) or 1
    if states != processes:
        raise RunError(
            f"chunk {index} was trained up to step {resume.step} by {states} process(es), now "
            f"it would be {processes}: inside a chunk their number cannot change. Finish the chunk "
            f"with launcher.nproc x launcher.nodes = {states}, or remove {resume.path.parent} to "
            f"train the chunk again with {processes}"
        )


def check_batches(resume: checkpoints.Checkpoint, recipe: Recipe, index: int) -> None:
    """Raise RunError when a half-trained chunk was begun with another batch, stage or length.

    Which samples come next, and how the optimizer's state lies on the disk, depends on them.
    """
    try:
        arguments = read_json(resume.path / "args.json")
    except FileNotFoundError:
        return
    batch = arguments.get("per_device_train_batch_size")
    length = recipe.model.max_length
    begun = f"per_device_batch {batch}, {_stage(arguments.get('deepspeed'))}, "
    begun += f"max_length {arguments.get('max_length', length)}"
    now = f"per_device_batch {recipe.schedule.per_device_batch}, "
    now += f"{_stage(recipe.launcher.deepspeed)}, max_length {length}"
    if batch is not None and begun != now:
        raise RunError(
            f"chunk {index} was trained up to step {resume.step} with {begun}, now it would be "
            f"{now}: inside a chunk they cannot change. Finish the chunk as it was begun, or "
            f"remove {resume.path.parent} to train it again"
        )


def _stage(deepspeed: Any) -> str:
    """How the host uses DeepSpeed: args.json holds the whole of its configuration."""
    if not deepspeed:
        return "no DeepSpeed"
    zero = zero_settings(deepspeed)
    off = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    return f"ZeRO stage {zero.get('stage', 0)}{' with offload' if off else ''}"


def _last_checkpoint(job: TrainingJob, log: Path) -> checkpoints.Checkpoint:
    """The checkpoint that ends the job's training; RunError when the host left none."""
    # The exit code does not tell: a trainer that was asked to save and stop ends with 0, too.
    last = checkpoints.newest_checkpoint(job.host)
    if last is None:
        raise RunError(failure_text(f"training {job.what}", "left no complete checkpoint", log))
    if not last.finished:
        how = f"stopped after {last.step} of {last.max_steps} steps without an error"
        raise RunError(failure_text(f"training {job.what}", how, log))
    return last


def _install(job: TrainingJob, checkpoint: checkpoints.Checkpoint) -> None:
    """Check a finished checkpoint's adapter and bring it into its place, or raise RunError."""
    before = job.recipe.previous(job.index)
    previous = None if before is None else job.layout.adapter(before)
    try:
        checkpoints.check_adapter(checkpoint.path, job.recipe.tuner_type, previous)
        if job.recipe.ewc is not None:
            check_state_file(checkpoint.path, job.recipe.ewc.fisher)
        if job.recipe.slow_weights is not None:
            check_slow_file(checkpoint.path)
        if job.recipe.keeps_optimizer:
            checkpoints.check_optimizer(checkpoint.path)
    except AdapterError as error:
        raise RunError(f"{job.what} was trained, but its adapter is not whole: {error}") from error
    slow = job.recipe.slow_weights
    answer = None if slow is None else slow.answer
    try:
        target, keeps = job.layout.adapter(job.index), job.recipe.keeps_optimizer
        checkpoints.install_adapter(checkpoint, target, answer, keeps)
    except AdapterError as error:
        raise RunError(
            f"{job.what}: {error}. Look at {job.layout.train_metrics(job.index)}, then start "
            "again with a lower learning rate and another run_dir"
        ) from error

"""The loop over a stream: for each chunk train, check, keep the adapter, evaluate, record, report.

Every step is recorded only after its files are in place, and each can be repeated, so that the
process may be killed at any moment: the same command finds out where it stood and goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from recipes import checkpoints, evaluation
from recipes.adapter_check import AdapterError, check_adapter, check_ewc
from recipes.carried import check_carried, mix_in, remember
from recipes.checkpoints import Checkpoint, CheckpointError
from recipes.commands import Command, train_command
from recipes.layout import RunLayout
from recipes.lock import RunLock
from recipes.manifest import (
    check_same_data,
    check_same_model,
    check_same_run,
    write_manifest,
)
from recipes.preview import evaluated_after, unused_text, what_is_missing
from recipes.process import HostProcess, exit_text, last_error
from recipes.progress import Progress, duration, score_text
from recipes.replay import ReplayError
from recipes.schema import Recipe
from recipes.state import ChunkRecord, RunState, load_state, save_state, write_text
from recipes.stream import (
    Stream,
    ensure_stream,
    open_stream,
    training_chunks,
    training_files,
)
from recipes.worker import Worker


class RunError(Exception):
    """The run stopped; the message says where, why, and what to do."""


def run(recipe: Recipe, progress: Progress) -> None:
    """Runs a recipe from wherever it stands to its end.

    Raises:
        RunError: a chunk failed, or something is missing.
        RunChanged, RunLocked, StateError, StreamError: the run cannot be gone on with.
    """
    layout = RunLayout(Path(recipe.folder))
    check_same_run(layout, recipe)
    if load_state(layout.state).finished:
        _say_finished(layout, progress)
        return
    with RunLock(layout.lock) as lock:
        ensure_stream(recipe)
        missing = what_is_missing(recipe)
        if missing:
            raise RunError("this machine cannot run the recipe yet:\n  " + "\n  ".join(missing))
        stream = open_stream(recipe)
        check_same_data(layout, stream)
        check_same_model(layout, recipe)
        work = _Run(recipe, layout, stream, lock, progress)
        try:
            work.to_the_end()
        finally:
            work.close()


def _say_finished(layout: RunLayout, progress: Progress) -> None:
    progress.say(f"{layout.root} is finished; nothing to do.")
    if not layout.report.is_file():
        evaluation.write_report(layout, progress.say)
    progress.say(f"report: {layout.report}   scores: {layout.matrix}")


class _Run:
    """One start of the orchestrator on one run folder."""

    def __init__(
        self, recipe: Recipe, layout: RunLayout, stream: Stream, lock: RunLock, progress: Progress
    ) -> None:
        self.recipe, self.layout, self.stream = recipe, layout, stream
        self.lock, self.progress = lock, progress
        self.state: RunState = load_state(layout.state)
        self.tasks = recipe.eval.tasks or stream.tasks
        self.worker = Worker(layout.worker_log) if recipe.launcher.resident else None

    def to_the_end(self) -> None:
        """Does every chunk that is not done yet."""
        self.stream.verify_tests(self.tasks)
        write_manifest(self.layout, self.recipe, self.stream)
        count = self.recipe.data.chunks
        self._announce()
        for index in self.recipe.stops:
            started = time.monotonic()
            worked = self._do_chunk(index)
            if worked and index > 0:
                self.progress.chunk_took(time.monotonic() - started, count - index)
        self.state.finished = True
        self._save()
        evaluation.write_report(self.layout, self.progress.say)
        total = sum(r.train_seconds + r.eval_seconds for r in self.state.chunks)
        self.progress.say(
            f"finished: {count} chunks in {duration(total)}\n"
            f"report: {self.layout.report}   scores: {self.layout.matrix}"
        )

    def _announce(self) -> None:
        recipe, count = self.recipe, self.recipe.data.chunks
        where = f"going on after chunk {self.state.done}" if self.state.done else "starting"
        self.progress.say(
            f"[{recipe.name}] {where}: {recipe.method}, {count} chunks, {len(self.tasks)} tasks, "
            f"into {self.layout.root}/"
        )
        if recipe.unused_tuner_keys:
            self.progress.say(f"[{recipe.name}] {unused_text(recipe)}")

    def _do_chunk(self, index: int) -> bool:
        """Brings one chunk to its end; returns whether there was anything to do."""
        record = self.state.record(index)
        wanted = index == 0 or evaluated_after(self.recipe, index)
        if self._is_done(record, wanted):
            self.state.done = max(self.state.done, index)  # killed before it was counted
            return False
        if self._trains(index) and not record.trained:
            self._train(index, record)
        if wanted and not record.evaluated:
            self._evaluate(index, record)
        self.state.done = index
        self._save()
        if wanted:
            evaluation.write_report(self.layout, self.progress.say)
        return True

    def _trains(self, index: int) -> bool:
        return index in self.recipe.trained_chunks

    def _is_done(self, record: ChunkRecord, wanted: bool) -> bool:
        trains = self._trains(record.index)
        done = (record.trained or not trains) and (record.evaluated or not wanted)
        if done and trains and record.index == self.state.done:
            self._verify(record)  # the next chunk starts from this adapter
        return done

    def _verify(self, record: ChunkRecord) -> None:
        adapter = self.layout.adapter(record.index)
        try:
            checkpoints.verify_adapter(adapter, record.adapter_sha256)
            check_adapter(adapter, self.recipe.tuner_type)
            check_carried(self.recipe, self.layout, record)
        except (AdapterError, CheckpointError, ReplayError) as error:
            raise RunError(
                f"chunk {record.index}: {error}. The run cannot go on from it: bring the file back "
                "from a copy, or train again with another run_dir"
            ) from error

    # Training -----------------------------------------------------------------------------------

    def _train(self, index: int, record: ChunkRecord) -> None:
        started = time.monotonic()
        previous = self.recipe.previous(index)
        if previous is not None:
            self._verify(self.state.record(previous))
        adapter = self.layout.adapter(index)
        if not adapter.is_dir():
            for chunk in training_chunks(self.recipe, index):
                self.stream.verify_chunk(chunk)
            checkpoint = self._finished_checkpoint(index, record)
            self._keep_metrics(index)
            self._install(index, checkpoint)
        self._record_training(index, record, time.monotonic() - started)
        shutil.rmtree(self.layout.host(index), ignore_errors=True)
        self.layout.mixed(index).unlink(missing_ok=True)
        loss = "" if record.loss is None else f", loss {record.loss:.4f}"
        self.progress.say(
            f"[{self.recipe.name}] chunk {index}/{self.recipe.data.chunks} trained: "
            f"{record.steps} steps in {duration(record.train_seconds)}{loss}"
        )

    def _finished_checkpoint(self, index: int, record: ChunkRecord) -> Checkpoint:
        """Trains until the host's last checkpoint of the chunk is there, and returns it."""
        host = self.layout.host(index)
        resume = checkpoints.newest_checkpoint(host)
        if resume is not None and resume.finished:
            return resume  # killed between the host's last save and our copy
        if resume is not None:
            _check_processes(resume, self.recipe.processes, index)
        checkpoints.clean_host_folder(host, resume)
        mixed = mix_in(self.recipe, self.layout, self.stream, self.state, index)
        text = f"training on {self._samples(index)} samples{mixed}"
        if resume is not None:
            text += f", resuming at step {resume.step} of {resume.max_steps}"
        self.progress.begin(index, "train", text)
        files = training_files(self.recipe, self.layout, index, self.stream)
        command = train_command(
            self.recipe, self.layout, files, index, resume.path if resume else None
        )
        log = self.layout.train_log(index)
        tick = self.progress.watch_training(host / "logging.jsonl")
        peak = self._host(command, log, tick, f"training chunk {index}")
        record.train_memory_gib = round(max(peak, record.train_memory_gib or 0.0), 3)
        return self._check_finished(index, log)

    def _samples(self, index: int) -> int:
        chunks = training_chunks(self.recipe, index)
        return sum(int(self.stream.chunk(chunk)["samples"]) for chunk in chunks)

    def _check_finished(self, index: int, log: Path) -> Checkpoint:
        last = checkpoints.newest_checkpoint(self.layout.host(index))
        if last is None:
            raise RunError(_failed(f"training chunk {index}", "left no complete checkpoint", log))
        if not last.finished:
            words = f"stopped after {last.step} of {last.max_steps} steps without an error"
            raise RunError(_failed(f"training chunk {index}", words, log))
        return last

    def _install(self, index: int, checkpoint: Checkpoint) -> None:
        before = self.recipe.previous(index)
        previous = None if before is None else self.layout.adapter(before)
        try:
            check_adapter(checkpoint.path, self.recipe.tuner_type, previous)
            if self.recipe.ewc is not None:
                check_ewc(checkpoint.path, self.recipe.ewc.released)
        except AdapterError as error:
            raise RunError(
                f"chunk {index} was trained, but its adapter is not whole: {error}"
            ) from error
        try:
            checkpoints.install_adapter(checkpoint, self.layout.adapter(index))
        except CheckpointError as error:
            raise RunError(
                f"chunk {index}: {error}. Look at {self.layout.train_metrics(index)}, then start "
                "again with a lower learning rate and another run_dir"
            ) from error

    def _keep_metrics(self, index: int) -> None:
        """Copies the host's metrics beside the adapter, one row a step."""
        source = self.layout.host(index) / "logging.jsonl"
        rows = [line for line in checkpoints.complete_lines(source) if '"loss"' in line[:12]]
        write_text(self.layout.train_metrics(index), "".join(rows))

    def _record_training(self, index: int, record: ChunkRecord, seconds: float) -> None:
        adapter = self.layout.adapter(index)
        trainer = json.loads((adapter / checkpoints.TRAINER_STATE).read_text(encoding="utf-8"))
        record.steps = int(trainer["global_step"])
        losses = [row["loss"] for row in trainer["log_history"] if "loss" in row]
        record.loss = float(losses[-1]) if losses else None
        joint = len(training_chunks(self.recipe, index)) > 1
        record.data_sha256 = self.stream.sha256 if joint else self.stream.chunk(index)["sha256"]
        record.replay_sha256 = remember(self.recipe, self.layout, self.stream, self.state, index)
        record.adapter_sha256 = checkpoints.adapter_hashes(adapter)
        record.train_seconds += round(seconds, 1)
        record.trained = True
        self._save()

    # Evaluation ---------------------------------------------------------------------------------

    def _evaluate(self, index: int, record: ChunkRecord) -> None:
        started = time.monotonic()
        if index > 0 and not self._trains(index):
            evaluation.repeat_base_model(self.layout, index)
            record.evaluated = True
            return
        what = "the base model" if index == 0 else f"{len(self.tasks)} tasks"
        self.progress.begin(index, "evaluate", f"evaluating {what}")
        command, answered, total = evaluation.prepare(
            self.recipe, self.layout, self.stream, self.tasks, index
        )
        if answered:
            self.progress.say(f"going on after {answered} of {total} answers")
        log = self.layout.eval_log(index)
        if command is not None:
            tick = self.progress.watch_answers(self.layout.answers(index), total)
            self._host(command, log, tick, f"evaluating chunk {index}")
        if not self.layout.answers(index).is_file():
            raise RunError(_failed(f"evaluating chunk {index}", "left no answers", log))
        scores = evaluation.score(self.recipe, self.layout, self.stream, self.tasks, index)
        record.eval_seconds += round(time.monotonic() - started, 1)
        record.evaluated = True
        self._save()
        self.progress.scores = means(scores)
        self.progress.say(
            f"[{self.recipe.name}] chunk {index}/{self.recipe.data.chunks} scores: "
            f"{score_text(self.progress.scores)}  ({duration(record.eval_seconds)})"
        )

    # Processes ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the resident worker, if there is one."""
        if self.worker is not None:
            self.worker.close()

    def _host(self, command: Command, log: Path, tick: Any, what: str) -> float:
        """Runs a host process to its end; returns its peak main memory in GiB."""
        process = HostProcess(command, log, self.worker)
        self.lock.note_child(process.pid)

        def watch() -> None:
            self.lock.beat()
            tick()

        try:
            code = process.wait(watch)
        finally:
            self.lock.note_child(None)
        if code:
            raise RunError(_failed(what, exit_text(code), log))
        return process.peak_gib

    def _save(self) -> None:
        save_state(self.layout.state, self.state)


def means(scores: dict[str, Any]) -> dict[str, float]:
    """Task -> score of a scores.json; tasks of which no sample was answered are left out."""
    tasks = scores["tasks"].items()
    return {task: entry["score"] for task, entry in tasks if entry["score"] is not None}


def _check_processes(resume: Checkpoint, processes: int, index: int) -> None:
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


def _failed(what: str, how: str, log: Path) -> str:
    cause = "\n".join(f"    {line}" for line in last_error(log))
    return (
        f"{what} {how}. The log ends with:\n{cause}\n"
        f"Whole log: {log}\nMend the cause and give the same command again; it goes on from here."
    )

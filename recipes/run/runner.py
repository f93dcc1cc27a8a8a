"""The loop over a stream: for each chunk train, check, keep the adapter, evaluate, record, report.

Every step is recorded only after its files are in place, and each can be repeated, so that the
process may be killed at any moment: the same command finds out where it stood and goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.baselines.mr_lora.pool import (
    RouterLayout,
    check_pool,
    has_router,
    keep_samples,
    router_hashes,
    router_recipe,
    write_pool,
    write_router_data,
)
from recipes.baselines.replay import ReplayError
from recipes.baselines.smolora_tasks import write_task_table
from recipes.config.schema import Recipe
from recipes.processes.gpu_energy import EnergyMeter, added
from recipes.processes.host_process import HostProcess, exit_text
from recipes.processes.resident.worker import Worker
from recipes.processes.run_lock import RunLock
from recipes.run import checkpoints, evaluation
from recipes.run.checkpoints import Checkpoint, CheckpointError, check_adapter
from recipes.run.chunk_data import check_carried, mix_in, remember
from recipes.run.commands import Command, train_command
from recipes.run.layout import RunLayout
from recipes.run.manifest import (
    check_same_data,
    check_same_model,
    check_same_run,
    write_costs,
    write_manifest,
)
from recipes.run.prerequisites import what_is_missing
from recipes.run.state import ChunkRecord, RunState, load_state, save_state
from recipes.run.stream import (
    Stream,
    ensure_stream,
    open_stream,
    own_samples,
    training_files,
)
from recipes.run.terminal import Progress, duration, score_text
from recipes.run.training_job import (
    Job,
    RunError,
    check_finished,
    check_processes,
    failed,
    install,
    keep_metrics,
)
from recipes.swift_plugins.sample_cache import trim
from strlora_tuner.saved import AdapterError


def run(recipe: Recipe, progress: Progress, train_only: bool = False) -> None:
    """Runs a recipe from wherever it stands to its end; with `train_only` evaluates nothing.

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
        if recipe.launcher.sample_cache is not None:
            trim(Path(recipe.launcher.sample_cache), 1e9 * recipe.launcher.sample_cache_gb)
        stream = open_stream(recipe)
        check_same_data(layout, stream)
        check_same_model(layout, recipe)
        work = _Run(recipe, layout, stream, lock, progress, train_only)
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
        self,
        recipe: Recipe,
        layout: RunLayout,
        stream: Stream,
        lock: RunLock,
        progress: Progress,
        train_only: bool = False,
    ) -> None:
        self.recipe, self.layout, self.stream = recipe, layout, stream
        self.lock, self.progress, self.train_only = lock, progress, train_only
        self.state: RunState = load_state(layout.state)
        self.tasks = recipe.eval.tasks or stream.tasks
        self.worker = Worker(layout.worker_log) if recipe.launcher.resident else None

    def to_the_end(self) -> None:
        """Does every chunk that is not done yet."""
        self.stream.verify_tests(self.tasks)
        write_manifest(self.layout, self.recipe, self.stream, self.state)
        if self.recipe.told_task:
            write_task_table(self.stream, self.recipe.data.chunks, self.layout.tasks)
        count = self.recipe.data.chunks
        self._announce()
        for index in self.recipe.evaluation_points:
            started = time.monotonic()
            worked = self._do_chunk(index)
            if worked and index > 0:
                self.progress.chunk_took(time.monotonic() - started, count - index)
        if self.train_only:
            self.progress.say(
                f"trained: {count} chunks; the same command without --train-only ends"
            )
            return
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
            self.progress.say(f"[{recipe.name}] {recipe.unused_tuner_text}")

    def _do_chunk(self, index: int) -> bool:
        """Brings one chunk to its end; returns whether there was anything to do."""
        record = self.state.record(index)
        wanted = self.recipe.evaluates_after(index) and not self.train_only
        if self._is_done(record, wanted):
            self.state.done = max(self.state.done, index)  # killed before it was counted
            return False
        meter = EnergyMeter(0 if self.recipe.launcher.cpu else self.recipe.launcher.nproc)
        if self._trains(index) and not record.trained:
            self._train(index, record)
        if wanted and not record.evaluated:
            self._evaluate(index, record)
        record.gpu_seconds = added(record.gpu_seconds, meter.gpu_seconds())
        record.gpu_joules = added(record.gpu_joules, meter.joules())
        self.state.done = index
        self._save()
        write_costs(self.layout, self.state)
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
        self._make_adapter(self._chunk_job(index), record)
        if self.recipe.pool is not None:
            self._make_router(index, record)
        self._record_training(index, record, time.monotonic() - started)
        self.layout.mixed(index).unlink(missing_ok=True)
        loss = "" if record.loss is None else f", loss {record.loss:.4f}"
        self.progress.say(
            f"[{self.recipe.name}] chunk {index}/{self.recipe.data.chunks} trained: "
            f"{record.steps} steps in {duration(record.train_seconds)}{loss}"
        )

    def _chunk_job(self, index: int) -> Job:
        def data() -> tuple[Sequence[Path], str]:
            for chunk in self.recipe.data_chunks(index):
                self.stream.verify_chunk(chunk)
            mixed = mix_in(self.recipe, self.layout, self.stream, self.state, index)
            files = training_files(self.recipe, self.layout, index, self.stream)
            return files, f"training on {self._samples(index)} samples{mixed}"

        return Job(self.recipe, self.layout, index, f"chunk {index}", data)

    def _make_router(self, index: int, record: ChunkRecord) -> None:
        """Trains the router over all adapters so far, see recipes.baselines.mr_lora.pool."""
        keep_samples(self.recipe, self.layout, self.stream, index)
        if not has_router(index):
            return

        def data() -> tuple[Sequence[Path], str]:
            try:
                file, lines = write_router_data(self.recipe, self.layout, self.state, index)
            except CheckpointError as error:
                raise RunError(f"the router of chunk {index}: {error}") from error
            return [file], f"training the router on {lines} samples"

        layout = RouterLayout(self.layout.root)
        job = Job(router_recipe(self.recipe), layout, index, f"the router of chunk {index}", data)
        self._make_adapter(job, record)

    def _make_adapter(self, job: Job, record: ChunkRecord) -> None:
        """Brings one adapter into its place, from wherever its training stands."""
        if not job.layout.adapter(job.index).is_dir():
            checkpoint = self._finished_checkpoint(job, record)
            keep_metrics(job)
            install(job, checkpoint)
        shutil.rmtree(job.layout.host(job.index), ignore_errors=True)

    def _finished_checkpoint(self, job: Job, record: ChunkRecord) -> Checkpoint:
        """Trains until the host's last checkpoint of the adapter is there, and returns it."""
        host = job.layout.host(job.index)
        resume = checkpoints.newest_checkpoint(host)
        if resume is not None and resume.finished:
            return resume  # killed between the host's last save and our copy
        if resume is not None:
            check_processes(resume, job.recipe.processes, job.index)
        checkpoints.clean_host_folder(host, resume)
        files, text = job.data()
        if resume is not None:
            text += f", resuming at step {resume.step} of {resume.max_steps}"
        self.progress.begin(job.index, "train", text)
        own = own_samples(job.recipe, job.index, self.stream)
        command = train_command(
            job.recipe, job.layout, files, job.index, resume.path if resume else None, own
        )
        log = job.layout.train_log(job.index)
        tick = self.progress.watch_training(host / "logging.jsonl")
        peak = self._host(command, log, tick, f"training {job.what}")
        record.train_memory_gib = round(max(peak, record.train_memory_gib or 0.0), 3)
        return check_finished(job, log)

    def _samples(self, index: int) -> int:
        chunks = self.recipe.data_chunks(index)
        return sum(int(self.stream.chunk(chunk)["samples"]) for chunk in chunks)

    def _record_training(self, index: int, record: ChunkRecord, seconds: float) -> None:
        adapter = self.layout.adapter(index)
        trainer = json.loads((adapter / checkpoints.TRAINER_STATE).read_text(encoding="utf-8"))
        record.steps = int(trainer["global_step"])
        losses = [row["loss"] for row in trainer["log_history"] if "loss" in row]
        record.loss = float(losses[-1]) if losses else None
        joint = len(self.recipe.data_chunks(index)) > 1
        record.data_sha256 = self.stream.sha256 if joint else self.stream.chunk(index)["sha256"]
        record.replay_sha256 = remember(self.recipe, self.layout, self.stream, self.state, index)
        record.adapter_sha256 = checkpoints.adapter_hashes(adapter)
        if self.recipe.pool is not None:
            record.router_sha256 = router_hashes(self.layout, index)
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
        if self.recipe.pool is not None and index > 0:
            self._open_pool(index)
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
            raise RunError(failed(f"evaluating chunk {index}", "left no answers", log))
        if missing := total - evaluation.repair_results(self.layout.answers(index)):
            self.progress.say(
                f"warning: the host left {missing} of {total} questions without an answer; each "
                f"counts as wrong and stands as failed in {self.layout.scores(index)}. See {log}"
            )
        scores = evaluation.score(self.recipe, self.layout, self.stream, self.tasks, index)
        record.eval_seconds += round(time.monotonic() - started, 1)
        record.evaluated = True
        self._save()
        self.progress.scores = means(scores)
        self.progress.say(
            f"[{self.recipe.name}] chunk {index}/{self.recipe.data.chunks} scores: "
            f"{score_text(self.progress.scores)}  ({duration(record.eval_seconds)})"
        )

    def _open_pool(self, index: int) -> None:
        """Checks every adapter that may answer, and writes down for the host which they are."""
        try:
            check_pool(self.layout, self.state, index)
        except CheckpointError as error:
            raise RunError(
                f"evaluating chunk {index}: {error}. Every adapter so far answers: bring the file "
                "back from a copy, or train again with another run_dir"
            ) from error
        write_pool(self.recipe, self.layout, self.state, index)

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
            raise RunError(failed(what, exit_text(code), log))
        return process.peak_gib

    def _save(self) -> None:
        save_state(self.layout.state, self.state)


def means(scores: dict[str, Any]) -> dict[str, float]:
    """Task -> score of a scores.json; tasks of which no sample was answered are left out."""
    tasks = scores["tasks"].items()
    return {task: entry["score"] for task, entry in tasks if entry["score"] is not None}

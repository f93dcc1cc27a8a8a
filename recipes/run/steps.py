"""The steps of a chunk: train its adapter (and a pool's router), evaluate, record.

A step is recorded only after its files are in place, and each can be repeated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data_prep.files import read_json
from eval.charts.figure import counted, duration
from eval.run_files import ChunkScores
from eval.scorers.registry import ScorerError
from recipes.baselines.mr_lora import pool
from recipes.baselines.mr_lora.merged_experts import write_merged
from recipes.baselines.replay import update_reservoir, write_replay_file
from recipes.config.schema import Recipe
from recipes.run import evaluation
from recipes.run.chunk_data import check_carried, training_files
from recipes.run.session import RunError, Session, failure_text
from recipes.run.terminal import score_text
from recipes.run.too_long import name_samples, text_of
from recipes.run.training_job import TrainingJob, train_adapter
from recipes.run_folder import checkpoints
from recipes.run_folder.layout import OtherWeightsLayout, RouterLayout, RunLayout
from recipes.run_folder.state import ChunkRecord
from strlora_tuner.saved import WEIGHTS, AdapterError


def verify_chunk(session: Session, record: ChunkRecord) -> None:
    """Raise RunError unless a trained chunk's adapter is whole and the one that was recorded."""
    adapter = session.layout.adapter(record.index)
    try:
        checkpoints.verify_adapter(adapter, record.adapter_sha256)
        if record.index:  # else it was checked when it was copied
            checkpoints.check_adapter(adapter, session.recipe.tuner_type)
            check_carried(session.recipe, session.layout, record)
    except (AdapterError, checkpoints.CheckpointError) as error:
        raise RunError(
            f"chunk {record.index}: {error}. The run cannot continue from it: bring the file back "
            "from a copy, or train again with another run_dir"
        ) from error


def train_chunk(session: Session, record: ChunkRecord) -> None:
    """Train a chunk, from wherever it stands, and record it."""
    started, index, recipe = time.monotonic(), record.index, session.recipe
    previous = recipe.previous(index)
    if previous is not None:
        verify_chunk(session, session.state.record(previous))
    files = training_files(recipe, session.layout, index, session.stream)
    try:
        _train(session, _chunk_job(session, index), record, files)
        if recipe.pool is not None:
            _train_router(session, record)
    except BaseException:
        # A stop or a failure: the next start goes on, and what this one took belongs to the cost.
        record.train_seconds += round(time.monotonic() - started, 1)
        with suppress(OSError):  # of a full disk the error that stopped us says more
            session.save()
        raise
    _record_training(session, record, time.monotonic() - started)
    session.layout.replay_file(index).unlink(missing_ok=True)
    loss = "" if record.loss is None else f", loss {record.loss:.4f}"
    session.say(
        f"chunk {session.label(index)} trained: {record.steps} steps in "
        f"{duration(record.train_seconds)}{loss}"
    )


def _train(session: Session, job: TrainingJob, record: ChunkRecord, files: Sequence[Path]) -> None:
    """Train one adapter; say which samples of its files had too many tokens.

    Raises:
        RunError: it failed; where data.too_long is stop, at the sample that the message names.
    """
    path, limit = job.layout.too_long(job.index), session.recipe.model.max_length
    try:
        train_adapter(session, job, record)
    except RunError as error:
        stopped = [each for each in name_samples(path, files, limit) if each["done"] == "stop"]
        if not stopped:
            raise
        path.unlink()  # the next start finds out anew
        raise RunError(
            f"{job.what}: {text_of(stopped[0])}, and data.too_long is stop: set it to skip or cut, "
            "or model.max_length to more, and give the same command again; it continues from here"
        ) from error
    long = name_samples(path, files, limit)
    if long:
        more = f", and {len(long) - 1} more" if len(long) > 1 else ""
        session.progress.say(f"note: {text_of(long[0])}: {long[0]['done']}{more}; all in {path}")


def _chunk_job(session: Session, index: int) -> TrainingJob:
    recipe, layout, stream = session.recipe, session.layout, session.stream

    def data() -> tuple[Sequence[Path], str]:
        chunks = recipe.data_chunks(index)
        for chunk in chunks:
            stream.verify_chunk(chunk)
        seed = recipe.chunk_seed(index)
        replayed = write_replay_file(recipe, layout, stream, session.state, index, seed)
        samples = sum(stream.chunk(chunk).samples for chunk in chunks)
        files = training_files(recipe, layout, index, stream)
        return files, f"training on {samples} samples{replayed}"

    return TrainingJob(recipe, layout, index, f"chunk {index}", data)


def _train_router(session: Session, record: ChunkRecord) -> None:
    """Train the router over all adapters so far, see recipes.baselines.mr_lora.pool."""
    recipe, layout, index = session.recipe, session.layout, record.index
    pool.keep_samples(recipe, layout, session.stream, index)
    if not pool.has_router(index):
        return

    start = pool.router_start(recipe, layout, index)

    def data() -> tuple[Sequence[Path], str]:
        try:
            file, lines = pool.write_router_data(recipe, layout, session.state, index)
            if start is not None:
                # Without the adapter of this chunk: it was installed just now and is not recorded
                # yet.
                for chunk in range(1, index):
                    known = session.state.record(chunk).adapter_sha256
                    checkpoints.verify_adapter(layout.adapter(chunk), known)
                write_merged([layout.adapter(chunk) for chunk in range(1, index + 1)], start)
        except (checkpoints.CheckpointError, ValueError) as error:
            raise RunError(f"the router of chunk {index}: {error}") from error
        return [file], f"training the router on {lines} samples"

    what = f"the router of chunk {index}"
    job = TrainingJob(
        pool.router_recipe(recipe), RouterLayout(layout.root), index, what, data, start
    )
    _train(session, job, record, [layout.router_data(index)])
    if start is not None:
        shutil.rmtree(start, ignore_errors=True)  # it follows from the adapters


def _record_training(session: Session, record: ChunkRecord, seconds: float) -> None:
    recipe, layout, stream, index = session.recipe, session.layout, session.stream, record.index
    adapter = layout.adapter(index)
    trainer = read_json(adapter / checkpoints.TRAINER_STATE)
    record.steps = int(trainer["global_step"])
    losses = [row["loss"] for row in trainer["log_history"] if "loss" in row]
    record.loss = float(losses[-1]) if losses else None
    # joint trains on all chunks at once: only the hash of the whole stream says on what.
    several = len(recipe.data_chunks(index)) > 1
    record.data_sha256 = stream.sha256 if several else stream.chunk(index).sha256
    # The reservoir after this chunk follows from the one before and the chunk: killed before the
    # state is saved, the next start writes the same.
    record.replay_sha256 = update_reservoir(recipe, layout, stream, session.state, index)
    record.adapter_sha256 = checkpoints.adapter_hashes(adapter)
    if recipe.pool is not None:
        record.router_sha256 = pool.router_hashes(layout, index)
    record.train_seconds += round(seconds, 1)
    record.trained = True
    session.save()


def unanswered(session: Session, record: ChunkRecord) -> list[str]:
    """The tasks that came to a grown stream since the base model was evaluated; else none."""
    scores = session.layout.scores(record.index)
    if record.index > 0 or not scores.is_file():
        return []
    known = read_json(scores)["tasks"]
    return [task for task in session.tasks if task not in known]


def evaluate_chunk(session: Session, record: ChunkRecord) -> None:
    """Answer the test questions with a chunk's adapter (0: the base model), score and record."""
    started, index, layout = time.monotonic(), record.index, session.layout
    new = unanswered(session, record)
    tasks = new or session.tasks
    if index > 0 and not record.trained:
        evaluation.repeat_base_model(layout, index)
        record.evaluated = True
        return
    means = _scores(session, layout, index, tasks, beside=bool(new))
    record.eval_seconds += round(time.monotonic() - started, 1)
    record.evaluated = True
    session.save()
    session.progress.scores = means
    before = _scores_before(session, index)
    session.say(
        f"chunk {session.label(index)} scores: {score_text(means, before)}  "
        f"({duration(record.eval_seconds)})"
    )


def other_weights(recipe: Recipe, root: Path, chunk: int) -> OtherWeightsLayout | None:
    """Where a chunk's other set of weights is still to be evaluated; None: nothing is to do."""
    if recipe.other_weights is None or chunk not in recipe.trained_chunks:
        return None
    layout = OtherWeightsLayout(root, recipe.other_weights)
    return None if layout.evaluated(chunk) else layout


def evaluate_other_weights(
    session: Session, record: ChunkRecord, layout: OtherWeightsLayout
) -> None:
    """Answer the test questions with the set of weights that does not answer for the chunk."""
    started, index = time.monotonic(), record.index
    label = f"chunk {session.label(index)} scores of the {layout.kind} weights"
    if not (layout.adapter(index) / WEIGHTS).is_file():
        session.say(f"{label}: none, {layout.adapter(index) / WEIGHTS} was removed")
        return
    means = _scores(session, layout, index, session.tasks)
    record.eval_seconds += round(time.monotonic() - started, 1)
    session.save()
    session.say(f"{label}: {score_text(means)}")


def _scores(
    session: Session, layout: RunLayout, index: int, tasks: list[str], beside: bool = False
) -> dict[str, float]:
    """Answer and score the questions of `tasks`; return the scores of those with answers.

    Raises:
        RunError: the host failed, or a scorer of the recipe's own did.
    """
    _answer(session, layout, index, tasks)
    try:
        scores = evaluation.score(
            session.recipe, layout, session.stream, tasks, index, beside=beside
        )
    except ScorerError as error:
        raise RunError(
            f"evaluating chunk {index}: {error}. The answers are kept: correct the scorer and give "
            "the same command again"
        ) from error
    return _means(scores)


def _means(scores: ChunkScores) -> dict[str, float]:
    """Return the scores of the tasks that have answers."""
    return {task: e["score"] for task, e in scores["tasks"].items() if e["score"] is not None}


def _scores_before(session: Session, index: int) -> dict[str, float]:
    """Return the scores of the chunk that was evaluated before this one, in whatever start."""
    done = [each.index for each in session.state.chunks if each.evaluated and each.index < index]
    return _means(read_json(session.layout.scores(max(done)))) if done else {}


def _answer(session: Session, layout: RunLayout, index: int, tasks: list[str]) -> None:
    """Bring the host's answers to the questions of `tasks` into place, or raise RunError."""
    recipe, progress = session.recipe, session.progress
    what = "the base model" if index == 0 else counted(len(tasks), "task")
    if isinstance(layout, OtherWeightsLayout):
        what += f" with the {layout.kind} weights"
    progress.begin(index, "evaluate", f"evaluating {what}")
    if recipe.pool is not None and index > 0:
        _open_pool(session, index)
    command, answered, total = evaluation.prepare(recipe, layout, session.stream, tasks, index)
    if answered:
        progress.say(f"continuing after {answered} of {total} answers")
    answers, log = layout.answers(index), layout.eval_log(index)
    if command is not None:
        tick = progress.watch_answers(answers, total)
        session.run_host(command, log, tick, f"evaluating chunk {index}")
    if not answers.is_file():
        raise RunError(failure_text(f"evaluating chunk {index}", "left no answers", log))
    if missing := total - evaluation.repair_results(answers):
        progress.say(
            f"warning: the host left {missing} of {total} questions without an answer; each counts "
            f"as wrong and is listed as failed in {layout.scores(index)}. See {log}"
        )


def _open_pool(session: Session, index: int) -> None:
    """Check every adapter that may answer, and write down for the host which they are."""
    try:
        pool.check_pool(session.layout, session.state, index)
    except checkpoints.CheckpointError as error:
        raise RunError(
            f"evaluating chunk {index}: {error}. Every adapter so far answers: bring the file "
            "back from a copy, or train again with another run_dir"
        ) from error
    pool.write_pool(session.recipe, session.layout, session.state, index)

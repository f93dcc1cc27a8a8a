"""The loop over a stream: for each chunk train, check, keep the adapter, evaluate, record, report.

The process may be killed at any moment: the same command finds out what is recorded and continues
from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.charts.figure import counted, duration
from recipes.baselines.start_adapter import bring_start
from recipes.baselines.task_labels import write_label_table
from recipes.config.schema import Recipe
from recipes.processes.run_lock import RunLock
from recipes.run import evaluation
from recipes.run.chunk_data import ensure_stream, open_recipe_stream
from recipes.run.commands import default_threads
from recipes.run.preflight.all_checks import look, stopping
from recipes.run.scoring.named_scorers import scorers_changed
from recipes.run.scoring.scored_again import bring_scores_up_to_date
from recipes.run.session import RunError, Session
from recipes.run.steps import (
    evaluate_chunk,
    evaluate_other_weights,
    other_weights,
    train_chunk,
    unanswered,
    verify_chunk,
)
from recipes.run.terminal import Ahead, Progress
from recipes.run_folder import manifest
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.migration import migrate_plugin_paths
from recipes.run_folder.start import read_start, start_text
from recipes.run_folder.state import RunState, load_state
from strlora_tuner.saved import WEIGHTS


@dataclass(frozen=True)
class ChunkPlan:
    """What a run does at one chunk; chunk 0 is the base model."""

    index: int
    trains: bool
    evaluates: bool


def plan_chunks(recipe: Recipe, train_only: bool = False) -> Iterator[ChunkPlan]:
    """Yield what a run of `recipe` does, chunk by chunk; with `train_only` it evaluates nothing."""
    for index in recipe.evaluation_points:
        evaluates = recipe.evaluates_after(index) and not train_only
        yield ChunkPlan(index, index in recipe.trained_chunks, evaluates)


def run(recipe: Recipe, progress: Progress, train_only: bool = False) -> None:
    """Run a recipe from wherever it stands to its end; with `train_only` evaluate nothing.

    Raises:
        RunError: a chunk failed, or something is missing.
        RunChanged, RunLocked, StateError, StreamError: the run cannot continue.
    """
    layout = RunLayout(Path(recipe.folder))
    manifest.check_same_run(layout, recipe)
    manifest.check_same_environment(layout)
    grown, scored_anew = manifest.has_grown(layout, recipe), scorers_changed(layout, recipe)
    opens = grown or _has_weights_to_ask(layout, recipe)
    if load_state(layout.state).finished and not opens and not scored_anew:
        migrate_plugin_paths(layout)
        progress.say(f"{layout.root} is finished; nothing to do.")
        if not layout.report.is_file():
            evaluation.write_report(layout, progress.say)
        progress.say(f"report: {layout.report}   scores: {layout.matrix}")
        return
    # The checks above only read: a wrong recipe is refused even while another process works on the
    # run.
    with RunLock(layout.lock) as lock:
        if missing := "\n  ".join(map(str, stopping(look(recipe)))):
            raise RunError(f"this machine cannot run the recipe yet:\n  {missing}")
        ensure_stream(recipe)
        stream = open_recipe_stream(recipe)
        manifest.check_same_data(layout, stream)
        manifest.check_same_model(layout, recipe)
        migrate_plugin_paths(layout)
        session = Session(recipe, layout, stream, load_state(layout.state), lock, progress)
        if opens or scored_anew:
            # Before anything is done: killed from here on it must not count as finished.
            session.state.finished = False
            session.save()
        try:
            _run_chunks(session, train_only)
        finally:
            session.close()


def _has_weights_to_ask(layout: RunLayout, recipe: Recipe) -> bool:
    """Whether `eval.both_weights` came to chunks that were evaluated without it."""
    for record in load_state(layout.state).chunks:
        other = other_weights(recipe, layout.root, record.index) if record.evaluated else None
        if other is not None and (other.adapter(record.index) / WEIGHTS).is_file():
            return True
    return False


def _run_chunks(session: Session, train_only: bool) -> None:
    """Do every chunk that is not done yet."""
    recipe, layout, state = session.recipe, session.layout, session.state
    count = recipe.data.chunks
    session.stream.verify_tests(session.tasks)
    threads = recipe.launcher.omp_threads or default_threads(recipe)
    # Before the manifest, which records where the run starts from.
    bring_start(recipe, layout, state)
    manifest.write_manifest(layout, recipe, session.stream, state, threads)
    # Before the first new score: one matrix holds scores of one scorer.
    bring_scores_up_to_date(session)
    if recipe.task_labels:
        told = session.stream, count, recipe.task_labels, layout.task_labels
        experts = getattr(recipe.tuner_options, "task_experts", None)
        for note in write_label_table(*told, experts):
            session.progress.say(f"note: {note}")
    _announce(session)
    plan = list(plan_chunks(recipe, train_only))
    session.progress.ahead = partial(what_is_ahead, state, plan)
    for chunk in plan:
        _do_chunk(session, chunk)
    if train_only:
        session.progress.say(
            f"trained: {counted(count, 'chunk')}; the same command without --train-only "
            "evaluates them"
        )
        return
    session.save()  # how much is done, where a kill came before it was counted
    evaluation.write_report(layout, session.progress.say, last=True)
    # After the report: killed before it was whole, the same command writes it.
    state.finished = True
    session.save()
    total = sum(record.train_seconds + record.eval_seconds for record in state.chunks)
    session.progress.say(
        f"finished: {counted(count, 'chunk')} in {duration(total)}\n"
        f"report: {layout.report}   scores: {layout.matrix}"
    )


def what_is_ahead(state: RunState, plan: Sequence[ChunkPlan]) -> Ahead:
    """Return what is left of a plan, and how long the last five of each kind took."""
    trained = {record.index for record in state.chunks if record.trained}
    evaluated = {record.index for record in state.chunks if record.evaluated}

    def mean(seconds: list[float]) -> float | None:
        lately = [each for each in seconds if each > 0][-5:]
        return sum(lately) / len(lately) if lately else None

    return Ahead(
        sum(chunk.trains and chunk.index not in trained for chunk in plan),
        sum(chunk.evaluates and chunk.index not in evaluated for chunk in plan),
        mean([record.train_seconds for record in state.chunks]),
        mean([record.eval_seconds for record in state.chunks]),
    )


def _announce(session: Session) -> None:
    recipe, done = session.recipe, session.state.done
    where = f"continuing after chunk {done}" if done else "starting"
    session.say(
        f"{where}: {recipe.title}, {counted(recipe.data.chunks, 'chunk')}, "
        f"{counted(len(session.tasks), 'task')}, into "
        f"{session.layout.root}/"
    )
    if (start := read_start(session.layout)) is not None:
        session.say(start_text(start))
    if recipe.unused_tuner_keys:
        session.say(recipe.unused_tuner_text)


def _do_chunk(session: Session, chunk: ChunkPlan) -> None:
    """Bring one chunk to its end, if it is not there."""
    state, record = session.state, session.state.record(chunk.index)
    trained = record.trained or not chunk.trains
    record.evaluated = record.evaluated and not unanswered(session, record)
    root = session.layout.root
    other = other_weights(session.recipe, root, chunk.index) if chunk.evaluates else None
    if trained and (record.evaluated or not chunk.evaluates) and other is None:
        if chunk.trains and chunk.index == state.done:
            verify_chunk(session, record)  # the next chunk starts from this adapter
        state.done = max(state.done, chunk.index)  # killed before it was counted
        return
    if not trained:
        train_chunk(session, record)
    if chunk.evaluates and not record.evaluated:
        evaluate_chunk(session, record)
    if other is not None:
        evaluate_other_weights(session, record, other)
    state.done = chunk.index
    session.save()
    # After state.json, from which they follow: a kill in between loses nothing.
    manifest.write_costs(session.layout, state)
    if chunk.evaluates and chunk.index < session.recipe.data.chunks:  # else the run's end writes it
        evaluation.write_report(session.layout, session.progress.say)

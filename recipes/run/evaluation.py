"""The evaluation of one chunk: one `swift infer` process for all tasks, then scores and report.

What an answer is worth is decided in the package `eval`; here files are brought into place, each
completely or not at all.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from data_prep.files import read_json, write_json
from data_prep.stream import Stream
from eval.matrix import append_scores
from eval.predictions import chunk_scores, split_results
from eval.questions import repair_results, write_combined
from eval.routing.record import write_probe
from eval.routing.router_accuracy import count_choices
from eval.run_files import ChunkScores
from recipes.config.schema import Recipe
from recipes.processes.command import Command
from recipes.run.commands import infer_command
from recipes.run.scoring.named_scorers import named_scorers
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.start import chunks_before


class Questions(NamedTuple):
    """What is still to be asked: the host's command (None: nothing), answered and all questions."""

    command: Command | None
    answered: int
    total: int


def prepare(
    recipe: Recipe, layout: RunLayout, stream: Stream, tasks: list[str], chunk: int
) -> Questions:
    """Writes the questions that an interrupted evaluation has not answered, or all of them."""
    layout.chunk(chunk).mkdir(parents=True, exist_ok=True)
    answers = layout.answers(chunk)
    answered = repair_results(answers)
    # A half-written merged model would be taken for a whole one.
    shutil.rmtree(layout.merged(chunk), ignore_errors=True)
    left = write_combined(stream.root, tasks, layout.prompts, recipe.eval.limit, answers)
    # Of a killed evaluation: it would pass for the record of the answers that come now.
    layout.routing(chunk).unlink(missing_ok=True)
    if recipe.routed and chunk > 0:
        write_probe(stream.root, tasks, layout.probe)
    command = infer_command(recipe, layout, layout.prompts, chunk) if left else None
    return Questions(command, answered, answered + left)


def score(
    recipe: Recipe,
    layout: RunLayout,
    stream: Stream,
    tasks: list[str],
    chunk: int,
    beside: bool = False,
) -> ChunkScores:
    """Turns the host's answers into predictions, scores.json and rows of matrix.csv.

    Args:
        beside: keep what other tasks were answered before.

    Raises:
        ValueError: an answer that belongs to no question, or two answers to one (from eval).
    """
    folder = layout.predictions(chunk)
    temporary = folder.with_name(".predictions")
    for leftover in (temporary,) if beside else (folder, temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    scorers = named_scorers(recipe, stream)
    limit = recipe.eval.limit
    # Beside its place, and renamed when all of it is there: a reader never sees half of the tasks.
    before = chunks_before(layout)
    split_results(layout.answers(chunk), stream.root, temporary, tasks, limit, scorers, before)
    if beside:
        for path in temporary.iterdir():
            path.replace(folder / path.name)
        temporary.rmdir()
    else:
        temporary.rename(folder)
    scores = chunk_scores(folder, stream.root, chunk, scorers)
    write_json(layout.scores(chunk), scores)
    append_scores(layout.matrix, chunk, scores)
    choices = count_choices(folder, stream.root, chunk) if chunk > 0 else None
    if choices is not None:
        write_json(layout.router_scores(chunk), choices)
    _note_unrouted(layout.routing(chunk), repair_results(layout.answers(chunk)))
    layout.answers(chunk).unlink()  # last: while they are here, a killed scoring begins again
    shutil.rmtree(layout.merged(chunk), ignore_errors=True)
    return scores


def repeat_base_model(layout: RunLayout, chunk: int) -> None:
    """Records the base model's scores as those after `chunk`: what a stream without training gives.

    Predictions are copied, so that the run is compared like any other.
    """
    scores = cast(ChunkScores, {**read_json(layout.scores(0)), "chunk": chunk})
    temporary = layout.predictions(chunk).with_name(".predictions")
    for leftover in (layout.predictions(chunk), temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(layout.predictions(0), temporary)
    temporary.rename(layout.predictions(chunk))
    write_json(layout.scores(chunk), scores)
    append_scores(layout.matrix, chunk, scores)


def _note_unrouted(routing: Path, answers: int) -> None:
    """Notes in routing.json how many answers it does not cover: those before a kill."""
    if not routing.is_file():
        return
    content = read_json(routing)
    missing = answers - int(content["rows"])
    if missing:
        write_json(routing, {**content, "missing_rows": missing}, allow_nan=True)


def write_report(layout: RunLayout, say: Callable[[str], None], last: bool = False) -> None:
    """Writes report.html. A failure is printed, but must not stop a training run.

    With `last` it is the report of a run that ends with it, and the paragraph on what the run came
    to is said, too.
    """
    try:
        from eval.report import write_report as write_html  # only a finished chunk needs it

        write_html(layout.root, tell=say if last else None, finished=last)
    except Exception:  # noqa: BLE001 - a broken chart must not end a training
        say(f"the report could not be written; training continues:\n{traceback.format_exc()}")

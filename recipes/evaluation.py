"""The evaluation of one chunk: one `swift infer` process for all tasks, then scores and report.

What an answer is worth is decided in the package `eval`; here files are brought into place, each
completely or not at all.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from typing import Any

from eval.matrix import append_scores
from eval.predictions import split_results, write_combined
from eval.scores import score_chunk
from recipes.commands import Command, infer_command
from recipes.layout import RunLayout
from recipes.schema import Recipe
from recipes.state import write_json
from recipes.stream import Stream


def prepare(
    recipe: Recipe, layout: RunLayout, stream: Stream, tasks: list[str], chunk: int
) -> tuple[Command, int]:
    """Writes the prompts and clears what an interrupted evaluation left.

    Returns:
        The command, and the number of prompts.
    """
    layout.chunk(chunk).mkdir(parents=True, exist_ok=True)
    layout.answers(chunk).unlink(missing_ok=True)  # the host appends to a file that is there
    layout.routing(chunk).unlink(missing_ok=True)
    prompts = write_combined(stream.root, tasks, layout.prompts, recipe.eval.limit)
    return infer_command(recipe, layout, layout.prompts, chunk), prompts


def score(
    recipe: Recipe, layout: RunLayout, stream: Stream, tasks: list[str], chunk: int
) -> dict[str, Any]:
    """Turns the host's answers into predictions, scores.json and rows of matrix.csv.

    Raises:
        ValueError: an answer that belongs to no question, or two answers to one (from eval).
    """
    folder = layout.predictions(chunk)
    temporary = folder.with_name(".predictions")
    for leftover in (folder, temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    split_results(layout.answers(chunk), stream.root, temporary, tasks, recipe.eval.limit)
    temporary.rename(folder)
    scores = score_chunk(folder, stream.root, chunk)
    write_json(layout.scores(chunk), scores)
    append_scores(layout.matrix, chunk, scores)
    layout.answers(chunk).unlink()
    return scores


def write_report(layout: RunLayout, say: Callable[[str], None]) -> None:
    """Writes report.html. One that cannot be drawn is told, but must not stop a training run."""
    try:
        from eval.report import write_report as write_html  # only a finished chunk needs it

        write_html(layout.root)
    except Exception:  # noqa: BLE001 - whatever is wrong with a drawing, training goes on
        say(f"the report could not be written; training goes on:\n{traceback.format_exc()}")

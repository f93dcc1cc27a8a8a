"""`--dry-run`: the commands of a chunk, as the machine runs them, and what it lacks to run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data_prep.stream import Stream, StreamError
from recipes.baselines.mr_lora.pool import has_router, router_recipe, router_start
from recipes.config.problems import COMMAND_LINE, Place, Problem, RecipeError
from recipes.config.schema import Recipe
from recipes.run.chunk_data import chunk_only_file, open_recipe_stream, training_files
from recipes.run.commands import infer_command, train_command
from recipes.run.preflight.all_checks import is_submit_host, look_before_start, stopping
from recipes.run_folder.layout import OtherWeightsLayout, RouterLayout, RunLayout


def preview(recipe: Recipe, chunk: int | None = None, every: bool = False) -> Iterator[str]:
    """Yields the text of a dry run, piece by piece. Nothing is run, fetched or written.

    Args:
        recipe: a valid one.
        chunk: the one whose commands are shown, 0 for the base model; by default the first trained.
        every: show all chunks.

    Raises:
        RecipeError: the recipe trains no such chunk.
    """
    layout = RunLayout(Path(recipe.folder))
    stream: Stream | None = None
    with suppress(StreamError):  # named at the end
        stream = open_recipe_stream(recipe)
    count = recipe.data.chunks
    steps = [0, *recipe.trained_chunks]
    if chunk is not None and chunk not in steps:
        runs = f"this recipe runs chunks {_numbers(steps)}, not {chunk}"
        raise RecipeError([Problem(Place(COMMAND_LINE), "--chunk", runs)])
    yield f"# {recipe.name}: {recipe.title}, {count} chunks, into {layout.root}/"
    if recipe.unused_tuner_keys:
        yield f"# {recipe.unused_tuner_text}"
    if recipe.model.remote_code:
        yield f"# model.remote_code: Python files of {recipe.model.path} WILL BE RUN"
    shown = steps if every else [chunk if chunk is not None else steps[min(1, len(steps) - 1)]]
    for step in shown:
        yield from _commands(recipe, layout, stream, step)
    if len(shown) < len(steps):
        yield f"\n# The other chunks, of {_numbers(steps)}: --chunk N, or --all."
    yield "# Nothing was run or written."
    submits = is_submit_host(recipe)
    findings = look_before_start(recipe, submits)
    yield from (finding.line() for finding in findings)
    if not stopping(findings):
        how = (
            "--slurm instead of --dry-run submits the run"
            if submits
            else "leave --dry-run out to run them"
        )
        yield f"# Nothing is missing: {how}."


def _commands(
    recipe: Recipe, layout: RunLayout, stream: Stream | None, chunk: int
) -> Iterator[str]:
    of = f"\n# chunk {chunk} of {recipe.data.chunks}"
    if chunk == 0:
        yield f"{of}: evaluate the base model"
        yield infer_command(recipe, layout, layout.prompts, 0).as_shell()
        return
    evaluated = recipe.evaluates_after(chunk)
    what = recipe.protocol.training_text
    own = chunk_only_file(recipe, layout, chunk, stream)
    if recipe.replay is not None and own is not None:
        what = f"mix in {recipe.replay.share:g} of past samples, {what}"
    yield f"{of}: {what}{', then evaluate' if evaluated else ''}"
    files = training_files(recipe, layout, chunk, stream)
    yield train_command(recipe, layout, files, chunk, own=own).as_shell()
    if recipe.pool is not None and has_router(chunk):
        yield f"{of}: its router"
        file, start = layout.router_data(chunk), router_start(recipe, layout, chunk)
        router = RouterLayout(layout.root)
        yield train_command(router_recipe(recipe), router, file, chunk, start=start).as_shell()
    if evaluated:
        yield infer_command(recipe, layout, layout.prompts, chunk).as_shell()
    if evaluated and recipe.other_weights is not None:
        yield f"{of}: evaluate the {recipe.other_weights} weights"
        other = OtherWeightsLayout(layout.root, recipe.other_weights)
        yield infer_command(recipe, other, layout.prompts, chunk).as_shell()


def _numbers(chunks: list[int]) -> str:
    return str(chunks[0]) if len(chunks) == 1 else f"{chunks[0]} to {chunks[-1]}"

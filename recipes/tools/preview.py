"""`--dry-run`: every command of a run, printed, and what this machine lacks to run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data_prep.stream import Stream, StreamError
from recipes.baselines.mr_lora.pool import has_router, router_recipe, router_start
from recipes.config.schema import Recipe
from recipes.run.chunk_data import chunk_only_file, open_recipe_stream, training_files
from recipes.run.commands import infer_command, train_command
from recipes.run.preflight.all_checks import look, stopping
from recipes.run_folder.layout import RouterLayout, RunLayout


def preview(recipe: Recipe) -> Iterator[str]:
    """Yields the text of a dry run, piece by piece. Nothing is run, fetched or written."""
    layout = RunLayout(Path(recipe.folder))
    stream: Stream | None = None
    with suppress(StreamError):  # named at the end
        stream = open_recipe_stream(recipe)
    count = recipe.data.chunks
    yield f"# {recipe.name}: {recipe.title}, {count} chunks, into {layout.root}/"
    if recipe.unused_tuner_keys:
        yield f"# {recipe.unused_tuner_text}"
    if recipe.model.remote_code:
        yield f"# model.remote_code: Python files of {recipe.model.path} WILL BE RUN"
    yield f"# chunk 0 of {count}: evaluate the base model"
    yield infer_command(recipe, layout, layout.prompts, 0).as_shell()
    for chunk in recipe.trained_chunks:
        files = training_files(recipe, layout, chunk, stream)
        yield f"\n# chunk {chunk} of {count}: {_what(recipe, chunk)}, then evaluate"
        own = chunk_only_file(recipe, chunk, stream)
        yield train_command(recipe, layout, files, chunk, own=own).as_shell()
        if recipe.pool is not None and has_router(chunk):
            yield f"# chunk {chunk} of {count}: its router"
            router = RouterLayout(layout.root)
            file = layout.router_data(chunk)
            start = router_start(recipe, layout, chunk)
            command = train_command(router_recipe(recipe), router, file, chunk, start=start)
            yield command.as_shell()
        if recipe.evaluates_after(chunk):
            yield infer_command(recipe, layout, layout.prompts, chunk).as_shell()
    yield f"\n# {len(recipe.trained_chunks)} chunk commands above; nothing was run."
    findings = look(recipe)
    yield from (finding.line() for finding in findings)
    if not stopping(findings):
        yield "# Nothing is missing: leave --dry-run out to run them."


def _what(recipe: Recipe, chunk: int) -> str:
    training = recipe.protocol.training_text
    if recipe.replay is not None and recipe.replays(chunk):
        return f"mix in {recipe.replay.share:g} of past samples, {training}"
    return training

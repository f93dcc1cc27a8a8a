"""Whether the folder of a run was started before, and can go on with the recipe as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from data_prep.stream import StreamError, open_stream
from recipes import UserError
from recipes.config.schema import Recipe
from recipes.run.preflight.finding import Finding
from recipes.run_folder import manifest
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state


def check_run_folder(recipe: Recipe, on_submit_host: bool) -> Iterator[Finding]:
    """Yields why the run would refuse to go on in its folder, and what it has done there.

    Args:
        on_submit_host: this process is no part of the job, whose variables may differ.
    """
    layout = RunLayout(Path(recipe.folder))
    checks: list[Callable[[], None]] = [
        partial(manifest.check_same_run, layout, recipe),
        partial(manifest.check_same_model, layout, recipe),
    ]
    if not on_submit_host:
        checks.append(partial(manifest.check_same_environment, layout))
    with suppress(StreamError):  # named by check_stream
        stream = open_stream(Path(recipe.data.stream))
        checks.append(partial(manifest.check_same_data, layout, stream))
    for check in checks:
        try:
            check()
        except UserError as error:
            yield Finding("run folder", str(error))
    try:
        state = load_state(layout.state)
    except UserError as error:
        yield Finding("run folder", str(error))
        return
    trained = sum(record.trained for record in state.chunks)
    if trained:
        text = f"{layout.root} has trained {trained} of {recipe.data.chunks} chunks; they stay"
        finished = state.finished and not manifest.has_grown(layout, recipe)
        yield Finding("run folder", f"{text}, the run is finished" if finished else text, False)

"""What of a run and its stream must stay for the next chunk, and what may go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recipes.config.schema import Recipe
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import RunState


def must_stay(recipe: Recipe, layout: RunLayout, state: RunState) -> Iterator[str]:
    """What the next chunk needs, for people: files of the run, of the stream, the model."""
    done, stream = state.done, Path(recipe.data.stream)
    yield f"state.json, manifest.json and recipe.yaml of {layout.root}, and {recipe.model.path}"
    yield f"stream.json, the test sets of {stream}, and their pictures"
    if recipe.pool is not None:
        yield "all adapters, and router_samples.jsonl of every chunk with the pictures it names"
    elif recipe.protocol.continues and done:
        yield f"{layout.adapter(done)}, which the next chunk goes on from"
    if recipe.replay is not None and done:
        yield f"{layout.replay(done)}, and the pictures of the samples in it"
    if (labels := recipe.task_labels) and done:
        yield f"all chunk files of {stream}: tuner.sentence = {labels} looks their texts up"


def may_go(recipe: Recipe, state: RunState) -> Iterator[str]:
    """What nothing needs any more, with what can no longer be done without it."""
    trained = [record.index for record in state.chunks if record.trained]
    before = [index for index in trained if index < state.done]
    if before and recipe.pool is None:
        of = "chunk 1" if before == [1] else f"chunks {before[0]} to {before[-1]}"
        yield f"adapters of {of} (clean --old-adapters), which cannot be asked or evaluated then"
    if state.done and not recipe.task_labels and (recipe.protocol.grows or state.finished):
        yield (
            f"chunk files {_names(recipe, state)} of {recipe.data.stream}, and pictures that "
            "nothing above names: reproduce cannot train them again, no other run can, and an "
            "append does not compare with their samples"
        )


def _names(recipe: Recipe, state: RunState) -> str:
    last = recipe.data.chunks if state.finished else state.done
    return "001.jsonl" if last == 1 else f"001.jsonl to {last:03d}.jsonl"

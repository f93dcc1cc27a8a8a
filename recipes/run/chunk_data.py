"""What a chunk leaves beside its adapter: replayed samples, the state of EWC, a pool's router."""

from __future__ import annotations

from recipes.baselines.mr_lora.pool import check_router
from recipes.baselines.replay import (
    Mixture,
    Reservoir,
    load_reservoir,
    read_lines,
    save_reservoir,
    write_mixed,
)
from recipes.config.schema import Recipe
from recipes.run.commands import chunk_seed
from recipes.run.layout import RunLayout
from recipes.run.state import ChunkRecord, RunState
from recipes.run.stream import Stream
from strlora_tuner.methods.ewc.state_file import check_state_file


def check_carried(recipe: Recipe, layout: RunLayout, record: ChunkRecord) -> None:
    """Checks what the recipe's method carries from a trained chunk.

    Raises:
        AdapterError: the state of EWC is missing or damaged.
        CheckpointError: so is the router of a pool, or its samples.
        ReplayError: so is the memory of replayed samples.
    """
    if recipe.ewc is not None:
        check_state_file(layout.adapter(record.index), recipe.ewc.released)
    if recipe.replay is not None:
        load_reservoir(layout.replay(record.index), record.replay_sha256)
    if recipe.pool is not None:
        check_router(layout, record)


def mix_in(recipe: Recipe, layout: RunLayout, stream: Stream, state: RunState, chunk: int) -> str:
    """Writes the training file with replayed samples, if the chunk has one; says so in words.

    The file follows from the memory, the chunk and the seed alone: a resumed chunk gets the same.
    """
    replay, batch = recipe.replay, recipe.schedule.global_batch
    if replay is None or not recipe.replays(chunk):
        return ""
    mixture = mixture_of(recipe)
    memory = _memory(recipe, layout, state, chunk - 1)
    seed, epochs = chunk_seed(recipe, chunk), recipe.schedule.epochs
    write_mixed(layout.mixed(chunk), stream.chunk_file(chunk), memory, mixture, epochs, seed)
    return f", {mixture.replayed} of {batch} in a batch replayed from {len(memory.lines)} kept"


def mixture_of(recipe: Recipe) -> Mixture:
    """How a training file with replayed samples is laid out; only for a recipe with replay."""
    assert recipe.replay is not None
    replayed = recipe.replay.replayed(recipe.schedule.global_batch)
    assert replayed is not None, "the schema refuses such a share"
    return Mixture(recipe.schedule.global_batch, replayed, recipe.processes)


def remember(
    recipe: Recipe, layout: RunLayout, stream: Stream, state: RunState, chunk: int
) -> dict[str, str]:
    """Offers a trained chunk's samples to the reservoir, in their order; returns its files' sha256.

    Doing it again gives the same files.
    """
    if recipe.replay is None:
        return {}
    memory = _memory(recipe, layout, state, chunk - 1)
    for line in read_lines(stream.chunk_file(chunk)):
        memory.offer(line)
    return save_reservoir(layout.replay(chunk), memory)


def _memory(recipe: Recipe, layout: RunLayout, state: RunState, chunk: int) -> Reservoir:
    """The reservoir after chunk `chunk`, checked against what was recorded; 0: an empty one."""
    assert recipe.replay is not None
    if chunk == 0:
        return Reservoir(recipe.replay.memory, recipe.seed)
    return load_reservoir(layout.replay(chunk), state.record(chunk).replay_sha256)

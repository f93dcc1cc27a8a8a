"""What a chunk trains on: the recipe's stream, its chunks' files, and samples of the past."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from data_prep.mini import GENERATOR, stream_name
from data_prep.stream import MANIFEST, Stream, StreamError, open_stream
from eval.scorers.registry import with_scorers
from recipes.baselines.mr_lora.pool import check_router
from recipes.baselines.replay import load_reservoir
from recipes.baselines.start_adapter import will_replay
from recipes.config.schema import Data, Recipe
from recipes.run_folder.checkpoints import check_optimizer
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import ChunkRecord
from strlora_tuner.methods.ewc.state_file import check_state_file
from strlora_tuner.methods.slow_weights.both_sets import check_sets


def _chunk_file(recipe: Recipe, index: int, stream: Stream | None) -> Path:
    """Where chunk `index` lies, or will lie, for commands printed before the stream exists."""
    planned = Path(recipe.data.stream) / "chunks" / f"{index:03d}.jsonl"
    return stream.chunk_file(index) if stream else planned


def training_files(
    recipe: Recipe, layout: RunLayout, chunk: int, stream: Stream | None = None
) -> list[Path]:
    """What the host reads at `chunk`: chunk files, or the file into which past samples are mixed.

    Without a stream, where they will lie.
    """
    if will_replay(recipe, layout, chunk):
        return [layout.replay_file(chunk)]
    return [_chunk_file(recipe, index, stream) for index in recipe.data_chunks(chunk)]


def chunk_only_file(
    recipe: Recipe, layout: RunLayout, chunk: int, stream: Stream | None = None
) -> Path | None:
    """The chunk's own file where the host reads one with replayed samples; else None."""
    return _chunk_file(recipe, chunk, stream) if will_replay(recipe, layout, chunk) else None


def open_recipe_stream(recipe: Recipe) -> Stream:
    """Open the recipe's stream and check that it holds what the recipe asks for.

    Raises:
        StreamError: no manifest, another format, too few chunks, an unknown task or scorer, or an
            embedded stream of another size or seed.
    """
    root = Path(recipe.data.stream)
    path = root / MANIFEST
    if not path.is_file():
        raise StreamError(missing_text(recipe.data))
    stream = open_stream(root)
    chunks = len(stream.chunks)
    if chunks < recipe.data.chunks:
        raise StreamError(
            f"{path} holds {chunks} chunks, but the recipe's data.chunks is {recipe.data.chunks}: "
            f"use data.chunks={chunks} or another data.stream"
        )
    _check_seed(recipe, stream)
    unknown = [task for task in recipe.eval.tasks or [] if task not in stream.tests]
    if unknown:
        known = ", ".join(stream.tasks)
        raise StreamError(f"eval.tasks: {', '.join(unknown)} is not in {path}; it has: {known}")
    try:
        return with_scorers(stream, recipe.eval.scorer)
    except ValueError as error:
        raise StreamError(f"eval.{error}") from error


def _check_seed(recipe: Recipe, stream: Stream) -> None:
    """Refuse an embedded stream of another size or seed than the recipe names.

    A run that has begun goes on: what its stream is, its manifest says by hashes.
    """
    data = recipe.data
    made = stream.facts.get("generator") or {}
    ours = data.source == "mini" and made.get("name") == GENERATOR
    if not ours or RunLayout(Path(recipe.folder)).manifest.is_file():
        return
    found = stream.name, stream.facts.get("seed")
    if found != (stream_name(data.size), data.seed):
        raise StreamError(
            f"{stream.root} holds {found[0]} of seed {found[1]}, but the recipe's data.size is "
            f"{data.size} and its data.seed {data.seed}: leave data.stream out, so that each has a "
            "folder of its own, or set data.size and data.seed to what is there"
        )


def missing_text(data: Data) -> str:
    """How to get a stream that is not there."""
    text = f"the stream {data.stream} is missing ({Path(data.stream) / MANIFEST} is not there)"
    how = data.prepare or "set data.stream to a folder with stream.json, chunks/ and test/"
    if data.source == "mini":
        how = f"it is made by: {' '.join(['python', *_mini_arguments(data)])}"
    return f"{text}: {how}"


def ensure_stream(recipe: Recipe) -> None:
    """Make the miniature stream when it is asked for and absent; its progress goes to our output.

    Raises:
        StreamError: the preparation failed.
    """
    data = recipe.data
    if data.source != "mini" or (Path(data.stream) / MANIFEST).is_file():
        return
    done = subprocess.run([sys.executable, *_mini_arguments(data)])
    if done.returncode:
        raise StreamError(
            f"preparing {data.stream} failed with exit code {done.returncode}, see above"
        )


def _mini_arguments(data: Data) -> list[str]:
    where = ["--out", data.stream, "--size", data.size, "--seed", str(data.seed)]
    return ["-m", "data_prep.mini", *where]


def check_carried(recipe: Recipe, layout: RunLayout, record: ChunkRecord) -> None:
    """Check what the recipe's method carries from a trained chunk beside its adapter.

    Raises:
        AdapterError: the state of EWC or of the optimizer, or a set of slow or fast weights, is
            missing or damaged.
        CheckpointError: so is the router of a pool, its samples, or the memory of replay.
    """
    if recipe.ewc is not None:
        check_state_file(layout.adapter(record.index), recipe.ewc.fisher)
    if recipe.slow_weights is not None:
        check_sets(layout.adapter(record.index), recipe.slow_weights.answer)
    if recipe.keeps_optimizer:
        check_optimizer(layout.adapter(record.index))
    if recipe.replay is not None:
        load_reservoir(layout.replay(record.index), record.replay_sha256)
    if recipe.pool is not None:
        check_router(layout, record)

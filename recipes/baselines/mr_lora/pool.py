"""MR-LoRA's pool: an adapter a chunk, and a router adapter that says which of them should answer.

After each chunk the router, an adapter of its own, is trained afresh on `pool.samples` samples of
every chunk so far, answered with the letter of the chunk's adapter (Zhao et al., MLLM-CL 2025). The
chunk stands for the stage: no task label is read. Chunk 1 has no router, its adapter answers all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TypedDict

from data_prep.files import sha256_file, write_json, write_jsonl, write_text
from data_prep.stream import Stream
from data_prep.task_files.router import expert_letters, router_record
from recipes.baselines.replay import read_lines
from recipes.config.schema import Recipe
from recipes.run_folder.checkpoints import CheckpointError, adapter_hashes, verify_adapter
from recipes.run_folder.layout import ROUTER, RouterLayout, RunLayout
from recipes.run_folder.state import ChunkRecord, RunState
from strlora_tuner.saved import CONFIG, WEIGHTS


class Expert(TypedDict):
    """An adapter that may answer: its letter, what the router reads about it, where it lies."""

    letter: str
    text: str
    chunk: int
    adapter: str


class PoolFile(TypedDict):
    """pool.json; `router` is None while there is nothing to choose from."""

    experts: list[Expert]
    router: str | None
    fallback: int


def router_recipe(recipe: Recipe) -> Recipe:
    """The recipe that trains a router: the same, with the router's rate and passes."""
    pool, schedule = recipe.pool, recipe.schedule
    assert pool is not None
    first = schedule.first.model_copy(update={"learning_rate": pool.router_rate(schedule.first)})
    phases = {"first": first, "epochs": pool.epochs}
    changes = {"schedule": schedule.model_copy(update=phases), "slow_weights": None}
    return recipe.model_copy(update=changes)


def has_router(index: int) -> bool:
    """Whether there is anything to choose from after chunk `index`."""
    return index > 1


def router_start(recipe: Recipe, layout: RunLayout, index: int) -> Path | None:
    """The folder of the adapter that the router after chunk `index` starts from; None: afresh."""
    assert recipe.pool is not None
    merged = recipe.pool.router_start == "merged"
    return layout.chunk(index) / "router_start" if merged else None


def router_lines(recipe: Recipe, samples: Sequence[int]) -> int:
    """Lines that the router is trained on after the last of chunks of these sizes."""
    if recipe.pool is None or not has_router(len(samples)):
        return 0
    return sum(min(recipe.pool.samples, count) for count in samples)


def keep_samples(recipe: Recipe, layout: RunLayout, stream: Stream, index: int) -> None:
    """Draws the chunk's samples for this and all later routers.

    Seeded by recipe and chunk, in the chunk's order: doing it again gives the same file.
    """
    assert recipe.pool is not None
    lines = read_lines(stream.chunk_file(index))
    count = min(recipe.pool.samples, len(lines))
    # A text as seed: `random` takes its sha512, not hash(), which differs from process to process.
    places = Random(f"{recipe.seed}/router/{index}").sample(range(len(lines)), count)
    text = "".join(f"{lines[place]}\n" for place in sorted(places))
    write_text(layout.router_samples(index), text)


def write_router_data(
    recipe: Recipe, layout: RunLayout, state: RunState, index: int
) -> tuple[Path, int]:
    """Writes what the router after chunk `index` is trained on; returns the file and its lines.

    Raises:
        CheckpointError: samples of a chunk were changed since they were drawn.
    """
    assert recipe.pool is not None
    experts = recipe.pool.described(index)
    rows = []
    for chunk in range(1, index + 1):
        # The chunk's own samples were drawn just now and are recorded when it is trained.
        if chunk < index:
            known = state.record(chunk).router_sha256
            name = layout.router_samples(chunk).name
            verify_adapter(layout.chunk(chunk), {name: known.get(name, "")})
        for line in read_lines(layout.router_samples(chunk)):
            rows.append(router_record(json.loads(line), experts, chunk - 1))
    path = layout.router_data(index)
    write_jsonl(path, rows)
    return path, len(rows)


def router_hashes(layout: RunLayout, index: int) -> dict[str, str]:
    """sha256 of a chunk's samples, router data and router, by their names in the chunk's folder."""
    files = [layout.router_samples(index)]
    if has_router(index):
        files.append(layout.router_data(index))
    hashes = {file.name: sha256_file(file) for file in files}
    if has_router(index):
        adapter = adapter_hashes(RouterLayout(layout.root).adapter(index))
        hashes |= {f"{ROUTER}/{name}": value for name, value in adapter.items()}
    return hashes


def check_pool(layout: RunLayout, state: RunState, index: int) -> None:
    """Checks all that answers after chunk `index`: every adapter so far, and the router.

    Raises:
        CheckpointError: a file is missing or was changed; the message names it.
    """
    for chunk in range(1, index + 1):
        verify_adapter(layout.adapter(chunk), state.record(chunk).adapter_sha256)
    check_router(layout, state.record(index))


def check_router(layout: RunLayout, record: ChunkRecord) -> None:
    """Checks a trained chunk's router and samples.

    Raises:
        CheckpointError: a file is missing, unrecorded or was changed.
    """
    names = {layout.router_samples(record.index).name}
    if has_router(record.index):
        names |= {f"{ROUTER}/{CONFIG}", f"{ROUTER}/{WEIGHTS}"}
    # verify_adapter looks at recorded names only: a record without one would pass.
    missing = sorted(names - record.router_sha256.keys())
    if missing:
        raise CheckpointError(f"state.json has no sha256 of {', '.join(missing)}")
    verify_adapter(layout.chunk(record.index), record.router_sha256)


def write_pool(recipe: Recipe, layout: RunLayout, state: RunState, index: int) -> None:
    """Writes what the plug-in of `swift infer` reads, see swift_plugin.py in this folder."""
    assert recipe.pool is not None
    chunks, texts = range(1, index + 1), recipe.pool.described(index)
    experts: list[Expert] = [
        {"letter": name, "text": text, "chunk": c, "adapter": str(layout.adapter(c).resolve())}
        for name, text, c in zip(expert_letters(index), texts, chunks, strict=True)
    ]
    router = RouterLayout(layout.root).adapter(index)
    # The chunk that was trained on most steps; of equals the newest.
    largest = max(chunks, key=lambda chunk: (state.record(chunk).steps, chunk))
    content: PoolFile = {
        "experts": experts,
        "router": str(router.resolve()) if has_router(index) else None,
        "fallback": index if recipe.pool.fallback == "newest" else largest,
    }
    write_json(layout.pool(index), content)

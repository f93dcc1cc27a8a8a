"""MR-LoRA's pool: an adapter a chunk, and a router adapter that says which of them should answer.

After each chunk the router, an adapter of its own, is trained afresh on `pool.samples` samples of
every chunk so far, answered with the letter of the chunk's adapter (Zhao et al., MLLM-CL 2025). The
chunk stands for the stage: no task label is read. Chunk 1 has no router, its adapter answers all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from data_prep.mllm_cl.router import expert_letters, router_record
from recipes.baselines.replay import read_lines
from recipes.config.schema import Recipe
from recipes.run.checkpoints import CheckpointError, adapter_hashes, verify_adapter
from recipes.run.layout import RunLayout
from recipes.run.state import ChunkRecord, RunState, write_json, write_text
from recipes.run.stream import Stream, file_sha256
from strlora_tuner.saved import CONFIG, WEIGHTS

SAMPLES, ROUTER_DATA, ROUTER = "router_samples.jsonl", "router.jsonl", "router"


@dataclass(frozen=True)
class RouterLayout(RunLayout):
    """Where the training of a router leaves its files, beside those of the chunk's adapter."""

    def host(self, index: int) -> Path:
        return self.chunk(index) / "router_host"

    def adapter(self, index: int) -> Path:
        return self.chunk(index) / ROUTER

    def train_log(self, index: int) -> Path:
        return self.chunk(index) / "router.log"

    def train_metrics(self, index: int) -> Path:
        return self.chunk(index) / "router_metrics.jsonl"


def router_recipe(recipe: Recipe) -> Recipe:
    """The recipe that trains a router: the same, with the router's rate and passes."""
    pool, schedule = recipe.pool, recipe.schedule
    assert pool is not None
    first = schedule.first.model_copy(update={"learning_rate": pool.router_rate(schedule.first)})
    phases = {"first": first, "epochs": pool.epochs}
    return recipe.model_copy(update={"schedule": schedule.model_copy(update=phases)})


def has_router(index: int) -> bool:
    """Whether there is anything to choose from after chunk `index`."""
    return index > 1


def router_lines(recipe: Recipe, samples: Sequence[int]) -> int:
    """Lines that the router is trained on after the last of chunks with so many samples."""
    if recipe.pool is None or not has_router(len(samples)):
        return 0
    return sum(min(recipe.pool.samples, count) for count in samples)


def keep_samples(recipe: Recipe, layout: RunLayout, stream: Stream, index: int) -> dict[str, str]:
    """Draws the chunk's samples for this and all later routers; returns their file's sha256.

    Seeded by recipe and chunk, in the chunk's order: doing it again gives the same file.
    """
    assert recipe.pool is not None
    lines = read_lines(stream.chunk_file(index))
    count = min(recipe.pool.samples, len(lines))
    places = Random(f"{recipe.seed}/router/{index}").sample(range(len(lines)), count)
    path = layout.chunk(index) / SAMPLES
    write_text(path, "".join(f"{lines[place]}\n" for place in sorted(places)))
    return {SAMPLES: file_sha256(path)}


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
        if chunk < index:
            known = state.record(chunk).router_sha256
            verify_adapter(layout.chunk(chunk), {SAMPLES: known.get(SAMPLES, "")})
        for line in read_lines(layout.chunk(chunk) / SAMPLES):
            rows.append(router_record(json.loads(line), experts, chunk - 1))
    path = layout.chunk(index) / ROUTER_DATA
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path, len(rows)


def router_hashes(layout: RunLayout, index: int) -> dict[str, str]:
    """sha256 of a chunk's samples, router data and router, by their names in the chunk's folder."""
    folder = layout.chunk(index)
    hashes = {SAMPLES: file_sha256(folder / SAMPLES)}
    if has_router(index):
        hashes[ROUTER_DATA] = file_sha256(folder / ROUTER_DATA)
        hashes |= {f"{ROUTER}/{k}": v for k, v in adapter_hashes(folder / ROUTER).items()}
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
    names = {SAMPLES} | ({f"{ROUTER}/{CONFIG}", f"{ROUTER}/{WEIGHTS}"} if has_router(record.index)
                         else set())  # fmt: skip
    missing = sorted(names - record.router_sha256.keys())
    if missing:
        raise CheckpointError(f"state.json has no sha256 of {', '.join(missing)}")
    verify_adapter(layout.chunk(record.index), record.router_sha256)


def write_pool(recipe: Recipe, layout: RunLayout, state: RunState, index: int) -> None:
    """Writes what the plug-in of `swift infer` reads, see swift_plugin.py in this folder."""
    assert recipe.pool is not None
    chunks, texts = range(1, index + 1), recipe.pool.described(index)
    experts = [
        {"letter": name, "text": text, "chunk": c, "adapter": str(layout.adapter(c).resolve())}
        for name, text, c in zip(expert_letters(index), texts, chunks, strict=True)
    ]
    router = str((layout.chunk(index) / ROUTER).resolve()) if has_router(index) else None
    content: dict[str, Any] = {"experts": experts, "router": router}
    content["fallback"] = index if recipe.pool.fallback == "newest" else _largest(state, index)
    write_json(layout.pool(index), content)


def _largest(state: RunState, index: int) -> int:
    """The chunk that was trained on most steps; of equals the newest."""
    return max(range(1, index + 1), key=lambda chunk: (state.record(chunk).steps, chunk))

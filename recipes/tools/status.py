"""`status`: where a run stands, from its files alone; beside a living run or on another machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.baselines.mr_lora.pool import RouterLayout
from recipes.baselines.replay import ReplayError
from recipes.config.schema import Recipe
from recipes.processes.run_lock import is_held, is_here, read_holder
from recipes.run.checkpoints import CheckpointError, check_adapter, complete_lines, verify_adapter
from recipes.run.chunk_data import check_carried
from recipes.run.layout import RunLayout
from recipes.run.state import ChunkRecord, load_state
from recipes.run.terminal import duration, score_text
from strlora_tuner.saved import WEIGHTS, AdapterError

SILENT_SECONDS = 120.0  # an orchestrator gives a sign of life every few seconds


def read_status(recipe: Recipe) -> dict[str, Any]:
    """Returns where the run of `recipe` stands, as plain values.

    `life` is not started, running, stopped, finished, or silent: the run is said to be worked on by
    another machine that has given no sign of life for two minutes.

    Raises:
        StateError: state.json is damaged.
    """
    layout = RunLayout(Path(recipe.folder))
    status: dict[str, Any] = {"run": str(layout.root), "chunks_in_all": recipe.data.chunks}
    if not layout.state.is_file():
        life = _life(layout) if layout.lock.is_file() else {"life": "not started"}
        return {**status, "done": 0, "chunks": [], **life}
    state = load_state(layout.state)
    status["done"] = state.done
    status["seconds"] = sum(r.train_seconds + r.eval_seconds for r in state.chunks)
    status["chunks"] = [_chunk(layout, record) for record in state.chunks]
    return {**status, **({"life": "finished"} if state.finished else _life(layout))}


def _chunk(layout: RunLayout, record: ChunkRecord) -> dict[str, Any]:
    chunk: dict[str, Any] = {"chunk": record.index, "trained": record.trained}
    chunk["evaluated"] = record.evaluated
    if record.trained:
        chunk |= {"steps": record.steps, "train_seconds": record.train_seconds}
        chunk["loss"] = record.loss
    elif record.index > 0:
        chunk |= _last_step(layout.host(record.index) / "logging.jsonl")
    if record.evaluated:
        chunk["scores"] = _scores(layout, record.index)
    return chunk


def _last_step(metrics: Path) -> dict[str, Any]:
    """Step and loss of the newest row of the host's metrics; empty when there is none."""
    if not metrics.is_file():
        return {}
    for line in reversed(complete_lines(metrics)):
        try:
            row = json.loads(line)
            return {"at_step": row["global_step/max_steps"], "loss": float(row["loss"])}
        except (ValueError, KeyError):
            continue
    return {}


def _life(layout: RunLayout) -> dict[str, Any]:
    """Who works on the run. On its own machine the kernel knows; elsewhere the lock file tells."""
    holder = read_holder(layout.lock)
    if not holder:
        return {"life": "stopped"}
    worker = {"process": holder.get("pid"), "machine": holder.get("machine")}
    if is_here(holder):
        return {"life": "running", **worker} if is_held(layout.lock) else {"life": "stopped"}
    silent = max(0.0, time.time() - layout.lock.stat().st_mtime)
    life = "running" if silent < SILENT_SECONDS else "silent"
    return {"life": life, **worker, "silent_seconds": round(silent, 1)}


def _scores(layout: RunLayout, chunk: int) -> dict[str, float]:
    if not layout.matrix.is_file():
        return {}
    rows = [line.strip().split(",") for line in complete_lines(layout.matrix)[1:]]
    return {task: float(value) for index, task, value, _ in rows if index == str(chunk) and value}


def verify(recipe: Recipe) -> Iterator[str]:
    """Yields what is wrong with the files of trained chunks; nothing when all are as recorded.

    An adapter whose weights were pruned by `clean --old-adapters` is no damage; of a pool, in which
    every adapter answers, the same holds for routers.
    """
    layout = RunLayout(Path(recipe.folder))
    state = load_state(layout.state)
    for record in state.chunks:
        adapter = layout.adapter(record.index)
        spare = adapter if recipe.pool is None else RouterLayout(layout.root).adapter(record.index)
        pruned = record.index < state.done and not (spare / WEIGHTS).exists()
        if not record.trained or (pruned and recipe.pool is None):
            continue
        try:
            verify_adapter(adapter, record.adapter_sha256)
            check_adapter(adapter, recipe.tuner_type)
            if not pruned:
                check_carried(recipe, layout, record)
        except (AdapterError, CheckpointError, ReplayError) as error:
            yield f"chunk {record.index}: {error}"


def as_text(status: dict[str, Any]) -> Iterator[str]:
    """Yields the status as lines."""
    if status["life"] == "not started":
        yield f"{status['run']}: not started"
    else:
        spent = duration(status.get("seconds", 0.0))
        done = f"{status['done']} of {status['chunks_in_all']} chunks done in {spent}"
        yield f"{status['run']}: {done}, {_life_text(status)}"
    for chunk in status["chunks"]:
        yield f"  chunk {chunk['chunk']:3d}: {_chunk_text(chunk)}"
    if "damaged" in status:
        yield from (f"  DAMAGED  {text}" for text in status["damaged"])
        if not status["damaged"]:
            yield "  verified: every recorded adapter is whole and unchanged"


def _chunk_text(chunk: dict[str, Any]) -> str:
    parts = []
    loss = "" if chunk.get("loss") is None else f", loss {chunk['loss']:.4f}"
    if chunk["trained"]:
        parts.append(f"{chunk['steps']} steps in {duration(chunk['train_seconds'])}{loss}")
    elif "at_step" in chunk:
        parts.append(f"training, step {chunk['at_step']}{loss}")
    if chunk["evaluated"]:
        parts.append(score_text(chunk["scores"]))
    return "; ".join(parts) or "in progress"


def _life_text(status: dict[str, Any]) -> str:
    who = f"process {status.get('process')} on {status.get('machine')}"
    if status["life"] == "running":
        return f"running ({who})"
    if status["life"] == "silent":
        return (
            f"no sign of life for {duration(status['silent_seconds'])} from {who}; if it is gone, "
            "the command run goes on"
        )
    return "finished" if status["life"] == "finished" else "stopped; the command run goes on"

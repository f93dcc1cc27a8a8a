"""`status`: where a run stands, read from its files alone, also while it runs elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import complete_lines
from eval.charts.figure import duration
from eval.matrix import read_cells
from recipes.config.schema import Recipe
from recipes.processes.run_lock import is_held, is_here, read_holder
from recipes.run.chunk_data import check_carried
from recipes.run.terminal import score_text
from recipes.run_folder.checkpoints import CheckpointError, check_adapter, verify_adapter
from recipes.run_folder.layout import OtherWeightsLayout, RouterLayout, RunLayout
from recipes.run_folder.manifest import has_grown
from recipes.run_folder.state import ChunkRecord, load_state
from recipes.tools.retention import may_go, must_stay
from strlora_tuner.methods.slow_weights.options import KINDS
from strlora_tuner.saved import WEIGHTS, AdapterError

SILENT_SECONDS = 120.0  # an orchestrator gives a sign of life every few seconds


@dataclass
class ChunkStatus:
    """Where a chunk stands; while it is trained, `at_step` is "done/all" and `loss` the newest."""

    chunk: int
    trained: bool
    evaluated: bool
    steps: int | None = None
    train_seconds: float | None = None
    loss: float | None = None
    at_step: str | None = None
    scores: dict[str, float] | None = None
    other_weights: dict[str, dict[str, float]] | None = None  # by "fast" or "slow"


@dataclass
class Status:
    """Where a run stands.

    `life` is not started, running, stopped, finished, or silent: the run is said to be worked on by
    another machine that has given no sign of life for two minutes. `damaged` is what `verify` found
    wrong; None: nobody asked. `keep` is what the next chunk needs, `may_go` what nothing does.
    """

    run: str
    chunks_in_all: int
    life: str = "not started"
    done: int = 0
    seconds: float | None = None
    chunks: list[ChunkStatus] = field(default_factory=list)
    process: int | None = None
    machine: str | None = None
    silent_seconds: float | None = None
    damaged: list[str] | None = None
    keep: list[str] | None = None
    may_go: list[str] | None = None


def read_status(recipe: Recipe) -> Status:
    """Returns where the run of `recipe` stands.

    Raises:
        StateError: state.json is damaged.
    """
    layout = RunLayout(Path(recipe.folder))
    status = read_folder(layout, recipe.data.chunks)
    if status.life == "finished" and has_grown(layout, recipe):
        status.life = "grown"
    if layout.state.is_file():
        state = load_state(layout.state)
        status.keep = list(must_stay(recipe, layout, state))
        status.may_go = list(may_go(recipe, state))
    return status


def read_folder(layout: RunLayout, chunks: int) -> Status:
    """Returns where the run of `chunks` chunks in a folder stands.

    Raises:
        StateError: state.json is damaged.
    """
    status = Status(str(layout.root), chunks)
    if layout.state.is_file():
        state = load_state(layout.state)
        status.done = state.done
        status.seconds = sum(r.train_seconds + r.eval_seconds for r in state.chunks)
        status.chunks = [_chunk(layout, record) for record in state.chunks]
        if state.finished:
            status.life = "finished"
            return status
    elif not layout.lock.is_file():
        return status
    _add_life(status, layout)
    return status


def _chunk(layout: RunLayout, record: ChunkRecord) -> ChunkStatus:
    chunk = ChunkStatus(record.index, record.trained, record.evaluated)
    if record.trained:
        chunk.steps, chunk.loss = record.steps, record.loss
        chunk.train_seconds = record.train_seconds
    elif record.index > 0:
        chunk.at_step, chunk.loss = _last_step(layout.host(record.index) / "logging.jsonl")
    if record.evaluated:
        chunk.scores = _scores(layout, record.index)
    beside = [OtherWeightsLayout(layout.root, kind) for kind in KINDS]
    found = {other.kind: _scores(other, record.index) for other in beside}
    chunk.other_weights = {kind: scores for kind, scores in found.items() if scores} or None
    return chunk


def _last_step(metrics: Path) -> tuple[str | None, float | None]:
    """Step ("done/all") and loss of the host's newest row of metrics, where there is one."""
    if metrics.is_file():
        for line in reversed(complete_lines(metrics)):
            with suppress(ValueError, KeyError):
                row = json.loads(line)
                return str(row["global_step/max_steps"]), float(row["loss"])
    return None, None


def _add_life(status: Status, layout: RunLayout) -> None:
    """Who works on the run. On its own machine the kernel knows; elsewhere the lock file tells."""
    holder = read_holder(layout.lock)
    status.life = "stopped"
    if not holder or (is_here(holder) and not is_held(layout.lock)):
        return
    status.life = "running"
    status.process, status.machine = holder.get("pid"), holder.get("machine")
    if not is_here(holder):
        silent = max(0.0, time.time() - layout.lock.stat().st_mtime)
        status.silent_seconds = round(silent, 1)
        status.life = "running" if silent < SILENT_SECONDS else "silent"


def _scores(layout: RunLayout, chunk: int) -> dict[str, float]:
    cells = read_cells(layout.matrix).items()
    return {task: score for (index, task), (score, _) in cells if index == chunk}


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
        except (AdapterError, CheckpointError) as error:
            yield f"chunk {record.index}: {error}"


def as_json(status: Status) -> str:
    """The status as JSON; what does not apply is left out."""

    def applying(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in items if value is not None}

    return json.dumps(asdict(status, dict_factory=applying), indent=2)


def as_text(status: Status) -> Iterator[str]:
    """Yields the status as lines."""
    if status.life == "not started":
        yield f"{status.run}: not started"
    else:
        spent = duration(status.seconds or 0.0)
        done = f"{status.done} of {status.chunks_in_all} chunks done in {spent}"
        yield f"{status.run}: {done}, {_life_text(status)}"
    for chunk in status.chunks:
        yield f"  chunk {chunk.chunk:3d}: {_chunk_text(chunk)}"
    yield from (f"  keep for the next chunk: {text}" for text in status.keep or ())
    yield from (f"  may go: {text}" for text in status.may_go or ())
    if status.damaged is not None:
        yield from (f"  DAMAGED  {text}" for text in status.damaged)
        if not status.damaged:
            yield "  verified: every recorded adapter is whole and unchanged"


def _chunk_text(chunk: ChunkStatus) -> str:
    parts = []
    loss = "" if chunk.loss is None else f", loss {chunk.loss:.4f}"
    if chunk.trained:
        parts.append(f"{chunk.steps} steps in {duration(chunk.train_seconds or 0.0)}{loss}")
    elif chunk.at_step is not None:
        parts.append(f"training, step {chunk.at_step}{loss}")
    if chunk.scores is not None:
        parts.append(score_text(chunk.scores))
    for kind, scores in (chunk.other_weights or {}).items():
        parts.append(f"{kind} weights: {score_text(scores)}")
    return "; ".join(parts) or "in progress"


def _life_text(status: Status) -> str:
    who = f"process {status.process} on {status.machine}"
    silent = f"no sign of life for {duration(status.silent_seconds or 0.0)} from {who}"
    return {
        "running": f"running ({who})",
        "silent": f"{silent}; if it is gone, the command run continues it",
        "grown": "finished, and its stream has grown since; the command run continues it",
        "finished": "finished",
        "stopped": "stopped; the command run continues it",
    }[status.life]

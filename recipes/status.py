"""`--status`: where a run stands, from its files alone; works beside a living run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recipes.checkpoints import complete_lines
from recipes.layout import RunLayout
from recipes.lock import is_held, read_holder
from recipes.progress import duration, score_text
from recipes.schema import Recipe
from recipes.state import load_state


def status(recipe: Recipe) -> Iterator[str]:
    """Yields lines about the run that `recipe` would start or go on with."""
    layout = RunLayout(Path(recipe.folder))
    if not layout.state.is_file():
        yield f"{layout.root}: not started"
        return
    state = load_state(layout.state)
    count = recipe.data.chunks
    spent = sum(record.train_seconds + record.eval_seconds for record in state.chunks)
    done = f"{state.done} of {count} chunks done in {duration(spent)}"
    yield f"{layout.root}: {done}, {_life(layout)}"
    for record in state.chunks:
        parts = []
        if record.trained:
            loss = "" if record.loss is None else f", loss {record.loss:.4f}"
            parts.append(f"{record.steps} steps in {duration(record.train_seconds)}{loss}")
        if record.evaluated:
            parts.append(score_text(_scores(layout, record.index)))
        yield f"  chunk {record.index:3d}: {'; '.join(parts) or 'in progress'}"


def _life(layout: RunLayout) -> str:
    if load_state(layout.state).finished:
        return "finished"
    if is_held(layout.lock):
        holder = read_holder(layout.lock)
        return f"running (process {holder.get('pid')} on {holder.get('machine')})"
    return "stopped; the same command without --status goes on"


def _scores(layout: RunLayout, chunk: int) -> dict[str, float]:
    if not layout.matrix.is_file():
        return {}
    rows = [line.strip().split(",") for line in complete_lines(layout.matrix)[1:]]
    return {task: float(value) for index, task, value, _ in rows if index == str(chunk) and value}

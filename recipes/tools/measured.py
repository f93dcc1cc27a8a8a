"""What runs on this machine took: seconds a step and an evaluation, peak memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import read_jsonl
from recipes.config.recorded import migrate
from recipes.config.schema import Recipe
from recipes.processes.machine import hardware
from recipes.run_folder.layout import OtherWeightsLayout, RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run, flat, read_manifest, resolved
from recipes.run_folder.state import StateError, load_state
from strlora_tuner.methods.slow_weights.options import KINDS

GPU_MEMORY = "memory(GiB)"  # the host's own word in its metrics, on a GPU
# What another run's recipe may say otherwise: none of it changes the time of a step or of an
# evaluation, nor the memory.
FREE = {"name", "seed", "run_dir", "eval.every", "data.chunks", "data.prepare"}
FREE |= {"model.download", "budget"}
FREE_BLOCKS = ("schedule.first.", "schedule.later.", "launcher.slurm.", "matched.")


@dataclass(frozen=True)
class Measured:
    """Means over the finished chunks of the run in `folder`; GiB are peaks of one process."""

    folder: str
    chunks: int
    step_seconds: float
    evaluations: int
    evaluation_seconds: float
    main_memory_gib: float | None
    gpu_memory_gib: float | None


def find_measured(recipe: Recipe, steps: Mapping[int, int]) -> Measured | None:
    """The recipe's own run, else the newest comparable one beside it that this machine made.

    Args:
        steps: optimizer steps that each chunk takes, a router's among them.
    """
    own = RunLayout(Path(recipe.folder))
    # A run of another recipe in that folder says nothing about this one.
    with suppress(RunChanged):
        check_same_run(own, recipe)
        found = _measure(own, steps)
        if found is not None:
            return found
    others = (_measure(layout, steps) for layout in _comparable_runs(own.root, recipe))
    return next((found for found in others if found is not None), None)


def _comparable_runs(own: Path, recipe: Recipe) -> Iterator[RunLayout]:
    """Runs beside `own` whose steps are of the same kind, on the same hardware; newest first."""
    manifests = [path for path in own.parent.glob("*/manifest.json") if path.parent != own]
    wanted = _timed(resolved(recipe))
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        layout = RunLayout(path.parent)
        with suppress(ValueError, KeyError):  # no manifest of ours
            manifest = read_manifest(layout)
            same = _timed(migrate(manifest["recipe"])) == wanted
            if same and manifest["hardware"] == hardware():
                yield layout


def _timed(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved recipe changes times: (dotted key: value), without what is null.

    A block that is null has no keys, and one of the other recipe would not be missed.
    """
    derived = (recipe.get("matched") or {}).get("tuner", {})
    values = {**recipe, "tuner": {**recipe.get("tuner", {}), **derived}}
    return {
        key: value
        for key, value in flat(values)
        if value is not None and key not in FREE and not key.startswith(FREE_BLOCKS)
    }


def _measure(layout: RunLayout, steps: Mapping[int, int]) -> Measured | None:
    try:
        records = load_state(layout.state).chunks
    except StateError:
        return None
    trained = [r for r in records if r.trained and steps.get(r.index)]
    evaluated = [r for r in records if r.evaluated and r.eval_seconds]
    if not trained or not evaluated:
        return None
    others = [OtherWeightsLayout(layout.root, kind) for kind in KINDS]
    evaluations = sum(1 + sum(o.evaluated(r.index) for o in others) for r in evaluated)
    main = [r.train_memory_gib for r in trained if r.train_memory_gib]
    on_gpu = []
    for path in (layout.train_metrics(r.index) for r in trained):
        with suppress(OSError, ValueError):
            on_gpu += [float(row[GPU_MEMORY]) for row in read_jsonl(path) if GPU_MEMORY in row]
    return Measured(
        str(layout.root),
        len(trained),
        sum(r.train_seconds for r in trained) / sum(steps[r.index] for r in trained),
        evaluations,
        sum(r.eval_seconds for r in evaluated) / evaluations,
        max(main, default=None),
        max(on_gpu, default=None),
    )

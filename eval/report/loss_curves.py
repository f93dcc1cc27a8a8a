"""Loss curves and memory from the host's log (logging.jsonl, copied as train_metrics.jsonl)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.files import Record
from eval.report.data import RunData, step_of
from eval.run_files import ChunkState

MOST_POINTS = 400
WINDOW = 5
STABILITY_KEYS = ("stability_loss", "strlora_stability_loss", "stability")


@dataclass(frozen=True)
class Curve:
    """A value over the optimizer steps of the whole stream.

    Attributes:
        steps: step numbers, counted through from chunk 1.
        values: one value a step, in the log's unit.
        borders: the step at which each chunk after the first begins.
    """

    steps: list[float]
    values: list[float]
    borders: list[float]

    @property
    def smooth(self) -> list[float]:
        """Return the mean of each value and its `WINDOW` neighbours on both sides in its chunk."""
        chunk = np.searchsorted(self.borders, self.steps)
        values = np.array(self.values)
        means = []
        for i in range(len(values)):
            near = slice(max(i - WINDOW, 0), i + WINDOW + 1)
            means.append(float(values[near][chunk[near] == chunk[i]].mean()))
        return means

    @property
    def usual(self) -> float:
        """Return what all but one value in fifty stay below: no spike may hide the curve."""
        return float(np.quantile(self.values, 0.98))


def curve(run: RunData, keys: Sequence[str]) -> Curve | None:
    """Return the curve of the first of `keys` that the logs hold, None where none does."""
    steps: list[float] = []
    values: list[float] = []
    borders: list[float] = []
    done = 0
    for chunk in sorted(run.training):
        points = _points(run.training[chunk], keys)
        if done and points:
            borders.append(float(done))
        steps += [float(done + step) for step, _ in points]
        values += [value for _, value in points]
        # A log without step numbers counts its lines.
        done += max([*map(step_of, run.training[chunk]), len(points)])
    if not values:
        return None
    return Curve(*_thin(steps, values), borders)


def _points(lines: Sequence[Record], keys: Sequence[str]) -> list[tuple[int, float]]:
    points = []
    for number, line in enumerate(lines, start=1):
        key = next((k for k in keys if isinstance(line.get(k), int | float)), None)
        if key is not None and math.isfinite(line[key]):
            points.append((step_of(line) or number, float(line[key])))
    return points


def _thin(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Average neighbours until at most `MOST_POINTS` points are left."""
    size = math.ceil(len(steps) / MOST_POINTS)
    groups = range(0, len(steps), size)
    means = [sum(values[g : g + size]) / len(values[g : g + size]) for g in groups]
    return [steps[g] for g in groups], means


def peak_memory(run: RunData, chunks: Sequence[ChunkState]) -> float:
    """Return the most memory in GiB that training the chunks took, NaN if unknown.

    On an accelerator its own memory, as the host logs it; else the main memory of the host's
    processes, as the orchestrator watched it.
    """
    lines = [line for chunk in chunks for line in run.training.get(chunk.index, [])]
    logged = [line["memory(GiB)"] for line in lines if "memory(GiB)" in line]
    watched = [chunk.train_memory_gib for chunk in chunks]
    for values in (logged, watched):
        known = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if known:
            return max(known)
    return math.nan

"""What a method costs: parameters, seconds a step, peak memory; as far as a run recorded them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from data_prep.files import Record
from eval.report.data import RunData, logged_whole, steps_logged
from eval.report.loss_curves import peak_memory


@dataclass(frozen=True)
class Cost:
    """A cost column: its key, heading and unit."""

    key: str
    title: str
    unit: str


COSTS = (
    Cost("trainable", "Trainable parameters", "M"),
    Cost("stored", "Stored numbers", "M"),
    Cost("seconds_a_step", "Seconds a step", "s"),
    Cost("to_lora", "Step time to LoRA", "x"),
    Cost("memory", "Peak memory", "GiB"),
)
# The host's line: "model_parameter_info: ...: 5.9023M Params (0.2867M Trainable [4.8578%]), ...".
_TRAINABLE = re.compile(r"model_parameter_info:.*\(([\d.]+)M Trainable")


def costs_of(runs: Sequence[RunData]) -> dict[str, float]:
    """Return the costs of a method, means over its runs; NaN where nothing was recorded."""
    found = {
        "trainable": [trainable_millions(run.root) for run in runs],
        "stored": [stored_millions(run.root) for run in runs],
        "seconds_a_step": [seconds_a_step(run) for run in runs],
        "memory": [peak_memory(run, run.state.chunks) for run in runs],
    }
    return {key: float(np.mean(values)) for key, values in found.items()}


def trainable_millions(run: Path) -> float:
    """Return the trainable parameters in millions, as the host logged them; NaN where it did not.

    The host writes four digits after the point.
    """
    for log in sorted(run.glob("chunks/*/train.log")):
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if found := _TRAINABLE.search(line):
                    return float(found.group(1))
    return math.nan


def stored_millions(run: Path) -> float:
    """Return the numbers that are kept to answer after the newest chunk, in millions.

    Those in the newest adapter's safetensors files, with what a method carries besides its trained
    parameters (moving averages, statistics, the second set of slow weights); of a pool those of
    every adapter and of its router.
    """
    folders = sorted(run.glob("chunks/*/adapter"))
    if not folders:
        return math.nan
    if not any(run.glob("chunks/*/pool.json")):
        folders = folders[-1:]
    folders += sorted(run.glob("chunks/*/router"))[-1:]
    try:
        files = [file for folder in folders for file in folder.rglob("*.safetensors")]
        return sum(map(_numbers_in, files)) / 1e6
    except (OSError, SafetensorError):
        return math.nan


def _numbers_in(file: Path) -> int:
    """Return how many numbers a safetensors file holds."""
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def seconds_a_step(run: RunData) -> float:
    """Return the mean wall seconds of a training step over all chunks, as the host measured it.

    A chunk whose log is cut short is left out: its last line would tell another mean.
    """
    whole = {c: lines[-1] for c, lines in run.training.items() if lines and logged_whole(run, c)}
    pairs = [(_number(end, "train_speed(s/it)"), steps_logged(run, c)) for c, end in whole.items()]
    known = [(speed, steps) for speed, steps in pairs if math.isfinite(speed) and steps]
    total = sum(steps for _, steps in known)
    return sum(speed * steps for speed, steps in known) / total if total else math.nan


def _number(line: Record, key: str) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else math.nan

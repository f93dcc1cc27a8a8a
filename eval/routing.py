"""Who uses which expert: expert shares by task and layer, and how well instructions separate tasks.

Reads `chunks/NNN/routing.json`, which the tuner writes at the end of an evaluation:
{"layers": [...], "num_experts": E, "instructions": [{"text", "rows", "use": [layer][expert],
"selected": [layer][expert]}]}. `use` is the mean stage-2 weight over tokens, `selected` the share
of rows in which stage 1 kept the expert.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.files import Record, read_json
from eval.stream import Stream

Array = NDArray[np.float64]
TaskShares = Mapping[str, Mapping[str, float]]
_SPECIAL = re.compile(r"<image>|<\|[^|>]*\|>|<IMG_CONTEXT>|</?img>")


@dataclass(frozen=True)
class Routing:
    """Expert use of one chunk's evaluation.

    Attributes:
        tasks: tasks that have routed rows.
        layers: names of the routed layers.
        use: (tasks, layers, experts), mean stage-2 weight; experts sum to 1.
        selected: (tasks, layers, experts), share of rows in which stage 1 kept the expert.
        nmi: (layers,), normalised mutual information between task and expert set, 0..1.
        rows: routed rows with a known task.
        unknown_rows: routed rows whose text is in no test file (left out).
    """

    tasks: list[str]
    layers: list[str]
    use: Array
    selected: Array
    nmi: Array
    rows: float
    unknown_rows: float


def instruction_text(text: str) -> str:
    """Return an instruction without placeholders, special tokens and doubled blanks."""
    return " ".join(_SPECIAL.sub(" ", text).split())


def task_shares(stream: Stream) -> dict[str, dict[str, float]]:
    """Return {instruction: {task: share}} of the test files; most instructions have one task."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task in stream.tasks:
        for record in stream.test_records(task):
            counts[_user_text(record)][task] += 1
    return {
        text: {task: count / by_task.total() for task, count in by_task.items()}
        for text, by_task in counts.items()
    }


def _user_text(record: Record) -> str:
    turns = (str(m["content"]) for m in record["messages"] if m["role"] == "user")
    return instruction_text(" ".join(turns))


def load_routing(path: Path, shares: TaskShares, tasks: list[str]) -> Routing:
    """Return the expert use of one `routing.json`.

    Args:
        path: the file.
        shares: from `task_shares`.
        tasks: the order of tasks wanted.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the numbers do not fit the stated layers and experts.
    """
    content = read_json(path)
    layers, experts = list(content["layers"]), int(content["num_experts"])
    shape = (len(layers), experts)
    weights: dict[str, float] = dict.fromkeys(tasks, 0.0)
    use = {task: np.zeros(shape) for task in tasks}
    selected = {task: np.zeros(shape) for task in tasks}
    joint: list[dict[tuple[str, tuple[int, ...]], float]] = [defaultdict(float) for _ in layers]
    unknown = 0.0
    for entry in content["instructions"]:
        row_use, row_selected = np.asarray(entry["use"]), np.asarray(entry["selected"])
        if row_use.shape != shape or row_selected.shape != shape:
            raise ValueError(f"{path}: {entry['text']!r}: found {row_use.shape}, expected {shape}")
        owners = shares.get(instruction_text(entry["text"]), {})
        unknown += 0.0 if owners else float(entry["rows"])
        sets = [expert_set(row) for row in row_selected]
        for task, share in owners.items():
            weight = float(entry["rows"]) * share
            weights[task] += weight
            use[task] += weight * row_use
            selected[task] += weight * row_selected
            for layer, chosen in enumerate(sets):
                joint[layer][task, chosen] += weight
    present = [task for task in tasks if weights[task] > 0]
    return Routing(
        tasks=present,
        layers=layers,
        use=_stack([use[task] / weights[task] for task in present], shape),
        selected=_stack([selected[task] / weights[task] for task in present], shape),
        nmi=np.array([normalised_mutual_information(table) for table in joint]),
        rows=sum(weights.values()),
        unknown_rows=unknown,
    )


def _stack(arrays: list[Array], shape: tuple[int, int]) -> Array:
    return np.stack(arrays) if arrays else np.zeros((0, *shape))


def expert_set(selected: Array) -> tuple[int, ...]:
    """Return the experts kept for an instruction in one layer: those kept in most of its rows.

    Args:
        selected: (experts,) share of rows in which each was kept; it sums to the set's size.
    """
    size = max(1, round(float(selected.sum())))
    best = np.argsort(-selected, kind="stable")[:size]
    return tuple(sorted(int(expert) for expert in best))


def normalised_mutual_information(joint: Mapping[tuple[str, tuple[int, ...]], float]) -> float:
    """Return 2 I(T; S) / (H(T) + H(S)) of a weighted table {(task, set): weight}, 0..1.

    NaN where there is nothing to separate: an empty table, or one task and one set.
    """
    total = sum(joint.values())
    if total <= 0:
        return float("nan")
    task_weight: dict[str, float] = defaultdict(float)
    set_weight: dict[tuple[int, ...], float] = defaultdict(float)
    for (task, chosen), weight in joint.items():
        task_weight[task] += weight
        set_weight[chosen] += weight
    h_task, h_set = _entropy(task_weight, total), _entropy(set_weight, total)
    h_joint = _entropy(joint, total)
    if h_task + h_set <= 0:
        return float("nan")
    return max(0.0, 2 * (h_task + h_set - h_joint) / (h_task + h_set))


def _entropy(weights: Mapping[Any, float], total: float) -> float:
    shares = np.array([weight / total for weight in weights.values() if weight > 0])
    return float(-(shares * np.log(shares)).sum())

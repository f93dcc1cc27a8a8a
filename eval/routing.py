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

import numpy as np
from numpy.typing import NDArray

from eval.files import Record, read_json
from eval.stream import Stream

Array = NDArray[np.float64]
TaskShares = Mapping[str, Mapping[str, float]]
_SPECIAL = re.compile(r"<[^<>\s]*>")


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


def instruction_key(text: str) -> str:
    """Return what two writings of one instruction share: no `<...>` marks, no blanks, no case.

    The tuner decodes texts from token ids, which need not bring back every blank.
    """
    return "".join(_SPECIAL.sub("", text).split()).casefold()


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
    return instruction_key(" ".join(turns))


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
    entries = content["instructions"]
    use = _array(path, entries, "use", (len(layers), experts))
    selected = _array(path, entries, "selected", (len(layers), experts))
    weights = _task_weights(entries, shares, tasks)
    present = [i for i in range(len(tasks)) if weights[:, i].sum() > 0]
    known = weights[:, present]
    total = np.maximum(known.sum(axis=0), 1e-30)[:, None, None]
    codes = set_codes(selected)
    tables = [joint_table(known, codes[:, layer]) for layer in range(len(layers))]
    unknown = sum(
        float(e["rows"]) for e, row in zip(entries, weights, strict=True) if not row.any()
    )
    return Routing(
        tasks=[tasks[i] for i in present],
        layers=layers,
        use=np.einsum("nt,nle->tle", known, use) / total,
        selected=np.einsum("nt,nle->tle", known, selected) / total,
        nmi=np.array([normalised_mutual_information(table) for table in tables]),
        rows=float(known.sum()),
        unknown_rows=unknown,
    )


def _array(path: Path, entries: list[Record], key: str, shape: tuple[int, int]) -> Array:
    """Return one field of all instructions: (instructions, layers, experts)."""
    try:
        array = np.asarray([entry[key] for entry in entries], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {key}: rows of different shapes, expected {shape}") from error
    if entries and array.shape[1:] != shape:
        raise ValueError(f"{path}: {key}: found shape {array.shape[1:]}, expected {shape}")
    return array.reshape(len(entries), *shape)


def _task_weights(entries: list[Record], shares: TaskShares, tasks: list[str]) -> Array:
    """Return the rows of each instruction that belong to each task: (instructions, tasks)."""
    weights = np.zeros((len(entries), len(tasks)))
    for row, entry in enumerate(entries):
        for task, share in shares.get(instruction_key(entry["text"]), {}).items():
            weights[row, tasks.index(task)] = float(entry["rows"]) * share
    return weights


def set_codes(selected: Array) -> NDArray[np.int64]:
    """Return the set of experts kept in most rows, as a bit mask: (...), experts (...,  experts).

    Shares of an instruction sum to the size of its set; ties go to the lower expert.
    """
    size = np.maximum(np.rint(selected.sum(axis=-1)), 1)
    order = np.argsort(-selected, axis=-1, kind="stable")
    bits = np.left_shift(np.int64(1), order)
    kept = np.arange(selected.shape[-1]) < size[..., None]
    return np.asarray((bits * kept).sum(axis=-1), dtype=np.int64)


def joint_table(weights: Array, codes: NDArray[np.int64]) -> Array:
    """Return the weight of every (task, expert set): (tasks, sets).

    Args:
        weights: (instructions, tasks).
        codes: (instructions,), one label of a set each.
    """
    sets, column = np.unique(codes, return_inverse=True)
    table = np.zeros((weights.shape[1], len(sets)))
    np.add.at(table.T, column, weights)
    return table


def normalised_mutual_information(table: Array) -> float:
    """Return 2 I(T; S) / (H(T) + H(S)) of a table of weights (tasks, sets), 0..1.

    NaN where there is nothing to separate: an empty table, or one task and one set.
    """
    h_task, h_set = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0))
    if not h_task + h_set > 0:
        return float("nan")
    return max(0.0, 2 * (h_task + h_set - _entropy(table.ravel())) / (h_task + h_set))


def _entropy(weights: Array) -> float:
    positive = weights[weights > 0]
    shares = positive / positive.sum()
    return float(-(shares * np.log(shares)).sum())

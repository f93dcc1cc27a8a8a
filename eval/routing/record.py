"""Who uses which expert, read from `chunks/NNN/routing.json`, which the tuner writes (format 2).

The tuner sums by task; which instruction belongs to which task it learns from a probe file written
here. Nothing of it reaches the model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from data_prep.files import Record, read_json, write_json
from data_prep.stream import Stream
from eval.scorers.registry import open_scored_stream
from strlora_tuner.routing_record.format import (
    FORMAT,
    GroupRecord,
    ProbeContent,
    RoutingContent,
    instruction_key,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Instruction:
    """One distinct instruction: its task and rows.

    `kept` holds by layer the bit mask of the experts that it keeps, None where its rows differ; it
    is empty in records of before November 2026.
    """

    text: str
    task: str
    rows: int
    kept: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Routing:
    """Expert use of one chunk's evaluation: T tasks, L layers, E experts.

    Attributes:
        tasks: tasks that have routed rows, in the order asked for.
        layers: names of the routed layers.
        use: (T, L, E), mean stage-2 weight; experts sum to 1.
        selected: (T, L, E), share of rows in which stage 1 kept the expert.
        nmi: (L,), normalised mutual information between task and expert set, 0..1.
        task_entropy, token_entropy: (T, L), of stage 1 and stage 2, in nats.
        cka: (L, T, T), similarity of the tasks' expert outputs, 1 on the diagonal.
        top_k: experts that stage 1 keeps.
        rows: routed rows with a known task.
        unknown_rows: routed rows whose text is in no test file (left out).
        instructions: some of the distinct instructions, at most a few dozen a task.
    """

    tasks: list[str]
    layers: list[str]
    use: Array
    selected: Array
    nmi: Array
    task_entropy: Array
    token_entropy: Array
    cka: Array
    top_k: int
    rows: float
    unknown_rows: float
    instructions: list[Instruction]

    @property
    def experts(self) -> int:
        """Return the number of experts E."""
        return int(self.use.shape[2])


def task_shares(stream: Stream, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return {instruction: {task: share}} of the test files; most instructions have one task."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        for record in stream.test_records(task):
            counts[instruction_key_of(record)][task] += 1
    return {
        text: {task: round(count / by_task.total(), 6) for task, count in by_task.items()}
        for text, by_task in counts.items()
    }


def instruction_key_of(record: Record) -> str:
    """Return the key of a sample's instruction: all its user turns."""
    return instruction_keys_of(record)[-1]


def instruction_keys_of(record: Record) -> list[str]:
    """Return the keys of what each answer of a sample follows: its user turns so far."""
    turns = [str(m["content"]) for m in record["messages"] if m["role"] == "user"]
    return [instruction_key(" ".join(turns[: last + 1])) for last in range(max(1, len(turns)))]


def write_probe(stream_dir: Path, tasks: Sequence[str], path: Path) -> None:
    """Write the probe file: the test sets' instructions with their tasks.

    The tuner reads it through STRLORA_PROBE_FILE; the test sets are the same after every chunk, so
    routing is always measured on the same questions.
    """
    texts = task_shares(open_scored_stream(stream_dir), tasks)
    content: ProbeContent = {"tasks": list(tasks), "texts": texts}
    write_json(path, content)


def load_routing(path: Path, tasks: Sequence[str]) -> Routing:
    """Return the expert use of one `routing.json`.

    Args:
        path: the file.
        tasks: the tasks wanted, in order; those without rows are left out.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: another format, or numbers that do not fit the stated layers and experts.
    """
    read = read_json(path)
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        found = read.get("format") if isinstance(read, dict) else type(read).__name__
        raise ValueError(f"{path}: format: found {found}, expected {FORMAT}; evaluate again")
    content = cast(RoutingContent, read)
    layers, experts = list(content["layers"]), int(content["num_experts"])
    places = {group["name"]: i for i, group in enumerate(content["groups"])}
    present = [task for task in tasks if task in places]
    groups = [content["groups"][places[task]] for task in present]
    size = (len(present), len(layers))
    rows = np.array([float(group["rows"]) for group in groups])
    at = [places[task] for task in present]
    return Routing(
        tasks=present,
        layers=layers,
        use=_array(path, groups, "use", (*size, experts)),
        selected=_array(path, groups, "selected", (*size, experts)),
        nmi=_nmi_by_layer(groups, rows, len(layers)),
        task_entropy=_array(path, groups, "task_entropy", size),
        token_entropy=_array(path, groups, "token_entropy", size),
        cka=_square(path, content["cka"], len(layers), len(places))[:, at][:, :, at],
        top_k=int(content["top_k"]),
        rows=float(rows.sum()),
        unknown_rows=float(content["rows"]) - float(rows.sum()),
        instructions=[
            Instruction(str(e["text"]), str(e["group"]), int(e["rows"]), tuple(e.get("kept", ())))
            for e in content["instructions"]
            if e["group"] in present
        ],
    )


Field = Literal["use", "selected", "task_entropy", "token_entropy"]


def _array(path: Path, groups: list[GroupRecord], key: Field, shape: tuple[int, ...]) -> Array:
    """Return one field of all groups; null becomes NaN."""
    try:
        array = np.asarray([group[key] for group in groups], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {key}: rows of different shapes, expected {shape}") from error
    if groups and array.shape != shape:
        raise ValueError(f"{path}: {key}: found shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def _square(path: Path, pairs: Sequence[object], layers: int, groups: int) -> Array:
    """Return symmetric matrices (layers, groups, groups) from their upper triangles."""
    upper = np.asarray(pairs, dtype=np.float64).reshape(layers, -1)
    i, j = np.triu_indices(groups, 1)
    if upper.shape[1] != len(i):
        raise ValueError(f"{path}: cka: found {upper.shape[1]} pairs, expected {len(i)}")
    full = np.broadcast_to(np.eye(groups), (layers, groups, groups)).copy()
    full[:, i, j] = full[:, j, i] = upper
    return full


def _nmi_by_layer(groups: list[GroupRecord], rows: Array, layers: int) -> Array:
    """Return NMI(task, expert set) of every layer, each row of a task counting once."""
    result = np.full(layers, np.nan)
    for layer in range(layers):
        masks = sorted({mask for group in groups for mask in group["sets"][layer]})
        shares = [
            [float(group["sets"][layer].get(mask, 0.0)) for mask in masks] for group in groups
        ]
        if masks:
            result[layer] = normalised_mutual_information(np.array(shares) * rows[:, None])
    return result


def normalised_mutual_information(table: Array) -> float:
    """Return 2 I(T; S) / (H(T) + H(S)) of a table of weights (tasks, sets), 0..1.

    NaN where there is nothing to separate: an empty table, or one task and one set.
    """
    h_task, h_set = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0))
    if not h_task + h_set > 0:
        return float("nan")
    # Rounding may take what is independent a little below 0.
    return max(0.0, 2 * (h_task + h_set - _entropy(table.ravel())) / (h_task + h_set))


def _entropy(weights: Array) -> float:
    positive = weights[weights > 0]
    shares = positive / positive.sum()
    return float(-(shares * np.log(shares)).sum())

"""How well a chunk was chosen for each question: MR-LoRA's adapter, BranchLoRA's router.

The truth is the stream's own mixture: a chunk knows a task when it held samples of it. Two
figures, because chunks of a stream share tasks:

    home       share of questions that went to the chunk with most samples of their task so far
               (to any of them where several have as many);
               on pure chunks (a task or domain each) this is the routing accuracy of MLLM-CL
    held       share of questions that went to any chunk that held their task

Tasks that no chunk held yet have no right chunk and are left out of both. A blind choice among the
chunks so far is right by chance: `home_by_lot` and `held_by_lot` say how often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.files import Record, read_json
from eval.predictions import read_predictions
from eval.stream import Stream, load_stream


@dataclass(frozen=True)
class Judged:
    """Shares in 0..1, see the module; NaN where there is nothing to judge."""

    home: float = math.nan
    held: float = math.nan
    home_by_lot: float = math.nan
    held_by_lot: float = math.nan


def judge(chosen: Mapping[int, float], questions: float, samples: Mapping[int, int]) -> Judged:
    """Return how well one task's questions were sent to chunks.

    Args:
        chosen: questions by chunk, or shares of them.
        questions: what all of them sum to, those without a record included.
        samples: of the task by chunk, for every chunk so far.
    """
    most = max(samples.values(), default=0)
    if not most or not questions:
        return Judged()
    right = [{c for c, n in samples.items() if n == most}, {c for c, n in samples.items() if n}]
    shares = [sum(chosen.get(chunk, 0.0) for chunk in chunks) / questions for chunks in right]
    return Judged(*shares, *(len(chunks) / len(samples) for chunks in right))


@dataclass(frozen=True)
class Choices:
    """Which chunk each task's questions took after `chunk`.

    Attributes:
        what: `adapter` (MR-LoRA) or `router` (BranchLoRA's key selector).
        questions: by task.
        chosen: task -> chunk -> questions.
        judged: by task.
        illegal: answers of MR-LoRA's router that named no adapter, by task; empty for keys, which
            always name a chunk.
    """

    chunk: int
    what: str
    questions: dict[str, float]
    chosen: dict[str, dict[int, float]]
    judged: dict[str, Judged]
    illegal: dict[str, int]

    @property
    def total(self) -> Judged:
        """Return the same over all questions whose task a chunk held."""
        known = [task for task, found in self.judged.items() if not math.isnan(found.home)]
        count = sum(self.questions[task] for task in known)
        if not count:
            return Judged()
        rows = [[getattr(self.judged[task], name) * self.questions[task] for name in FIGURES]
                for task in known]  # fmt: skip
        return Judged(*(sum(column) / count for column in zip(*rows, strict=True)))

    @property
    def illegal_share(self) -> float:
        """Return the share of questions whose router named no adapter; NaN where none can."""
        asked = sum(self.questions.values())
        return sum(self.illegal.values()) / asked if self.illegal and asked else math.nan


FIGURES = ("home", "held", "home_by_lot", "held_by_lot")


def read_choices(path: Path, mixtures: Sequence[Mapping[str, int]]) -> Choices:
    """Return the choices that `chunks/NNN/router.json` counts.

    Args:
        path: the file.
        mixtures: samples by task of every chunk of the stream, in order.

    Raises:
        KeyError, TypeError, ValueError: it is no such file.
    """
    content = read_json(path)
    tasks: dict[str, Record] = content["tasks"]
    chunk, what = int(content["chunk"]), str(content.get("what", "adapter"))
    chosen = {t: {int(c): float(n) for c, n in e["experts"].items()} for t, e in tasks.items()}
    asked = {task: float(entry["n"]) for task, entry in tasks.items()}
    illegal = {task: int(entry["illegal"]) for task, entry in tasks.items() if what == "adapter"}
    past = list(enumerate(mixtures[:chunk], start=1))
    judged = {
        task: judge(by_chunk, asked[task], {c: mixture.get(task, 0) for c, mixture in past})
        for task, by_chunk in chosen.items()
    }
    return Choices(chunk, what, asked, chosen, judged, illegal)


def score_choices(predictions_dir: Path, stream_dir: Path, chunk: int) -> dict[str, Any] | None:
    """Return how the questions of each task were routed after `chunk`, from the predictions alone.

    None where no prediction says which chunk was taken. `what`: adapter, where a router was asked
    (MR-LoRA), or router, chosen by keys (BranchLoRA). By task: `n` questions, `experts` (chunk ->
    questions), `home`, `held` (parts of 1, null for a task not held yet), `illegal` (answers of the
    router that named no adapter), `unrouted` (questions without a record). Over all questions of
    held tasks: `home`, `held`; over all: `illegal`, `n`.

    Raises:
        ValueError: a prediction file does not fit the stream.
    """
    stream = load_stream(stream_dir)
    lines = {
        path.stem: read_predictions(predictions_dir, stream, path.stem)
        for path in sorted(predictions_dir.glob("*.jsonl"))
    }
    every = [line for of_task in lines.values() for line in of_task]
    if not any("expert" in line for line in every):
        return None
    what = "adapter" if any("routed" in line for line in every) else "router"
    tasks = {task: _task(of_task, stream, chunk) for task, of_task in lines.items()}
    judged = [entry for entry in tasks.values() if entry["home"] is not None]
    total = sum(entry["n"] for entry in judged)
    content: dict[str, Any] = {
        "chunk": chunk,
        "what": what,
        "n": sum(e["n"] for e in tasks.values()),
    }
    for key in ("home", "held"):
        right = sum(entry[key] * entry["n"] for entry in judged)
        content[key] = round(right / total, 6) if total else None
    content["illegal"] = sum(entry["illegal"] for entry in tasks.values())
    return {**content, "tasks": tasks}


def _task(lines: list[Record], stream: Stream, chunk: int) -> dict[str, Any]:
    task = str(lines[0]["task"]) if lines else ""
    samples = {c["index"]: c["tasks"].get(task, 0) for c in stream.chunks if c["index"] <= chunk}
    routed = [line["expert"] for line in lines if line.get("expert") is not None]
    experts = Counter(int(expert) for expert in routed)
    found = judge(experts, len(lines), samples)
    entry: dict[str, Any] = {"n": len(lines)}
    for key, value in (("home", found.home), ("held", found.held)):
        entry[key] = None if math.isnan(value) else round(value, 6)
    entry["illegal"] = sum(line.get("routed") is False for line in lines)
    entry["unrouted"] = len(lines) - len(routed)
    return {**entry, "experts": {str(c): n for c, n in sorted(experts.items())}}

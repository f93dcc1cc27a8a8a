"""How well a chunk was chosen for each question: MR-LoRA's adapter, or by keys.

The truth is the stream's own mixture: a chunk knows a task when it held samples of it. Two
accuracies, because chunks of a stream share tasks:

    dominant_chunk   share of questions that went to the chunk with most samples of their task so
                     far (to any of them where several have as many); on pure chunks (a task or
                     domain each) this is the routing accuracy of MLLM-CL
    any_chunk        share of questions that went to any chunk that held their task

Tasks that no chunk held yet have no right chunk and are left out of both; so are questions that
went to a chunk before the run (0: `start_from`), of which no file says what it held. Beside each
stands its chance level: how often a blind choice among the chunks so far would be right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import cast

from data_prep.files import read_json
from data_prep.stream import Stream
from eval.predictions import read_predictions
from eval.run_files import PredictionLine, RoutedTask, RouterContent, rounded
from eval.scorers.registry import open_scored_stream

BEFORE = 0  # stands for every chunk that came with `start_from`


@dataclass(frozen=True)
class Accuracy:
    """Shares of questions in 0..1, see the module; NaN where no question has a right chunk."""

    dominant_chunk: float = math.nan
    any_chunk: float = math.nan
    dominant_chunk_by_chance: float = math.nan
    any_chunk_by_chance: float = math.nan

    def values(self) -> tuple[float, float, float, float]:
        """Return the four numbers in the order of the fields."""
        return astuple(self)


def router_accuracy(
    chosen: Mapping[int, float], questions: float, samples: Mapping[int, int]
) -> Accuracy:
    """Return how well one task's questions were sent to chunks.

    Args:
        chosen: questions by chunk, or shares of them; 0: a chunk before the run.
        questions: what all of them sum to, those without a record included.
        samples: of the task by chunk, for every chunk so far.
    """
    most = max(samples.values(), default=0)
    questions -= chosen.get(BEFORE, 0.0)
    if not most or not questions:
        return Accuracy()
    right = [{c for c, n in samples.items() if n == most}, {c for c, n in samples.items() if n}]
    shares = [sum(chosen.get(chunk, 0.0) for chunk in chunks) / questions for chunks in right]
    return Accuracy(*shares, *(len(chunks) / len(samples) for chunks in right))


@dataclass(frozen=True)
class Choices:
    """Which chunk each task's questions took after `chunk`.

    Attributes:
        what: `adapter` (MR-LoRA) or `router` (a chunk's keys: BranchLoRA, HiDe-LLaVA).
        questions: by task.
        chosen: task -> chunk -> questions.
        accuracy: by task.
        illegal: answers of MR-LoRA's router that named no adapter, by task; empty for keys, which
            always name a chunk.
    """

    chunk: int
    what: str
    questions: dict[str, float]
    chosen: dict[str, dict[int, float]]
    accuracy: dict[str, Accuracy]
    illegal: dict[str, int]

    @property
    def total(self) -> Accuracy:
        """Return the accuracy over all questions whose task a chunk held."""
        known = [t for t, accuracy in self.accuracy.items() if not math.isnan(accuracy.any_chunk)]
        judged = {t: self.questions[t] - self.chosen[t].get(BEFORE, 0.0) for t in known}
        count = sum(judged.values())
        if not count:
            return Accuracy()
        rows = [[v * judged[t] for v in self.accuracy[t].values()] for t in known]
        return Accuracy(*(sum(column) / count for column in zip(*rows, strict=True)))

    @property
    def illegal_share(self) -> float:
        """Return the share of questions whose router named no adapter; NaN where none can."""
        asked = sum(self.questions.values())
        return sum(self.illegal.values()) / asked if self.illegal and asked else math.nan


def read_choices(
    path: Path, mixtures: Sequence[Mapping[str, int]], trained_as: Mapping[str, str]
) -> Choices:
    """Return the choices that `chunks/NNN/router.json` counts.

    Args:
        path: the file.
        mixtures: samples by task of every chunk of the stream, in order.
        trained_as: the task of a test set's samples in the mixtures; one that is not in it is named
            alike.

    Raises:
        KeyError, TypeError, ValueError: it is no such file.
    """
    content = cast(RouterContent, read_json(path))
    tasks = content["tasks"]
    chunk, what = int(content["chunk"]), str(content.get("what", "adapter"))
    if what not in ("adapter", "router"):
        raise ValueError(f"{path}: what: found {what!r}, expected adapter or router")
    chosen = {t: {int(c): float(n) for c, n in e["experts"].items()} for t, e in tasks.items()}
    asked = {task: float(entry["n"]) for task, entry in tasks.items()}
    illegal = {task: int(entry["illegal"]) for task, entry in tasks.items() if what == "adapter"}
    past = list(enumerate(mixtures[:chunk], start=1))
    accuracy = {
        task: router_accuracy(
            by_chunk, asked[task], {c: m.get(trained_as.get(task, task), 0) for c, m in past}
        )
        for task, by_chunk in chosen.items()
    }
    return Choices(chunk, what, asked, chosen, accuracy, illegal)


def count_choices(predictions_dir: Path, stream_dir: Path, chunk: int) -> RouterContent | None:
    """Return how the questions of each task were routed after `chunk`, from the predictions alone.

    None where no prediction says which chunk was taken.

    Raises:
        ValueError: a prediction file does not fit the stream.
    """
    stream = open_scored_stream(stream_dir)
    lines = {
        path.stem: read_predictions(predictions_dir, stream, path.stem)
        for path in sorted(predictions_dir.glob("*.jsonl"))
    }
    every = [line for of_task in lines.values() for line in of_task]
    if not any("expert" in line for line in every):
        return None
    tasks = {task: _routed_task(of_task, stream, task, chunk) for task, of_task in lines.items()}
    return {
        "chunk": chunk,
        "what": "adapter" if any("routed" in line for line in every) else "router",
        "n": sum(entry["n"] for entry in tasks.values()),
        "dominant_chunk": _mean((e["dominant_chunk"], _judged(e)) for e in tasks.values()),
        "any_chunk": _mean((e["any_chunk"], _judged(e)) for e in tasks.values()),
        "illegal": sum(entry["illegal"] for entry in tasks.values()),
        "tasks": tasks,
    }


def _judged(entry: RoutedTask) -> int:
    return entry["n"] - entry["experts"].get(str(BEFORE), 0)


def _mean(pairs: Iterable[tuple[float | None, int]]) -> float | None:
    """Return the mean of (share, questions) over the questions of tasks that have a share."""
    known = [(share, n) for share, n in pairs if share is not None]
    total = sum(n for _, n in known)
    return round(sum(share * n for share, n in known) / total, 6) if total else None


def _routed_task(
    lines: Sequence[PredictionLine], stream: Stream, task: str, chunk: int
) -> RoutedTask:
    task = stream.task(task).trained_as
    samples = {c.index: c.tasks.get(task, 0) for c in stream.chunks if c.index <= chunk}
    chosen = Counter(e for line in lines if (e := line.get("expert")) is not None)
    accuracy = router_accuracy(chosen, len(lines), samples)
    return {
        "n": len(lines),
        "dominant_chunk": rounded(accuracy.dominant_chunk),
        "any_chunk": rounded(accuracy.any_chunk),
        "illegal": sum(line.get("routed") is False for line in lines),
        "unrouted": len(lines) - chosen.total(),
        "experts": {str(c): n for c, n in sorted(chosen.items())},
    }

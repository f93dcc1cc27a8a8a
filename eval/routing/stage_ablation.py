"""What each part of the router is worth: scores with a part switched off, against the intact run.

`python -m recipes.ablate RUN` evaluates; here its predictions become `RUN/ablation.json`:
{"format": 1, "chunk": c, "ablations": [{"name", "score", "cost", "low", "high",
"tasks": {task: {"n", "score", "cost", "low", "high"}}}], "intact": {"score", "tasks": {task:
{"n", "score"}}}}. `cost` is the intact score minus the ablated one on the same samples (positive:
the part is worth that much), `low` and `high` its 95 % bootstrap interval; null: not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.files import write_json
from data_prep.stream import Stream
from eval.metrics import bootstrap_matrices, mean_over
from eval.predictions import read_predictions
from eval.run_files import (
    ABLATION_FORMAT,
    Ablation,
    AblationContent,
    Cost,
    IntactTask,
    PredictionLine,
    TaskCost,
    chunk_folder,
    rounded,
)
from eval.scorers.registry import Named, open_scored_stream, scorer_of
from eval.significance import percentile_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Paired:
    """One task's sample scores with and without: (1 + ablations, n), row 0 intact; NaN: none."""

    scores: Array
    aggregate: Callable[[Array], Array]


def write_ablation(
    run_dir: Path, stream_dir: Path, chunk: int, names: Sequence[str], scorer: Named = None
) -> Path:
    """Write `ablation.json` of a run and return its path.

    Args:
        run_dir: the run folder; `ablation/<name>/predictions` lie in it.
        stream_dir: the stream folder.
        chunk: whose adapter was evaluated.
        names: the ablations to compare, in order.
        scorer: those that the recipe names over the stream's.

    Raises:
        FileNotFoundError: the intact chunk or an ablation has no predictions.
        ValueError: prediction files that do not fit the test sets.
    """
    stream = open_scored_stream(stream_dir, scorer)
    intact = chunk_folder(run_dir, chunk) / "predictions"
    folders = [intact, *(run_dir / "ablation" / name / "predictions" for name in names)]
    tasks = [task for task in stream.tasks if (folders[-1] / f"{task}.jsonl").is_file()]
    if not tasks:
        raise FileNotFoundError(f"{folders[-1]}: no predictions; run: python -m recipes.ablate RUN")
    paired = {task: _paired(folders, stream, task) for task in tasks}
    path = run_dir / "ablation.json"
    write_json(path, _content(chunk, paired, names))
    return path


def _paired(folders: Sequence[Path], stream: Stream, task: str) -> _Paired:
    lines = [{line["id"]: line for line in read_predictions(f, stream, task)} for f in folders]
    # An ablation may have been asked fewer questions (eval.limit) than the chunk was.
    common = [name for name in lines[0] if all(name in by_id for by_id in lines)]
    rows = [_scores([by_id[name] for name in common]) for by_id in lines]
    return _Paired(np.array(rows), scorer_of(stream, task).of_mean)


def _scores(lines: Sequence[PredictionLine]) -> list[float]:
    answered = any(line["prediction"] is not None for line in lines)
    return [line["score"] if answered else math.nan for line in lines]


def _content(chunk: int, paired: Mapping[str, _Paired], names: Sequence[str]) -> AblationContent:
    samples = [p.scores for p in paired.values()]
    real = np.stack([p.aggregate(p.scores.mean(axis=1)) for p in paired.values()], axis=-1)
    drawn = bootstrap_matrices(samples, [p.aggregate for p in paired.values()])
    counts = {task: int(p.scores.shape[1]) for task, p in paired.items()}
    intact: dict[str, IntactTask] = {
        task: {"n": n, "score": rounded(real[0, i])} for i, (task, n) in enumerate(counts.items())
    }
    ablations: list[Ablation] = []
    for row, name in enumerate(names, start=1):
        tasks: dict[str, TaskCost] = {
            task: {"n": n, **_cost(real, drawn, row, slice(i, i + 1))}
            for i, (task, n) in enumerate(counts.items())
        }
        ablations.append({"name": name, **_cost(real, drawn, row, slice(None)), "tasks": tasks})
    return {
        "format": ABLATION_FORMAT,
        "chunk": chunk,
        "intact": {"score": rounded(float(mean_over(real[0]))), "tasks": intact},
        "ablations": ablations,
    }


def _cost(real: Array, drawn: Array, row: int, columns: slice) -> Cost:
    """Return an ablation's score and its paired cost, mean over the tasks in `columns`."""
    score = float(mean_over(real[row, columns]))
    # A mean over other tasks than the intact one's would be no difference of the same thing.
    gap = real[0, columns] - real[row, columns]
    spread = (drawn[:, 0, columns] - drawn[:, row, columns]).mean(axis=-1)
    low, high = percentile_interval(spread)
    return {
        "score": rounded(score),
        "cost": rounded(float(gap.mean())),
        "low": rounded(low),
        "high": rounded(high),
    }

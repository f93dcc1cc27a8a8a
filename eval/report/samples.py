"""The qualitative panel: the same question's answers over the stream, with its picture."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from eval.report.data import RunData
from eval.run_files import PredictionLine
from eval.scorers.registry import MOST_CIDER, scorer_of

THUMBNAIL = 168
MOST_TASKS = 12
RIGHT = 0.5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """The same answer in chunks `start` to `end`: its text (None: no answer) and score in 0..1.

    A caption is neither right nor wrong: it has its CIDEr.
    """

    start: int
    end: int
    text: str | None
    score: float
    is_caption: bool = False

    @property
    def chunks(self) -> str:
        """Return the chunks as text, "base" for the model before the stream."""
        first = "base" if self.start == 0 else str(self.start)
        return first if self.start == self.end else f"{first}–{self.end}"  # noqa: RUF001

    @property
    def right(self) -> bool:
        """Tell whether the answer earned at least half the score."""
        return self.text is not None and self.score >= RIGHT

    @property
    def verdict(self) -> str:
        """Return what the answer is worth, in a word: "right", "wrong", "CIDEr 43"."""
        if self.is_caption:
            return cider_text(self.score)
        return "right" if self.right else "wrong"


@dataclass(frozen=True)
class Example:
    """One test question and what the model answered over the stream."""

    task: str
    prompt: str
    gold: str
    picture: str | None
    answers: list[Answer]


def examples(run: RunData) -> list[Example]:
    """Return one example a task, at most `MOST_TASKS`, the most telling question of each.

    Most telling: right answers that were lost again, else learned ones, else the first question.
    """
    shown = [_example(run, task) for task in run.tasks[:MOST_TASKS]]
    return [example for example in shown if example is not None]


def _example(run: RunData, task: str) -> Example | None:
    if run.stream is None:
        return None
    table = run.sample_scores(task)
    chunks = measured_chunks(table)
    if not chunks:
        return None
    chosen = _most_telling(table[chunks])
    lines = {c: _line(run, c, task, chosen) for c in chunks}
    first = lines[chunks[0]]
    return Example(
        task=task,
        prompt=str(first.get("prompt", "")),
        gold=_gold(first),
        picture=thumbnail(run.stream.root, first.get("images") or []),
        answers=_merge(
            [(c, lines[c], float(table[c, chosen])) for c in chunks], is_caption(run, task)
        ),
    )


def is_caption(run: RunData, task: str) -> bool:
    """Tell whether a task's answers are captions: a sample's score is CIDEr-D / 10, no verdict."""
    return run.stream is not None and scorer_of(run.stream, task).sample is None


def cider_text(score: float) -> str:
    """Return what a caption earned as papers print it: "CIDEr 43"."""
    return f"CIDEr {100 * MOST_CIDER * score:.0f}"


def measured_chunks(table: Array) -> list[int]:
    """Return the chunks whose sample scores (chunks + 1, n) are known, 0 being the base model."""
    return [c for c, scores in enumerate(table) if scores.size and np.isfinite(scores).all()]


def _line(run: RunData, chunk: int, task: str, number: int) -> PredictionLine:
    """Return one line of a prediction file that was read before; only that line is parsed."""
    path = run.chunk(chunk) / "predictions" / f"{task}.jsonl"
    # Not splitlines(): an answer may hold U+2028 and its like, which JSON does not escape.
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return cast(PredictionLine, json.loads(lines[number]))


def _most_telling(table: Array) -> int:
    """Return the sample (column) with the most telling course of scores over chunks (rows)."""
    steps = np.diff(table, axis=0)
    lost = np.clip(-steps, 0, None).sum(axis=0)
    learned = np.clip(steps, 0, None).sum(axis=0)
    # One loss after learning tells more than a flicker: losses count up to one.
    return int(np.argmax(2 * np.minimum(lost, 1) * (learned > 0) + np.minimum(learned, 1)))


def _gold(line: PredictionLine) -> str:
    references = line.get("references")
    return str(references[0] if isinstance(references, list) and references else line.get("gold"))


def _merge(course: Sequence[tuple[int, PredictionLine, float]], is_caption: bool) -> list[Answer]:
    merged: list[Answer] = []
    for text, group in groupby(course, lambda each: each[1].get("prediction")):
        same = list(group)
        merged.append(Answer(same[0][0], same[-1][0], text, same[-1][2], is_caption))
    return merged


def thumbnail(folder: Path, images: Sequence[str]) -> str | None:
    """Return the first image as a small data URI, None where it cannot be read."""
    if not images:
        return None
    from PIL import Image

    try:
        with Image.open(folder / images[0]) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=80, optimize=True)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

"""What the newest evaluation answers wrong, with the chunks after which it was right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.charts.figure import Table
from eval.report.data import RunData
from eval.report.numbers import prediction_lines
from eval.report.samples import RIGHT, cider_text, is_caption, measured_chunks, thumbnail
from eval.run_files import PredictionLine
from eval.scorers.answer_text import final_answer

MOST_SHOWN = 240  # wrong answers on the page, shared out over the tasks: each may have a picture
MOST_LABELS, LONGEST_LABEL = 12, 30
OTHER = "another answer"


@dataclass(frozen=True)
class WrongAnswer:
    """A question that is answered wrong now, or a caption, which is neither right nor wrong.

    Attributes:
        right_after: the chunks after which it was answered right, 0 being the base model.
        since: since when it is wrong, in words; of a caption its CIDEr.
    """

    prompt: str
    gold: str
    said: str | None
    picture: str | None
    right_after: list[int]
    since: str


@dataclass(frozen=True)
class TaskAnswers:
    """One task: its wrong answers, those that were right once first, and what stood for what.

    Attributes:
        count: questions.
        wrong: questions that are answered wrong; None of captions, of which those with the lowest
            CIDEr are shown.
        shown: the first of them, as many as the page has room for.
        confusion: right answer by answer given, where there are few and short ones.
    """

    name: str
    chunk: str
    count: int
    wrong: int | None
    shown: list[WrongAnswer]
    confusion: Table | None


def task_answers(run: RunData) -> list[TaskAnswers]:
    """Return what each task's newest evaluation answers wrong, of all tasks that can be read."""
    room = max(MOST_SHOWN // max(len(run.tasks), 1), 4)
    found = [_of_task(run, task, room) for task in run.tasks]
    return [answers for answers in found if answers is not None]


def _of_task(run: RunData, task: str, room: int) -> TaskAnswers | None:
    table = run.sample_scores(task)
    chunks = measured_chunks(table)
    if run.stream is None or not chunks:
        return None
    last = chunks[-1]
    lines = prediction_lines(run, last, task)
    if not lines:
        return None
    captions = is_caption(run, task)
    # No threshold of CIDEr makes a caption right.
    right = np.zeros(table.shape, dtype=bool) if captions else table >= RIGHT
    wrong = [i for i in range(len(lines)) if not right[last, i]]
    wrong.sort(key=lambda i: table[last, i] if captions else -_last_right(right[:, i], chunks))
    shown = [
        WrongAnswer(
            prompt=line["prompt"],
            gold=line["gold"],
            said=line["prediction"],
            picture=thumbnail(run.stream.root, line.get("images") or []),
            right_after=[c for c in chunks if right[c, i]],
            since=cider_text(table[last, i]) if captions else _since(run, right[:, i], chunks),
        )
        for i in wrong[:room]
        for line in [lines[i]]
    ]
    label = run.chunk_label(last)
    if captions:
        return TaskAnswers(task, label, len(lines), None, shown, None)
    return TaskAnswers(task, label, len(lines), len(wrong), shown, confusion(lines))


def _last_right(right: NDArray[np.bool_], chunks: Sequence[int]) -> int:
    return max((c for c in chunks if right[c]), default=-1)


def _since(run: RunData, right: NDArray[np.bool_], chunks: Sequence[int]) -> str:
    known = _last_right(right, chunks)
    if known < 0:
        return "never right"
    lost = next(c for c in chunks if c > known)
    return f"right after {run.chunk_label(known)}, wrong since {run.chunk_label(lost)}"


def confusion(lines: Sequence[PredictionLine]) -> Table | None:
    """Return how often each answer stood for each right one; None for many or long answers.

    Rows are right answers, columns the same answers and `OTHER`; case and what a model thought
    before its answer do not count.
    """

    def plain(text: str) -> str:
        return final_answer(text).strip().rstrip(".").lower()

    golds = Counter(plain(line["gold"]) for line in lines)
    names = [name for name, _ in golds.most_common()]
    if not 2 <= len(names) <= MOST_LABELS or max(map(len, names)) > LONGEST_LABEL:
        return None
    given = Counter((plain(line["gold"]), plain(line["prediction"] or "")) for line in lines)
    rows = []
    for gold in names:
        counts = [given[gold, name] for name in names]
        rows.append([gold, *map(str, [*counts, golds[gold] - sum(counts)])])
    return Table("Right answer (row) and answer given (column)", ["", *names, OTHER], rows)

"""Which chunk answered which task: MR-LoRA's adapters, or a chunk by its keys."""

from __future__ import annotations

import math
from typing import TypedDict

from eval.charts.figure import Figure, Table, colour, percent
from eval.charts.over_chunks import over_chunks
from eval.charts.plots import Series
from eval.report.data import RunData
from eval.routing.router_accuracy import BEFORE, Accuracy, Choices

TITLES = {
    "adapter": "Does the router pick the right adapter?",
    "router": "Do the keys pick the right chunk?",
}
RIGHT = (
    "Dominant chunk: the one so far with most samples of the question's task. Any chunk: any so far"
    " that held the task. By chance: how often a blind choice among the chunks so far would be"
    " right. Tasks that no chunk held yet are left out; the model is given no task."
)
# In the order of `Accuracy.values()`.
NAMES = ("dominant chunk", "any chunk", "dominant, by chance", "any, by chance")
_MEANS = {
    "adapter": "An adapter's stage is its chunk, which stands for its most common instructions.",
    "router": "A question goes to the chunk whose image and text key are nearest: BranchLoRA takes"
    " its router, HiDe-LLaVA gives its LoRA the largest weight.",
}


class ChoicePart(TypedDict):
    """What the page says about choices: a heading, a paragraph, plots and tables."""

    title: str
    lead: str
    figures: list[Figure]
    tables: list[Table]


def choice_part(run: RunData) -> ChoicePart | None:
    """Return title, lead, figures and tables of the choices; None for runs that have none."""
    if not run.choices:
        return None
    chunk = max(run.choices)
    last = run.choices[chunk]
    return {
        "title": TITLES[last.what],
        "lead": f"{_lead(last)} {_MEANS[last.what]} {RIGHT}",
        "figures": [_over_the_stream(run)] if len(run.choices) > 1 else [],
        "tables": [_by_task(last), *([_by_chunk(run)] if len(run.choices) > 1 else [])],
    }


def _lead(last: Choices) -> str:
    total = last.total
    text = f"After chunk {last.chunk} no question had a task that a chunk held."
    if not math.isnan(total.any_chunk):
        dominant, held, dominant_chance, held_chance = map(percent, total.values())
        text = (
            f"After chunk {last.chunk}, {dominant} % of the questions went to the dominant chunk of"
            f" their task (by chance {dominant_chance} %) and {held} % to a chunk that held it (by"
            f" chance {held_chance} %)."
        )
    if before := sum(of_task.get(BEFORE, 0) for of_task in last.chosen.values()):
        text += (
            f" {before:.0f} questions went to what came with start_from, and are in neither share."
        )
    if last.illegal:
        text += f" The router named no adapter for {sum(last.illegal.values())} questions."
    return text


def _over_the_stream(run: RunData) -> Figure:
    chunks = sorted(run.choices)
    totals = [run.choices[chunk].total for chunk in chunks]
    series = [Series(name, [total.values()[i] for total in totals], colour(i))
              for i, name in enumerate(NAMES)]  # fmt: skip
    heading = "Right choices over the stream"
    title = f"Share of questions that went to a right chunk, after each of {len(chunks)} chunks."
    note = "Over all questions whose task a chunk held so far."
    illegal = {"no legal letter": [percent(run.choices[c].illegal_share) for c in chunks]}
    return over_chunks(heading, title, series, chunks, "Right, %",
                       f"{heading}, in percent of the questions", note, illegal)  # fmt: skip


def _by_task(last: Choices) -> Table:
    """Return the choices after the newest chunk that has them, one row a task."""
    head = ["task", "questions", *(f"{name}, %" for name in NAMES), "no legal letter",
            "share by chunk, %"]  # fmt: skip
    rows = []
    for task, chosen in last.chosen.items():
        asked, accuracy = last.questions[task], last.accuracy[task]
        shares = ", ".join(
            f"{c or 'before'}: {percent(n / asked)}" for c, n in chosen.items() if n and asked
        )
        illegal = str(last.illegal.get(task, "–"))  # noqa: RUF001
        rows.append([task, f"{asked:.0f}", *map(percent, accuracy.values()), illegal, shares])
    caption = f"Which chunk's {last.what} each task took after chunk {last.chunk}"
    return Table(caption, head, rows)


def _by_chunk(run: RunData) -> Table:
    """Return both accuracies of every task after every chunk."""
    tasks = list(
        dict.fromkeys(t for chunk in sorted(run.choices) for t in run.choices[chunk].accuracy)
    )
    rows = [
        [f"chunk {chunk}, {name}",
         *(percent(choices.accuracy.get(task, Accuracy()).values()[i]) for task in tasks)]
        for chunk, choices in sorted(run.choices.items())
        for i, name in enumerate(NAMES[:2])
    ]  # fmt: skip
    return Table("Right choices by task and chunk, in percent", ["after", *tasks], rows)

"""Which chunk answered which task: MR-LoRA's adapters, BranchLoRA's routers chosen by keys."""

from __future__ import annotations

import math
from typing import Any

from eval.charts.figure import Figure, Table, both
from eval.charts.lines import Series, line_chart, percent
from eval.charts.svg import colour
from eval.report.data import RunData
from eval.routing.router_accuracy import FIGURES, Choices

TITLES = {
    "adapter": "Does the router pick the right adapter?",
    "router": "Do the keys pick the right router?",
}
RIGHT = (
    "Home: the chunk so far with most samples of the question's task. Held: any chunk so far that"
    " held the task. By lot: how often a blind choice among the chunks so far would be right. Tasks"
    " that no chunk held yet are left out; no task was told to the model."
)
_MEANS = {
    "adapter": "An adapter's stage is its chunk, which stands for its most common instructions.",
    "router": "Each chunk has a router of its own; a question takes that of the chunk whose image"
    " and text key are nearest.",
}


def choice_part(run: RunData) -> dict[str, Any] | None:
    """Return title, lead, figures and tables of the choices; None for runs that have none."""
    if not run.choices:
        return None
    chunk = max(run.choices)
    last = run.choices[chunk]
    return {
        "title": TITLES[last.what],
        "lead": f"{_lead(last)} {_MEANS[last.what]} {RIGHT}",
        "figures": [_course(run)] if len(run.choices) > 1 else [],
        "tables": [_by_task(last), *([_by_chunk(run)] if len(run.choices) > 1 else [])],
    }


def _lead(last: Choices) -> str:
    total = last.total
    text = f"After chunk {last.chunk} no question had a task that a chunk held."
    if not math.isnan(total.home):
        text = (
            f"After chunk {last.chunk}, {percent(total.home)} % of the questions went to the home"
            f" of their task (by lot {percent(total.home_by_lot)} %) and {percent(total.held)} %"
            f" to a chunk that held it (by lot {percent(total.held_by_lot)} %)."
        )
    if last.illegal:
        text += f" The router named no adapter for {sum(last.illegal.values())} questions."
    return text


def _course(run: RunData) -> Figure:
    chunks = sorted(run.choices)
    totals = [run.choices[chunk].total for chunk in chunks]
    series = [Series(name.replace("_", " "), [getattr(t, name) for t in totals], colour(i))
              for i, name in enumerate(FIGURES)]  # fmt: skip
    title = f"Share of questions that went to a right chunk, after each of {len(chunks)} chunks."
    chart = both(
        lambda w: line_chart(title, series, [float(c) for c in chunks], w, "chunk", "Right, %",
                             y_max=1.0, height=220.0)
    )  # fmt: skip
    head = ["after", *(name.replace("_", " ") for name in FIGURES), "no legal letter"]
    rows = [
        [f"chunk {c}", *(percent(getattr(t, name)) for name in FIGURES),
         percent(run.choices[c].illegal_share)]
        for c, t in zip(chunks, totals, strict=True)
    ]  # fmt: skip
    table = Table("Right choices over the stream, in percent of the questions", head, rows)
    legend = [{"name": s.name, "class_": s.class_} for s in series]
    note = "Over all questions whose task a chunk held so far."
    return Figure("Right choices over the stream", chart, [table], note, legend=legend)


def _by_task(last: Choices) -> Table:
    """Return the choices after the newest chunk that has them, one row a task."""
    head = ["task", "questions", "home, %", "by lot, %", "held, %", "by lot, %", "no legal letter",
            "share by chunk, %"]  # fmt: skip
    rows = []
    for task, chosen in last.chosen.items():
        asked, found = last.questions[task], last.judged[task]
        shares = ", ".join(f"{c}: {percent(n / asked)}" for c, n in chosen.items() if n and asked)
        figures = (found.home, found.home_by_lot, found.held, found.held_by_lot)
        illegal = str(last.illegal.get(task, "–"))  # noqa: RUF001
        rows.append([task, f"{asked:.0f}", *map(percent, figures), illegal, shares])
    caption = f"Which chunk's {last.what} each task took after chunk {last.chunk}"
    return Table(caption, head, rows)


def _by_chunk(run: RunData) -> Table:
    """Return home and held of every task after every chunk."""
    tasks = list(
        dict.fromkeys(t for chunk in sorted(run.choices) for t in run.choices[chunk].judged)
    )
    rows = [
        [f"chunk {chunk}, {name}",
         *(percent(getattr(found.judged[t], name)) if t in found.judged else percent(math.nan)
           for t in tasks)]
        for chunk, found in sorted(run.choices.items())
        for name in ("home", "held")
    ]  # fmt: skip
    return Table("Right choices by task and chunk, in percent", ["after", *tasks], rows)

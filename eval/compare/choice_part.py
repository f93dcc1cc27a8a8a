"""How well compared runs chose a chunk for each question: MR-LoRA's adapters, BranchLoRA's keys."""

from __future__ import annotations

import numpy as np

from eval.charts.figure import Figure, Table, both
from eval.charts.lines import Series, line_chart, percent
from eval.charts.svg import colour
from eval.compare.comparison import Comparison
from eval.compare.runs import Method
from eval.metrics import Array, mean_over
from eval.report.routing.choices import NAMES, RIGHT
from eval.routing.router_accuracy import Choices


def choice_figure(found: Comparison) -> Figure | None:
    """Return the share of right choices over the stream; None where no run chose among chunks."""
    chosen = [m for m in found.methods if any(e.run.choices for e in m.entries)]
    if not chosen:
        return None
    chunks = sorted({c for m in chosen for e in m.entries for c in e.run.choices})
    values = {method.name: _to_dominant_chunk(method, chunks) for method in chosen}
    names = [method.name for method in found.methods]
    series = [Series(name, values[name].tolist(), colour(names.index(name))) for name in values]
    title = (
        f"Share of questions that went to the dominant chunk of their task: {', '.join(values)}."
    )
    x = [float(chunk) for chunk in chunks]
    chart = both(
        lambda w: line_chart(title, series, x, w, "chunk", "Dominant chunk, %", y_max=1.0,
                             height=240.0, name_lines=False)
    )  # fmt: skip
    body = [[f"chunk {c}", *(percent(float(v[i])) for v in values.values())]
            for i, c in enumerate(chunks)]  # fmt: skip
    tables = [
        Table("Right choices (dominant chunk), in percent", ["after", *values], body),
        _last(chosen),
    ]
    legend = [{"name": s.name, "class_": s.class_} for s in series]
    note = f"Mean over seeds. {RIGHT}"
    return Figure("Is the right chunk chosen?", chart, tables, note, legend=legend, always=True)


def _to_dominant_chunk(method: Method, chunks: list[int]) -> Array:
    """Return the dominant chunk's share of the questions at `chunks`, mean over seeds."""
    rows = np.full((len(method.entries), len(chunks)), np.nan)
    for row, entry in enumerate(method.entries):
        for chunk, choices in entry.run.choices.items():
            rows[row, chunks.index(chunk)] = choices.total.dominant_chunk
    return mean_over(rows, axis=0)


def _last(methods: list[Method]) -> Table:
    head = ["run", "after", "chosen by", *NAMES, "no legal letter"]
    rows = [
        [method.name_of(entry), *_row(entry.run.choices[max(entry.run.choices)])]
        for method in methods
        for entry in method.entries
        if entry.run.choices
    ]
    return Table("Choice of a chunk by run, in percent of the questions", head, rows)


def _row(choices: Choices) -> list[str]:
    figures = (*choices.total.values(), choices.illegal_share)
    by = {"adapter": "a router adapter", "router": "image and text keys"}[choices.what]
    return [f"chunk {choices.chunk}", by, *map(percent, figures)]

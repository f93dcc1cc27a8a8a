"""compare.html: the tables of a comparison with plots, one self-contained page."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

import numpy as np

from eval import metrics
from eval.charts.figure import Figure, Table, colour, percent
from eval.charts.plots import Bar, Series, heat_map, intervals, legend, line_chart
from eval.compare import tables
from eval.compare.comparison import BASE, Column, Comparison
from eval.compare.routing_part import routing_part
from eval.report.page import composition_chart, fill
from eval.report.tables import composition_table

MOST_COLOURED = 16


def html(found: Comparison) -> str:
    """Return the page of a comparison."""
    return fill("compare.html.j2", page_context(found))


def page_context(found: Comparison) -> dict[str, Any]:
    """Return everything that the template shows, ready for print."""
    return {
        "title": " · ".join(method.name for method in found.methods),
        "lead": _lead(found),
        "sections": [_section(found, *part) for part in _parts(found)],
        "notes": tables.notes(found),
        "stream": _stream(found),
        "mixture": _mixture(found),
        "scores": [f for c in found.columns if c.group == "stream" if (f := _score(found, c))],
        "last": _last(found),
        "tests": _tests(found),
        "routing": routing_part(found),
        "runs": _runs(found),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _lead(found: Comparison) -> str:
    runs = sum(len(method.entries) for method in found.methods)
    streams = {e.run.stream.name for m in found.methods
               for e in m.entries if e.run.stream}  # fmt: skip
    where = ", ".join(sorted(streams)) or "an unknown stream"
    return f"{len(found.methods)} methods in {runs} runs on {where}, {len(found.tasks)} tasks"


def _parts(found: Comparison) -> list[tuple[str, list[Column]]]:
    """Return the tables of the page: as printed, costs apart."""
    parts = []
    for title, columns in tables.sections(found):
        costs = [column for column in columns if column.group == "cost"]
        parts.append((title, [column for column in columns if column.group != "cost"]))
        parts.append(("Costs", costs))
    return [(title, columns) for title, columns in parts if columns]


def _section(found: Comparison, title: str, columns: list[Column]) -> dict[str, Any]:
    rows = []
    for name in found.names:
        cells = [found.cell(name, column.key) for column in columns]
        shown = [
            {"text": _shown(tables.shown(column, cell)), "best": cell.best}
            for column, cell in zip(columns, cells, strict=True)
        ]
        seeds = "" if name == BASE else str(len(found.seeds[name]))
        rows.append({"name": name, "seeds": seeds, "cells": shown})
    return {"title": title, "head": [tables.heading(column) for column in columns], "rows": rows}


def _shown(text: str) -> str:
    return "–" if text == tables.UNKNOWN else text.replace("-", "−")  # noqa: RUF001


def _stream(found: Comparison) -> Figure | None:
    """Return the mean score over the stream, one line a method, mean over its seeds."""
    rows = max((len(e.values) for m in found.methods for e in m.entries), default=0)
    if rows < 2:
        return None
    lines = {method.name: np.full((len(method.entries), rows), np.nan) for method in found.methods}
    for method in found.methods:
        for row, entry in enumerate(method.entries):
            lines[method.name][row, : len(entry.values)] = metrics.mean_over(entry.values)
    means = {name: metrics.mean_over(values, axis=0) for name, values in lines.items()}
    series = [Series(name, values.tolist(), colour(i))
              for i, (name, values) in enumerate(means.items())]  # fmt: skip
    x = [float(chunk) for chunk in range(rows)]
    title = f"Mean score of {len(series)} methods over {rows - 1} chunks."
    chart = line_chart(title, series, x, "chunk", "Mean score, %", y_max=1.0)
    body = [
        ["base model" if c == 0 else f"chunk {c}", *(percent(float(v[c])) for v in means.values())]
        for c in range(rows)
    ]
    table = Table("Mean score after each chunk, in percent", ["after", *means], body)
    note = "Mean over tasks, and over seeds where a method has several. Chunk 0 is the base model."
    return Figure("Mean score over the stream", chart, [table], note, legend=legend(series))


def _mixture(found: Comparison) -> Figure | None:
    """Return what the chunks are made of, where all runs saw the same stream."""
    runs = [entry.run for method in found.methods for entry in method.entries]
    chunks, table = runs[0].composition(), composition_table(runs[0])
    if table is None or any(run.composition() != chunks for run in runs):
        return None
    done = min(run.evaluated for run in runs)
    chart, entries = composition_chart(runs[0], done)
    shown = entries if len(entries) <= MOST_COLOURED else []
    note = "Pale bars: not trained by all."
    return Figure("What the chunks are made of", chart, [table], note, legend=shown)


def _score(found: Comparison, column: Column) -> Figure | None:
    dots = []
    for name in found.names:
        cell = found.cell(name, column.key)
        if math.isfinite(cell.value):
            dots.append(Bar(name, cell.value, *cell.interval))
    if not dots:
        return None
    better = "higher is better" if column.higher_is_better else "lower is better"
    title = f"{column.title} of {len(dots)} methods, in percent; {better}."
    chart = intervals(title, dots, f"{column.title}, % ({better})")
    body = [[b.name, percent(b.value), percent(b.low), percent(b.high)] for b in dots]
    head = ["method", column.title, "interval from", "to"]
    table = Table(f"{column.title} with its 95 % interval, in percent", head, body)
    return Figure(column.title, chart, [table], half=True)


def _last(found: Comparison) -> Figure | None:
    if not found.tasks:
        return None
    names = found.names
    values = np.array(
        [[found.cell(name, f"last/{task}").value for name in names] for task in found.tasks]
    )
    title = f"Last score of {len(found.tasks)} tasks (rows) for {len(names)} methods, in percent."
    chart = heat_map(title, values, found.tasks, names)
    body = [[t, *(percent(float(v)) for v in values[i])] for i, t in enumerate(found.tasks)]
    table = Table("Last score by task, in percent", ["task", *names], body)
    return Figure("Last score by task", chart, [table])


def _tests(found: Comparison) -> Table | None:
    if not found.tests:
        return None
    kinds = {"seeds": "Welch over seeds", "samples": "paired permutation",
             "mcnemar": "McNemar, exact", "none": "none possible"}  # fmt: skip
    titles = {column.key: column.title for column in found.columns}
    body = [
        [titles[t.column], t.leader, t.other, percent(t.difference), kinds.get(t.kind, t.kind),
         _p(t.p), _p(t.adjusted)]
        for t in found.tests
    ]  # fmt: skip
    head = ["score", "leads", "against", "difference, points", "test", "p", "p, Holm"]
    return Table("Tests of every leader against every other method", head, body)


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"  # noqa: RUF001
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _runs(found: Comparison) -> Table:
    body = []
    for method in found.methods:
        for entry in method.entries:
            manifest = entry.run.manifest
            versions, hardware = manifest.versions, manifest.hardware
            gpus = hardware.get("gpus") or []
            machine = (
                ", ".join(map(str, gpus)) if gpus else f"{hardware.get('cores', '?')} CPU cores"
            )
            state = "finished" if entry.run.finished else f"after chunk {entry.run.evaluated}"
            body.append(
                [method.name, entry.run.root.name, str(entry.seed), state,
                 str(manifest.git.get("sha", ""))[:10],
                 f"ms-swift {versions.get('ms-swift', '?')}, torch {versions.get('torch', '?')}",
                 machine]
            )  # fmt: skip
    head = ["method", "run", "seed", "state", "code", "versions", "machine"]
    return Table("The runs behind the methods", head, body)

"""compare.html: a verdict, one figure and one slim table; the rest folded, one file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np

from eval import metrics
from eval.charts.figure import Figure, Table, colour, counted, percent, ratio
from eval.charts.over_chunks import over_chunks
from eval.charts.plots import Bar, Series, heat_map, intervals, legend, small_multiples
from eval.compare import tables, verdict
from eval.compare.comparison import Column, Comparison
from eval.compare.names import printed
from eval.compare.routing_part import routing_part
from eval.compare.runs import Method
from eval.report.page import MOST_COLOURED, composition_chart, fill
from eval.report.tables import code_text, composition_table, machine_text
from eval.significance import SPREADS, mean_of_each, over_runs

_VERSIONS = ("ms-swift", "torch")
OfValues = Callable[[metrics.Array], metrics.Array]  # a[chunk, task] -> one number a chunk
_TESTS = {
    "paired": "paired t over runs",
    "welch": "Welch over runs",
    "samples": "paired permutation of samples",
    "mcnemar": "McNemar, exact",
    "none": "none possible",
}


@dataclass(frozen=True)
class Part:
    """One folded part of the page: heading, text, figures and open tables."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def html(comparison: Comparison, choice: tables.Choice = tables.ALL) -> str:
    """Return the page of a comparison."""
    return fill("compare.html.j2", page_context(comparison, choice))


def page_context(comparison: Comparison, choice: tables.Choice) -> dict[str, Any]:
    """Return everything that the template shows, ready for print."""
    return {
        "title": _title(comparison),
        "lead": _lead(comparison),
        "verdict": [_minus(sentence) for sentence in verdict.sentences(comparison)],
        "stream": _stream(comparison, choice.spread),
        "slim": _slim(comparison, choice),
        "plus_minus": tables.plus_minus(comparison, choice.spread),
        "provenance": tables.provenance(comparison),
        "parts": [part for part in _parts(comparison, choice) if part.figures or part.tables],
        "notes": tables.notes(comparison, choice),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _title(comparison: Comparison) -> str:
    names = [printed(method.name) for method in comparison.methods]
    return " and ".join(names) if len(names) <= 2 else f"{len(names)} methods compared"


def _lead(comparison: Comparison) -> str:
    methods = counted(len(comparison.methods), "method")
    runs, tasks = counted(len(comparison.runs), "run"), counted(len(comparison.tasks), "task")
    return f"{methods} in {runs} on {comparison.streams or 'an unknown stream'}, {tasks}"


def _slim(comparison: Comparison, choice: tables.Choice) -> dict[str, Any]:
    """Return the first table: name, what data is kept, n, and each cell as value, ± and mark."""
    first = tables.sections(comparison, choice)[0]
    kept = {printed(method.name): method.keeps_data for method in comparison.methods}
    rows = [
        {"name": name, "kept": kept.get(name, ""), "n": _shown(n),
         "cells": [(*_split(text), best) for text, best in cells]}
        for name, n, cells in first.rows
    ]  # fmt: skip
    return {"head": first.head, "rows": rows}


def _split(text: str) -> tuple[str, str]:
    value, _, half = text.partition(" ± ")
    return _shown(value), f"± {half}" if half else ""


def _shown(text: str) -> str:
    return "–" if text == tables.UNKNOWN else _minus(text)  # noqa: RUF001


def _minus(text: str) -> str:
    """Return a text whose numbers have a real minus sign, and whose "p = 0.01" is not parted."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"\bp ([=<]) (?=\d)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def _parts(comparison: Comparison, choice: tables.Choice) -> list[Part]:
    others = tables.sections(comparison, tables.Choice(choice.spread))[1:]
    by_title = {section.title: section for section in others}
    behind = [s for s in others if s.title.startswith("95 %")]
    headline = [c for c in comparison.columns if c.group == "headline"]
    more = by_title.get("More scores over the stream")
    costs = by_title.get("Costs")
    unrouted, routing = routing_part(comparison)
    by_task = [_turned(by_title[title]) for title in ("Last, by task", tables.FORM_BY_TASK)
               if title in by_title]  # fmt: skip
    form = [_table(section) for section in others if section.title == tables.FORM_TITLE]
    published = tables.published_sections(comparison, choice.published) if choice.published else []
    return [
        Part("intervals", "Values and intervals",
             ["Large dots: means; lines: 95 % intervals (over runs, or over test samples where n is"
              " 1); small dots: single runs. Overlapping intervals can still differ beyond doubt:"
              " the tests are paired."],
             [f for c in headline if (f := _score(comparison, c))], [_table(s) for s in behind]),
        Part("more", "More scores over the stream", tables=[_table(more)] if more else []),
        Part("tasks", "Task by task", figures=_by_task(comparison), tables=by_task + form),
        Part("published", "Published numbers, not run here", tables=[_table(s) for s in published]),
        Part("tests", "Tests", tables=_tests(comparison)),
        Part("costs", "Costs", tables=[_table(costs)] if costs else []),
        Part("mixture", "What the chunks are made of", figures=_mixture(comparison)),
        Part("routing", "Routing", unrouted, routing),
        _runs(comparison),
    ]  # fmt: skip


def _table(section: tables.Section) -> Table:
    rows = [[name, _shown(n), *(_mark(cell) for cell in cells)] for name, n, cells in section.rows]
    return Table(section.title, ["method", "n", *section.head], rows)


def _turned(section: tables.Section) -> Table:
    """Return a table with the tasks below each other: there are more of them than methods."""
    rows = [[task.removesuffix(" [%]"), *(_mark(cells[i]) for _, _, cells in section.rows)]
            for i, task in enumerate(section.head)]  # fmt: skip
    head = ["task", *(name for name, _, _ in section.rows)]
    return Table(f"{section.title}, in percent", head, rows)


def _mark(cell: tuple[str, bool]) -> str:
    return f"{_shown(cell[0])} ★" if cell[1] else _shown(cell[0])


def _stream(comparison: Comparison, spread: str) -> Figure | None:
    """Return the mean score over the stream, one line a method with its band over runs."""
    rows = comparison.rows
    if rows < 2:
        return None
    series = method_lines(comparison, metrics.mean_over, spread)
    note = "Mean over tasks and runs. Chunk 0 is the base model."
    if any(len(s.band[0]) for s in series):
        note += f" Bands: {SPREADS[spread]}."
    title = f"Mean score of {len(series)} methods over {rows - 1} chunks."
    caption = "Mean score after each chunk, in percent"
    return over_chunks("Mean score over the stream", title, series, range(rows), "Mean score, %",
                       caption, note, height=300.0, from_zero=False)  # fmt: skip


def method_lines(comparison: Comparison, of_values: OfValues, spread: str) -> list[Series]:
    """Return each method's line over the chunks: mean over its runs, and the band around it."""
    return [
        _method_line(method, i, comparison.rows, of_values, spread)
        for i, method in enumerate(comparison.methods)
    ]


def _method_line(method: Method, index: int, rows: int, of_values: OfValues, spread: str) -> Series:
    lines = np.full((len(method.entries), rows), np.nan)
    for row, entry in enumerate(method.entries):
        lines[row, : len(entry.values)] = of_values(entry.values)
    draws = [mean_of_each(values, method.draws) for values in lines.T.tolist()]
    means = metrics.mean_over(np.array(draws), axis=1)
    half = np.array([over_runs(values).half(spread) for values in draws])
    known = np.isfinite(half).any()
    # A score is from 0 to 1: no band lies outside.
    edges = (np.clip(edge, 0, 1).tolist() for edge in (means - half, means + half))
    band = tuple(edges) if known else ((), ())
    return Series(printed(method.name), means.tolist(), colour(index), band)


def column_of(column: int, values: metrics.Array) -> metrics.Array:
    """Return one task's scores after each chunk."""
    return np.asarray(values[:, column])


def _by_task(comparison: Comparison) -> list[Figure]:
    """Return every task over the stream, small, and the last scores as a map."""
    names = comparison.names
    values = np.array(
        [
            [comparison.cell(name, f"last/{task}").value for name in names]
            for task in comparison.tasks
        ]
    )
    title = (
        f"Last score of {len(comparison.tasks)} tasks (rows) for {len(names)} methods, in percent."
    )
    chart = heat_map(title, values, comparison.tasks, [printed(name) for name in names])
    body = [[t, *(percent(float(v)) for v in values[i])] for i, t in enumerate(comparison.tasks)]
    head = ["task", *map(printed, names)]
    last = Figure("Last score", chart, [Table("Last score by task, in percent", head, body)])
    rows = comparison.rows
    if rows < 3:
        return [last]
    panels = [
        (task, method_lines(comparison, partial(column_of, column), "std"))
        for column, task in enumerate(comparison.tasks)
    ]
    title = (
        f"Score of {len(comparison.tasks)} tasks over {rows - 1} chunks for {len(names)} methods."
    )
    small = small_multiples(title, panels, rows)
    body = [[task, s.name, *(percent(float(v)) for v in s.values)]
            for task, lines in panels for s in lines]  # fmt: skip
    head = ["task", "method", "base", *map(str, range(1, rows))]
    table = Table("Score by task after each chunk, in percent", head, body)
    note = "Bands: one standard deviation over runs, where there are several."
    return [Figure("Score over the stream, %", small, [table], note, legend=legend(panels[0][1])),
            last]  # fmt: skip


def _mixture(comparison: Comparison) -> list[Figure]:
    """Return what the chunks are made of, where all runs saw the same stream."""
    runs = comparison.runs
    chunks, table = runs[0].composition(), composition_table(runs[0])
    if table is None or any(run.composition() != chunks for run in runs):
        return []
    done = min(run.evaluated for run in runs)
    chart, entries = composition_chart(runs[0], done)
    shown = entries if len(entries) <= MOST_COLOURED else []
    note = "" if done >= len(chunks) else "Outlines: not trained by all."
    return [Figure("Share of each task in the chunks", chart, [table], note, legend=shown)]


def _score(comparison: Comparison, column: Column) -> Figure | None:
    dots = []
    for name in comparison.names:
        cell = comparison.cell(name, column.key)
        if math.isfinite(cell.value):
            single = cell.values if 1 < len(cell.values) <= tables.MOST_POINTS else ()
            dots.append(Bar(printed(name), cell.value, *cell.interval, points=single))
    if not dots:
        return None
    better = "higher is better" if column.higher_is_better else "lower is better"
    title = f"{column.title} of {len(dots)} methods, in percent; {better}."
    chart = intervals(title, dots, f"{column.title}, % ({better})")
    body = [[b.name, percent(b.value), percent(b.low), percent(b.high)] for b in dots]
    head = ["method", column.title, "interval from", "to"]
    table = Table(f"{column.title} with its 95 % interval, in percent", head, body)
    return Figure(column.title, chart, [table], half=True)


def _tests(comparison: Comparison) -> list[Table]:
    """Return the tests of scores over the stream; those by task stand in tests.csv."""
    shown = {c.key for c in comparison.columns if c.group != "task"}
    listed = [
        (
            "Tests of every leader against every other method; tests.csv has those by task, too",
            [test for test in comparison.tests if test.column in shown],
        ),
        ("The same among the methods that keep no past data", comparison.without_data),
    ]
    titles = {column.key: column.title for column in comparison.columns}
    head = ["score", "leads", "against", "difference, points", "test", "p", "p, Holm"]
    return [
        Table(caption, head, [
            [titles[t.column], printed(t.leader), printed(t.other), percent(t.difference),
             _TESTS[t.kind], _p(t.p), _p(t.adjusted)]
            for t in tests
        ])
        for caption, tests in listed if tests
    ]  # fmt: skip


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else ratio(value)


def _runs(comparison: Comparison) -> Part:
    """Return the runs; what is the same of all of them stands above the table."""
    head = ["method", "run", "seed", "stream seed", "state", "commit", "machine", "versions"]
    rows = []
    for method in comparison.methods:
        for entry in method.entries:
            manifest = entry.run.manifest
            versions = [f"{name} {manifest.versions.get(name, '?')}" for name in _VERSIONS]
            state = "finished" if entry.run.finished else f"after chunk {entry.run.evaluated}"
            stream, seed = ("–" if n is None else str(n) for n in entry.replicate)  # noqa: RUF001
            rows.append(
                [printed(method.name), entry.run.folder, seed, stream, state,
                 code_text(manifest.git), machine_text(manifest.hardware), ", ".join(versions)]
            )  # fmt: skip
    kept = [i for i, cells in enumerate(zip(*rows, strict=True)) if i < 3 or len(set(cells)) > 1]
    same = [f"{name}: {rows[0][i]}" for i, name in enumerate(head) if i not in kept]
    rows = [[row[i] for i in kept] for row in rows]
    table = Table("The runs behind the methods", [head[i] for i in kept], rows)
    return Part("runs", "The runs", [f"Of all runs: {'; '.join(same)}."] if same else [],
                tables=[table])  # fmt: skip

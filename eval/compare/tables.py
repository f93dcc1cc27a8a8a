"""A comparison as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from eval.compare.comparison import BASE, Cell, Column, Comparison
from eval.report.data import small_captions
from eval.report.tables import form_only

UNKNOWN = "-"
MOST_GAPS = 20
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {mark: f"\\{mark}" for mark in "&%$#_{}"}


def shown(column: Column, cell: Cell, between: str = " ± ") -> str:
    """Return a cell's text: scores in percent with half their interval, costs in their unit."""
    if not math.isfinite(cell.value):
        return UNKNOWN
    if column.group == "cost":
        return _cost(column, cell.value)
    text = _percent(cell.value)
    half = cell.interval.half_width
    return f"{text}{between}{100 * half:.1f}" if math.isfinite(half) else text


def _percent(value: float) -> str:
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def _cost(column: Column, value: float) -> str:
    digits = {"M": 3, "s": 3, "x": 2, "GiB": 2}[column.unit]
    return f"{value:.{digits}f}"


def heading(column: Column) -> str:
    """Return a column's heading with its unit."""
    task = column.key.partition("/")[2]
    return f"{task or column.title} [{column.unit}]"


def sections(found: Comparison) -> list[tuple[str, list[Column]]]:
    """Return the tables that are printed: scores over the stream with costs, then Last by task.

    Cost columns that no run recorded are left out; the CSV has every column.
    """
    stream = [c for c in found.columns if c.group == "stream"]
    costs = [c for c in found.columns if c.group == "cost" and _known(found, c)]
    tasks = [c for c in found.columns if c.group == "task" and c.key.startswith("last/")]
    return [("Over the stream", stream + costs), ("Last, by task", tasks)]


def _known(found: Comparison, column: Column) -> bool:
    return any(math.isfinite(found.cell(name, column.key).value) for name in found.names)


def notes(found: Comparison) -> list[str]:
    """Return what a reader must know: what the intervals and marks mean, and what is missing."""
    counts = {len(seeds) for seeds in found.seeds.values()}
    source = "over seeds (t)" if min(counts) > 1 else "over test samples (bootstrap)"
    if len(counts) > 1 and 1 in counts:
        source = "over seeds (t) where a method has several, else over test samples (bootstrap)"
    lines = [f"±: half of the 95 % interval, {source}."]
    if 1 in counts:
        alone = ", ".join(name for name, seeds in found.seeds.items() if len(seeds) == 1)
        lines.append(f"One seed only ({alone}): how much seeds differ is not in its interval.")
    lines.append(
        "Marked: ahead of every other method, each difference with p <= 0.05 after Holm's"
        " correction (Welch over seeds; else paired on the same test samples)."
    )
    for method in found.methods:
        runs = [(method.name_of(entry), entry.run) for entry in method.entries]
        lines += [f"{name}: {text}" for name, run in runs for text in small_captions(run)]
    if forms := _form_only(found):
        lines.append(
            "Lost in form only (a score blind to case and format minus the official one, mean of"
            f" all tasks after the last chunk): {forms}."
        )
    lines += [f"{gap.what}: {gap.why}" for gap in found.gaps[:MOST_GAPS]]
    if len(found.gaps) > MOST_GAPS:
        lines.append(f"... and {len(found.gaps) - MOST_GAPS} more gaps")
    return lines


def _form_only(found: Comparison) -> str:
    """Return what the answers of each run lost in form alone; "" where none has blind scores."""
    gaps = [(m.name_of(e), form_only(e.run).values()) for m in found.methods for e in m.entries]
    return ", ".join(f"{name} {_percent(sum(gap) / len(gap))} %" for name, gap in gaps if gap)


def _rows(found: Comparison, columns: Sequence[Column], best: tuple[str, str]) -> list[list[str]]:
    rows = []
    for name in found.names:
        cells = [found.cell(name, column.key) for column in columns]
        texts = [shown(column, cell) for column, cell in zip(columns, cells, strict=True)]
        marked = [f"{best[0]}{t}{best[1]}" if c.best else t
                  for t, c in zip(texts, cells, strict=True)]  # fmt: skip
        rows.append([name, _seeds(found, name), *marked])
    return rows


def _seeds(found: Comparison, name: str) -> str:
    return UNKNOWN if name == BASE else str(len(found.seeds[name]))


def text(found: Comparison) -> str:
    """Return aligned plain text; the best is marked with a star."""
    parts = []
    for title, columns in sections(found):
        head = ["method", "seeds", *(heading(column) for column in columns)]
        rows = [head, *_rows(found, columns, ("", " *"))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
                 for row in rows]  # fmt: skip
        parts.append("\n".join([title, *lines]))
    return "\n\n".join([*parts, "\n".join(notes(found))]) + "\n"


def markdown(found: Comparison) -> str:
    """Return Markdown tables; the best is bold."""
    parts = []
    for title, columns in sections(found):
        head = ["method", "seeds", *(heading(column) for column in columns)]
        body = _rows(found, columns, ("**", "**"))
        rows = [head, ["---"] * len(head), *([_cell_of(c) for c in row] for row in body)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(found))]) + "\n"


def _cell_of(value: str) -> str:
    return value.replace("|", "\\|")


def latex(found: Comparison) -> str:
    """Return LaTeX tables (package booktabs); the best is bold."""
    parts = ["% needs \\usepackage{booktabs}"]
    for title, columns in sections(found):
        head = " & ".join(["Method", "Seeds", *(escape(heading(c)) for c in columns)])
        lines = [f"% {title}", f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}", "\\toprule"]
        lines += [f"{head} \\\\", "\\midrule"]
        lines += [" & ".join(_latex_row(found, name, columns)) + " \\\\" for name in found.names]
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    parts.append("\n".join(f"% {note}" for note in notes(found)))
    return "\n\n".join(parts) + "\n"


def _latex_row(found: Comparison, name: str, columns: Sequence[Column]) -> list[str]:
    row = [escape(name), "--" if name == BASE else _seeds(found, name)]
    for column in columns:
        cell = found.cell(name, column.key)
        value = shown(column, cell, r" \pm ")
        if value == UNKNOWN:
            row.append("--")
        else:
            row.append(f"$\\mathbf{{{value}}}$" if cell.best else f"${value}$")
    return row


def escape(value: str) -> str:
    """Return text in which LaTeX sees no commands."""
    return "".join(_LATEX.get(letter, letter) for letter in value)


def as_csv(found: Comparison) -> str:
    """Return one line a method and column: value, interval, seeds, mark; full precision.

    What the other tables show in percent stands here as the fraction that it is.
    """
    rows: list[list[Any]] = [["method", "column", "unit", "value", "low", "high", "runs", "best"]]
    for name in found.names:
        for column in found.columns:
            cell = found.cell(name, column.key)
            numbers = [_number(n) for n in (cell.value, *cell.interval)]
            unit = "fraction" if column.unit == "%" else column.unit
            rows.append([name, column.key, unit, *numbers, cell.seeds, int(cell.best)])
    return _csv(rows)


def tests_csv(found: Comparison) -> str:
    """Return one line a test: the leader of a column against another method."""
    rows: list[list[Any]] = [["column", "leader", "other", "difference", "kind", "p", "adjusted"]]
    for test in found.tests:
        numbers = [_number(test.difference), test.kind, _number(test.p), _number(test.adjusted)]
        rows.append([test.column, test.leader, test.other, *numbers])
    return _csv(rows)


def _number(value: float) -> str:
    return "" if not math.isfinite(value) else repr(float(value))


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()

"""A comparison as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any

from data_prep.files import a_few
from eval.charts.figure import counted, percent
from eval.compare.comparison import BASE, Cell, Column, Comparison
from eval.compare.names import printed
from eval.compare.runs import Replicate
from eval.metrics import SCORE
from eval.published import MARKS, read_published
from eval.report.tables import (
    FORM,
    caption_note,
    code_text,
    form_losses,
    machine_text,
    small_captions,
)
from eval.significance import ONE_RUN, SPREADS

UNKNOWN, WIDTH = "-", 100
FORM_TITLE = "Form or knowledge: scores blind to case and format, mean of all tasks"
FORM_BY_TASK = "Last, blind to case and format, by task"
MOST_GAPS = 20
MOST_POINTS = 5  # so few values say more than their interval
VALUES_TOO = ", and the values of the runs"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {mark: f"\\{mark}" for mark in "&%$#_{}"}


@dataclass(frozen=True)
class Choice:
    """What a reader chose: what follows ±, the columns (none: all), published numbers."""

    spread: str = "std"
    columns: tuple[Column, ...] = ()
    published: str = ""


ALL = Choice()


@dataclass(frozen=True)
class Section:
    """One table: its title, heads, and rows of (method, n, cells); a cell is text and mark."""

    title: str
    head: list[str]
    rows: list[tuple[str, str, list[tuple[str, bool]]]]


def shown(column: Column, cell: Cell, spread: str) -> str:
    """Return a cell's text: scores in percent with their spread, costs in their unit."""
    if not math.isfinite(cell.value):
        return UNKNOWN
    if column.group == "cost":
        return f"{cell.value:.{3 if column.unit in ('M', 's') else 2}f}"
    half = cell.spread.half(spread)
    text = _percent(cell.value)
    return f"{text} ± {_percent(half)}" if math.isfinite(half) else text


def _percent(value: float) -> str:
    return percent(value).replace("\N{MINUS SIGN}", "-") if math.isfinite(value) else UNKNOWN


def heading(column: Column) -> str:
    """Return a column's heading with its unit."""
    task = column.key.partition("/")[2]
    title = f"{column.title.partition(':')[0]}, {task}" if task else column.title
    return f"{title} [{column.unit}]"


def sections(comparison: Comparison, choice: Choice) -> list[Section]:
    """Return the tables: headline scores, their intervals and values, more scores, costs, tasks.

    Chosen columns take the place of all of them. Columns that nothing is known of are left out;
    the CSV has every column.
    """
    known = [column for column in comparison.columns
             if any(math.isfinite(comparison.cell(name, column.key).value)
                    for name in comparison.names)]  # fmt: skip
    first = list(choice.columns) or [c for c in known if c.group == "headline"]
    parts = [_section(comparison, "Scores", first, choice.spread)]
    scores = [column for column in first if column.group != "cost"]
    if any(comparison.n(name) > 1 for name in comparison.names) and scores:
        parts.append(_behind(comparison, scores))
    if choice.published:
        parts += published_sections(comparison, choice.published)
    if choice.columns:
        return parts
    groups = {
        "More scores over the stream": [c for c in known if c.group == "stream"],
        "Costs": [c for c in known if c.group == "cost"],
        "Last, by task": [c for c in known if c.key.startswith("last/")],
    }
    parts += [_section(comparison, t, c, choice.spread) for t, c in groups.items() if c]
    return parts + form_sections(comparison)


def _section(comparison: Comparison, title: str, columns: list[Column], spread: str) -> Section:
    rows = []
    for name in comparison.names:
        cells = [(column, comparison.cell(name, column.key)) for column in columns]
        texts = [(shown(column, cell, spread), cell.best) for column, cell in cells]
        rows.append((printed(name), runs_of(comparison, name), texts))
    heads = [heading(column) for column in columns]
    if all(column.group == "task" for column in columns):
        heads = [head.partition(", ")[2] for head in heads]
    return Section(title, heads, rows)


def _behind(comparison: Comparison, columns: list[Column]) -> Section:
    """Return the 95 % interval of each mean over runs, and the runs' values where they are few."""
    rows = []
    for name in (name for name in comparison.names if comparison.n(name) > 1):
        cells = [comparison.cell(name, column.key) for column in columns]
        rows.append((printed(name), runs_of(comparison, name), [(points(c), False) for c in cells]))
    title = f"95 % interval of the mean over runs (t){VALUES_TOO}"
    return Section(title, [heading(column) for column in columns], rows)


def form_sections(comparison: Comparison) -> list[Section]:
    """Return the last scores blind to case and format beside the official ones, and by task.

    Means over runs; none where no predictions have blind scores.
    """
    means, by_task = [], []
    for method in comparison.methods:
        losses = [form_losses(entry.run, entry.rows) for entry in method.entries]
        every = [each[task] for each in losses for task in comparison.tasks if task in each]
        blind = [[each[task][1] for each in losses if task in each] for task in comparison.tasks]
        who = printed(method.name), runs_of(comparison, method.name)
        if every:
            means.append((*who, [(_percent(fmean(c)), False) for c in zip(*every, strict=True)]))
            cells = [_percent(fmean(values)) if values else UNKNOWN for values in blind]
            by_task.append((*who, [(cell, False) for cell in cells]))
    heads = [f"{name} [%]" for name in FORM]
    both = [Section(FORM_TITLE, heads, means), Section(FORM_BY_TASK, comparison.tasks, by_task)]
    return both if means else []


def published_sections(comparison: Comparison, name: str) -> list[Section]:
    """Return what papers print for a benchmark beside what the same methods have here.

    Where sources differ, the range of their values stands there, with every source.

    Raises:
        ValueError: nothing is known under this name.
    """
    title, printed_tables = read_published(name)
    sections = []
    for key in dict.fromkeys(table.score for table in printed_tables):
        listed = [table for table in printed_tables if table.score == key]
        score, rows = SCORE[key].title, []
        for method in dict.fromkeys(m for table in listed for m in table.values):
            own = [table for table in listed if method in table.values]
            of_source = [[t for t in own if t.source == s] for s in {t.source: 0 for t in own}]
            # What one source prints of several backbones is no range: a row for each.
            for group in zip_longest(*of_source):
                values = [(t, t.values[method][-1]) for t in group if t is not None]
                ends = [f"{end(value for _, value in values):.2f}" for end in (min, max)]
                sources = "; ".join(f"{t.source}, {t.backbone} [{t.read}]" for t, _ in values)
                cells = [" to ".join(dict.fromkeys(ends)), _here(comparison, method, key), sources]
                rows.append((method, UNKNOWN, [(cell, False) for cell in cells]))
        head = [f"{score}, published, not run here [%]", f"{score}, here [%]", "source"]
        sections.append(Section(f"{title}: {score}, published by source, not run here", head, rows))
    for table in (table for table in printed_tables if table.tasks):
        rows = [(method, UNKNOWN, [(f"{value:.2f}", False) for value in values])
                for method, values in table.values.items()]  # fmt: skip
        heading = f"{title} by task, published, not run here: {table.source}, {table.backbone}"
        sections.append(Section(heading, [*table.tasks, "mean"], rows))
    return sections


def _here(comparison: Comparison, method: str, key: str) -> str:
    """Return the score here of the method with this printed name; a dash where there is none."""
    # "Replay" is our "Replay (ER)", and "StrLoRA" not our "StrLoRA (signed)".
    same = re.compile(rf"{re.escape(method)}(?: \([A-Z]+\))?")
    ours = (name for name in comparison.names if same.fullmatch(printed(name)))
    value = comparison.cell(next(ours, ""), key).value
    return _percent(value) if math.isfinite(value) else UNKNOWN


def points(cell: Cell) -> str:
    """Return "[73.1, 78.1] 75.1 76.2 75.5": interval of the mean, and the values where few."""
    if cell.spread.over != "runs":
        return UNKNOWN
    values = cell.values if len(cell.values) <= MOST_POINTS else ()
    ends = f"[{_percent(cell.interval.low)}, {_percent(cell.interval.high)}]"
    return " ".join([ends, *map(_percent, values)])


def runs_of(comparison: Comparison, name: str) -> str:
    """Return how many draws stand behind a method's means; a dash for the base model."""
    return UNKNOWN if name == BASE else str(comparison.n(name))


def plus_minus(comparison: Comparison, spread: str) -> str:
    """Return what ± means in the tables."""
    counts = {comparison.n(name) for name in comparison.seeds}
    alone = f"{ONE_RUN[spread]}; how much seeds differ is not in it"
    if counts == {1}:
        return f"±: {alone}, since every method has one run (n = 1)."
    of_one = f"; where n = 1, {alone}" if 1 in counts else ""
    return f"±: {SPREADS[spread]}{of_one}."


def provenance(comparison: Comparison) -> str:
    """Return n with the seeds, the machines and the commits behind the numbers."""
    runs = comparison.runs
    machines = "; ".join(dict.fromkeys(machine_text(run.manifest.hardware) for run in runs))
    commits = "; ".join(dict.fromkeys(code_text(run.manifest.git) for run in runs))
    groups: dict[str, list[str]] = {}
    for name, seeds in comparison.seeds.items():
        groups.setdefault(_seeds(seeds), []).append(printed(name))
    listed = "; ".join(
        text if len(groups) == 1 else f"{', '.join(names)}: {text}"
        for text, names in groups.items()
    )
    return f"n: {listed}. Machine: {machines}. Commit: {commits}."


def _seeds(pairs: Sequence[Replicate]) -> str:
    streams, runs = (
        [str(seed) for seed in dict.fromkeys(pair[i] for pair in pairs)] for i in (0, 1)
    )
    text = f"{counted(len(pairs), 'run')}, seed{'s' * (len(runs) > 1)} {', '.join(runs)}"
    if streams != ["None"]:
        text += f", stream seed{'s' * (len(streams) > 1)} {', '.join(streams)}"
    if 1 < len(streams) < len(pairs):
        text += " (those of one stream count as one, by their mean)"
    return text


def notes(comparison: Comparison, choice: Choice = ALL) -> list[str]:
    """Return what a reader must know beside ±: what marks mean, and what is missing."""
    lines = [
        "Marked: ahead of every other method, each difference with p <= 0.05 after Holm's"
        " correction (over runs: paired where methods share seeds, else Welch; with one run: paired"
        " on the same test samples)."
    ]
    if choice.published:
        marks = ", ".join(f"[{mark}] {words}" for mark, words in MARKS.items())
        here = comparison.streams or "not known"
        lines.append(
            f"Published numbers were not run here (the stream here: {here}), and other protocols"
            f" give other numbers: {marks}."
        )
        known = read_published(choice.published)[1]
        lines += dict.fromkeys(f"{t.source}: {t.protocol}." for t in known)
    lines += [
        f"{printed(m.name)}: {preset}."
        for m in comparison.methods
        if (preset := m.entries[0].run.manifest.preset) and f"({preset}" not in m.name
    ]
    lines += _small_captions(comparison)
    groups: dict[str, list[str]] = {}
    for gap in comparison.gaps:
        groups.setdefault(gap.why, []).append(gap.what)
    gaps = [f"{a_few(what)}: {why}" for why, what in groups.items()]
    more = [f"... and {len(gaps) - MOST_GAPS} more gaps"] if len(gaps) > MOST_GAPS else []
    return [*lines, *gaps[:MOST_GAPS], *more]


def _small_captions(comparison: Comparison) -> list[str]:
    by_task: dict[str, dict[str, list[float]]] = {}
    for method in comparison.methods:
        for entry in method.entries:
            for task, chrf in small_captions(entry.run).items():
                by_task.setdefault(task, {}).setdefault(printed(method.name), []).append(chrf)
    of = {task: run for run in comparison.runs for c, task in run.scored if c == run.evaluated}
    return [
        caption_note(of[task], task, "; ".join(f"{n} {_percent(fmean(v))}" for n, v in row.items()))
        for task, row in by_task.items() if task in comparison.tasks
    ]  # fmt: skip


def text(comparison: Comparison, choice: Choice = ALL, verdict: Sequence[str] = ()) -> str:
    """Return the verdict and aligned plain text; the best is marked with a star."""
    above = [*verdict, plus_minus(comparison, choice.spread), provenance(comparison)]
    parts = [_wrapped(above)]
    for part in sections(comparison, choice):
        rows = [["method", "n", *part.head], *_marked(part, "", " *")]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        parts.append("\n".join([part.title, *lines]))
    return "\n\n".join([*parts, _wrapped(notes(comparison, choice))]) + "\n"


def _wrapped(lines: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def _marked(part: Section, before: str, after: str) -> list[list[str]]:
    return [
        [name, n, *(f"{before}{text}{after}" if best else text for text, best in cells)]
        for name, n, cells in part.rows
    ]


def markdown(comparison: Comparison, choice: Choice = ALL) -> str:
    """Return Markdown tables; the best is bold."""
    parts = [f"{plus_minus(comparison, choice.spread)} {provenance(comparison)}"]
    for part in sections(comparison, choice):
        head = ["method", "n", *part.head]
        body = [[c.replace("|", "\\|") for c in row] for row in _marked(part, "**", "**")]
        lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
        parts.append("\n".join([f"**{part.title}**", "", *lines]))
    listed = "\n".join(f"- {note}" for note in notes(comparison, choice))
    return "\n\n".join([*parts, listed]) + "\n"


def latex(comparison: Comparison, choice: Choice = ALL) -> str:
    """Return LaTeX tables (package booktabs); the best is bold where the tests say so.

    Of a mean over runs stands the interval alone: with the values a table is wider than a page.
    """
    parts = ["% needs \\usepackage{booktabs}"]
    for part in sections(comparison, choice):
        head = " & ".join(["Method", "$n$", *map(escape, part.head)])
        kinds = "".join("p{5cm}" if name == "source" else "r" for name in part.head)
        title = part.title.removesuffix(VALUES_TOO)
        lines = [f"% {title}", f"\\begin{{tabular}}{{lr{kinds}}}", "\\toprule"]
        lines += [f"{head} \\\\", "\\midrule"]
        for name, n, cells in part.rows:
            row = [escape(name), "--" if n == UNKNOWN else n, *(_math(t, b) for t, b in cells)]
            lines.append(" & ".join(row) + " \\\\")
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    below = plus_minus(comparison, choice.spread), provenance(comparison)
    parts.append("\n".join(f"% {note}" for note in (*below, *notes(comparison, choice))))
    return "\n\n".join(parts) + "\n"


def _math(value: str, best: bool) -> str:
    if value == UNKNOWN:
        return "--"
    if not value[0].isdigit() and value[0] not in "[-":  # words
        return escape(value)
    if " to " in value:  # a range
        return "--".join(f"${end}$" for end in value.split(" to "))
    value = value.partition("]")[0] + "]" if "[" in value else value.replace(" ± ", r" \pm ")
    return f"$\\mathbf{{{value}}}$" if best else f"${value}$"


def escape(value: str) -> str:
    """Return text in which LaTeX sees no commands."""
    return "".join(_LATEX.get(letter, letter) for letter in value)


def as_csv(comparison: Comparison) -> str:
    """Return one line a method and column: value, spread, values by run, mark; full precision.

    What the other tables show in percent stands here as the fraction that it is.
    """
    head = ["method", "column", "unit", "value", "std", "sem", "ci95_low", "ci95_high", "over"]
    rows: list[list[Any]] = [[*head, "n", "values", "best"]]
    for name in comparison.names:
        for column in comparison.columns:
            cell = comparison.cell(name, column.key)
            spread = cell.spread
            numbers = map(_number, (cell.value, spread.std, spread.sem, *spread.interval))
            values = " ".join(map(_number, cell.values))
            unit = "fraction" if column.unit == "%" else column.unit
            n = runs_of(comparison, name).replace(UNKNOWN, "0")
            rows.append([name, column.key, unit, *numbers, spread.over, n, values, int(cell.best)])
    return _csv(rows)


def tests_csv(comparison: Comparison) -> str:
    """Return one line a test: the leader of a column against another method."""
    rows: list[list[Any]] = [["column", "leader", "other", "difference", "kind", "p", "adjusted"]]
    rows += [[t.column, t.leader, t.other, _number(t.difference), t.kind, _number(t.p),
              _number(t.adjusted)] for t in comparison.tests]  # fmt: skip
    return _csv(rows)


def _number(value: float) -> str:
    return "" if not math.isfinite(value) else repr(float(value))


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()

"""The table of a comparison: means, intervals, and what is best beyond doubt."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.compare.costs import COSTS, costs_of
from eval.compare.differences import (
    LAST,
    Result,
    differences,
    is_last,
    spreads,
    values_by_seed,
    without_samples,
)
from eval.compare.runs import Comparable, Method, Replicate, draws_of, load_methods
from eval.metrics import STREAM_SCORES, mean_over
from eval.report.data import Gap, RunData
from eval.significance import NO_SPREAD, Interval, Spread, holm

SIGNIFICANT = 0.05
BASE = "base model"
LORA = "lora"
Pairs = dict[tuple[str, str], dict[str, Result]]


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        key: `last`, `forgetting`, ...; `last/VQAv2` for one task; `seconds_a_step`, ... for costs.
        title: its heading.
        group: `headline` or `stream` (means over tasks), `task` (one task) or `cost`.
        higher_is_better: False where less is better.
        unit: `%` for scores (values are in 0..1), else the unit of the value.
    """

    key: str
    title: str
    group: str
    higher_is_better: bool
    unit: str


@dataclass(frozen=True)
class Cell:
    """One number: the mean over runs, how sure it is, the values behind it, and its mark.

    `best` is true only where the value is ahead of every other method's and every difference holds
    (adjusted p at most 0.05). NaN = not known.
    """

    value: float
    spread: Spread = NO_SPREAD
    values: tuple[float, ...] = ()
    best: bool = False

    @property
    def interval(self) -> Interval:
        """Return the 95 % interval of the mean."""
        return self.spread.interval


@dataclass(frozen=True)
class Difference:
    """How far a column's leading method is ahead of another one, and whether that holds.

    Attributes:
        column: key of the column.
        leader, other: names of methods.
        difference: leader minus other, as a fraction of 1.
        kind: `paired` (t test over shared seeds and streams), `welch` (over seeds), `samples`
            (paired permutation), `mcnemar` (exact), `none`.
        p: two-sided p value; NaN where no test was possible.
        adjusted: after Holm's correction over the column's family of tests.
    """

    column: str
    leader: str
    other: str
    difference: float
    kind: str
    p: float
    adjusted: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """Methods x columns.

    Attributes:
        names: methods in the order given; the base model (chunk 0) comes first, where all runs
            agree on it.
        columns: scores over the stream, scores by task, costs.
        cells: by (method, column key); a key that is absent is not known.
        tests: the leader of each score column against every other method.
        seeds: the seeds (of the stream, of the run) of each method's runs.
        tasks: the tasks behind every mean.
        gaps: what is missing or was left out.
        methods: the runs behind the names, without the base model.
        without_data: of the headline scores, the leader among the methods that keep no past data
            against every other of them; empty where no method keeps any.
    """

    names: list[str]
    columns: list[Column]
    cells: dict[tuple[str, str], Cell]
    tests: list[Difference]
    seeds: dict[str, list[Replicate]]
    tasks: list[str]
    gaps: list[Gap] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    without_data: list[Difference] = field(default_factory=list)

    @property
    def runs(self) -> list[RunData]:
        """Return the runs of all methods, in order."""
        return [entry.run for method in self.methods for entry in method.entries]

    @property
    def streams(self) -> str:
        """Return the names of the streams that were read; empty: none was."""
        return ", ".join(sorted({run.stream.name for run in self.runs if run.stream}))

    @property
    def rows(self) -> int:
        """Return the most rows that a run's matrix has: its chunks and the base model."""
        return max((len(e.values) for m in self.methods for e in m.entries), default=0)

    def n(self, method: str) -> int:
        """Return how many draws its means are over: streams, or the runs on one stream."""
        return len(set(draws_of(self.seeds.get(method, []))))

    def cell(self, method: str, column: str) -> Cell:
        """Return a cell; one without a value where nothing is known."""
        return self.cells.get((method, column), Cell(math.nan))


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare runs.

    Spread: over runs where a method has two or more, else over test samples (bootstrap; the same
    samples are drawn in all chunks). Differences: over runs where both methods have two or more
    (paired where they share seeds and streams, else Welch), else paired on the same test samples.
    Holm's correction over each family of tests: the headline scores; the other scores over the
    stream; all tasks of one score.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the runs cannot be compared; the message says why.
    """
    loaded = load_methods(folders)
    loaded.gaps.extend(without_samples(loaded))
    columns = _columns(loaded.tasks)
    cells = {
        (method.name, key): cell
        for method in loaded.methods
        for key, cell in _score_cells(loaded, method).items()
    }
    pairs: Pairs = {}
    tests = _tests(loaded, loaded.methods, columns, cells, pairs)
    poor = [method for method in loaded.methods if not method.keeps_data]
    headline = [column for column in columns if column.group == "headline"]
    alone = 0 < len(poor) < len(loaded.methods)
    without = _tests(loaded, poor, headline, cells, pairs) if alone else []
    _mark(loaded.methods, cells, tests)
    cells |= _cost_cells(loaded.methods)
    names = [method.name for method in loaded.methods]
    base = _base_cells(loaded)
    if base:
        names.insert(0, BASE)
    seeds = {
        method.name: [entry.replicate for entry in method.entries] for method in loaded.methods
    }
    return Comparison(
        names,
        columns,
        cells | base,
        tests,
        seeds,
        loaded.tasks,
        loaded.gaps,
        loaded.methods,
        without,
    )


def chosen_columns(comparison: Comparison, names: str) -> tuple[Column, ...]:
    """Return the columns that a comma-separated list names, by key or first word of the title.

    Raises:
        ValueError: a name is no column's.
    """
    # Reversed: of two titles with the same first word the first column has it.
    known = {name: column for column in reversed(comparison.columns)
             for name in (column.key, column.title.split()[0].lower())}  # fmt: skip
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        keys = ", ".join(c.key for c in comparison.columns if c.group != "task")
        raise ValueError(
            f"--columns: no column {', '.join(unknown) or 'named'}; the columns are {keys},"
            f" and for one task for example last/{comparison.tasks[0]}"
        )
    return tuple(dict.fromkeys(known[name] for name in wanted))


def _columns(tasks: Sequence[str]) -> list[Column]:
    stream = [
        Column(s.key, s.title, "headline" if s.headline else "stream", s.higher_is_better, "%")
        for s in STREAM_SCORES
    ]
    by_task = [
        Column(f"{s.key}/{task}", f"{s.title}: {task}", "task", s.higher_is_better, "%")
        for s in STREAM_SCORES
        for task in tasks
    ]
    return stream + by_task + [Column(c.key, c.title, "cost", False, c.unit) for c in COSTS]


def _score_cells(loaded: Comparable, method: Method) -> dict[str, Cell]:
    spread = spreads(loaded, method)
    cells = {}
    for key, values in values_by_seed(loaded, method).items():
        known = tuple(value for value in values if math.isfinite(value))
        mean = float(np.mean(known)) if known else math.nan
        cells[key] = Cell(mean, spread[key], known)
    return cells


def _tests(
    loaded: Comparable,
    methods: Sequence[Method],
    columns: Sequence[Column],
    cells: dict[tuple[str, str], Cell],
    pairs: Pairs,
) -> list[Difference]:
    families: dict[str, list[Difference]] = defaultdict(list)
    for column in (c for c in columns if c.group != "cost"):
        leader = _leader(methods, column, cells)
        if leader is None:
            continue
        for other in methods:
            if other is leader or _has_no(column.key, other):
                continue
            pair = leader.name, other.name
            # One call tests all columns: the swaps of a permutation test are drawn once a pair.
            if pair not in pairs:
                pairs[pair] = differences(loaded, leader, other)
            # The colon keeps a group of scores apart from the tasks of one score.
            family = column.key.split("/")[0] if column.group == "task" else f"{column.group}:"
            result = pairs[pair][column.key]
            families[family].append(Difference(column.key, pair[0], pair[1], *result))
    return [
        replace(test, adjusted=p)
        for family in families.values()
        for test, p in zip(family, holm([t.p for t in family]), strict=True)
    ]


def _has_no(column: str, method: Method) -> bool:
    """Return whether a method cannot have the score: joint training forgets nothing."""
    return any(entry.run.has_no_stream for entry in method.entries) and not is_last(column)


def _leader(
    methods: Sequence[Method], column: Column, cells: dict[tuple[str, str], Cell]
) -> Method | None:
    sign = 1 if column.higher_is_better else -1
    known = [m for m in methods if math.isfinite(cells[m.name, column.key].value)]
    return max(known, key=lambda m: sign * cells[m.name, column.key].value, default=None)


def _mark(
    methods: Sequence[Method], cells: dict[tuple[str, str], Cell], tests: Sequence[Difference]
) -> None:
    """Mark the leader of each column whose lead over every other method holds."""
    by_column: dict[tuple[str, str], list[Difference]] = {}
    for test in tests:
        by_column.setdefault((test.leader, test.column), []).append(test)
    for key, against in by_column.items():
        others = sum(not _has_no(key[1], method) for method in methods) - 1
        if len(against) == others and all(t.adjusted <= SIGNIFICANT for t in against):
            cells[key] = replace(cells[key], best=True)


def _base_cells(loaded: Comparable) -> dict[tuple[str, str], Cell]:
    """Return the base model's scores, where every run began with the same: the lower bound."""
    rows = [entry.values[0] for method in loaded.methods for entry in method.entries]
    first = rows[0]
    # With the tolerance of matrix.csv, which has six digits.
    if not np.isfinite(first).any() or any(
        not np.allclose(row, first, atol=1e-6, equal_nan=True) for row in rows
    ):
        return {}
    cells = {(BASE, LAST): Cell(float(mean_over(first)))}
    return cells | {
        (BASE, f"{LAST}/{task}"): Cell(float(score))
        for task, score in zip(loaded.tasks, first, strict=True)
    }


def _cost_cells(methods: Sequence[Method]) -> dict[tuple[str, str], Cell]:
    costs = {method.name: costs_of([e.run for e in method.entries]) for method in methods}
    lora = costs.get(LORA, {}).get("seconds_a_step", math.nan)
    for known in costs.values():
        known["to_lora"] = known["seconds_a_step"] / lora
    return {(name, key): Cell(v) for name, known in costs.items() for key, v in known.items()}

"""The runs of a folder by method, and how far one method is ahead of another."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.compare.names import BLOCKS, printed
from eval.significance import (
    Interval,
    Spread,
    holm,
    mean_of_each,
    over_runs,
    paired_t,
    t_interval,
)
from eval.study.run_csv import KeptRun, read_run

Pair = tuple[int, int]  # seeds of the stream and of the run
RANKED_BY = "average"


@dataclass(frozen=True)
class Group:
    """The runs of one method with one setting; they differ in nothing but seeds."""

    name: str
    runs: list[KeptRun]

    @property
    def keeps(self) -> str:
        """Return the past data that the method keeps, in words; empty: none."""
        return self.runs[0].keeps

    def scores(self, key: str) -> dict[Pair, float]:
        """Return a score by seeds, of the runs in which it is defined."""
        known = {(run.stream_seed, run.seed): run.score(key) for run in self.runs}
        return {pair: value for pair, value in known.items() if math.isfinite(value)}

    def mean(self, key: str) -> float:
        """Return the mean of a score over the streams; NaN where no run has it."""
        values = by_stream(self.scores(key))
        return float(np.mean(values)) if values else math.nan

    def spread(self, key: str) -> Spread:
        """Return how sure that mean is."""
        return over_runs(by_stream(self.scores(key)))

    @property
    def n(self) -> int:
        """Return how many streams it ran on: what ± is over."""
        return len(self.streams)

    @property
    def streams(self) -> set[int]:
        """Return the seeds of these streams."""
        return {run.stream_seed for run in self.runs}


def by_stream(scores: Mapping[Pair, float]) -> list[float]:
    """Return a score's draws: of each stream the mean over its runs (`mean_of_each`)."""
    return mean_of_each(list(scores.values()), [stream for stream, _ in scores])


@dataclass(frozen=True)
class Study:
    """What a folder of CSVs holds: the methods that keep no data first.

    Of each kind those that ran on the most streams stand before the others, the best first.
    """

    folder: Path
    groups: list[Group]

    @property
    def runs(self) -> list[KeptRun]:
        """Return all runs."""
        return [run for group in self.groups for run in group.runs]

    def only(self, methods: Sequence[str]) -> Study:
        """Return the runs of these methods, by their names in recipes; none named: all.

        As they ship, or with a block at its defaults or without: trials of other values stay out.

        Raises:
            ValueError: a method that has no run.
        """
        if not methods:
            return self
        groups = [
            group
            for group in self.groups
            if group.runs[0].method in methods
            and {*settings_of(group.runs[0]).values()} <= {"{}", "null"}
        ]
        if lacking := set(methods) - {group.runs[0].method for group in groups}:
            raise ValueError(f"{self.folder}: no run of {', '.join(sorted(lacking))}")
        return Study(self.folder, groups)

    def on_all_streams(self) -> Study:
        """Return the methods that ran on the most streams: means over others hang on which."""
        most = max((group.n for group in self.groups), default=0)
        return Study(self.folder, [group for group in self.groups if group.n == most])

    def ranked(self) -> list[Group]:
        """Return the methods that keep no data and ran on most of the streams, best mean Avg first.

        The first is the best of those that ran on the most streams (as many as a second one has),
        over the streams that all of these share: nobody gains by having skipped a hard one. Those
        of fewer streams come behind them. One with half of them or fewer, or none that the others
        have, is in the tables, but not ranked: luck would choose it. One that is given the task of
        a question is a bound.
        """
        without = [
            group
            for group in self.groups
            if not group.keeps and not group.runs[0].given_task and group.scores(RANKED_BY)
        ]
        without.sort(key=lambda group: -group.n)
        most = without[min(1, len(without) - 1)].n if without else 0
        shared: set[int] = set()
        ranked: list[Group] = []
        for group in without:
            common = shared & group.streams if ranked else group.streams
            if not common or 2 * group.n <= most:
                continue
            ranked.append(group)
            if group.n >= most:
                shared = common

        def mean(group: Group) -> float:
            scores = group.scores(RANKED_BY)
            return float(np.mean(by_stream({k: v for k, v in scores.items() if k[0] in shared})))

        return sorted(ranked, key=lambda group: (min(group.n, most), mean(group)), reverse=True)


class Lead(NamedTuple):
    """How far a method is ahead of another on one score, over the seeds that both have.

    `pairs` counts streams.
    """

    other: Group
    pairs: int
    difference: float
    interval: Interval
    p: float
    adjusted: float


def read_study(folder: Path) -> Study:
    """Read every CSV of a folder; one that is absent or empty has no groups.

    Raises:
        ValueError: a file is no such CSV, two are the same run, or two of one stream were not asked
            the same.
    """
    found: dict[str, dict[Pair, KeptRun]] = {}
    alike: dict[tuple[object, ...], tuple[object, Path]] = {}
    for path in sorted(folder.glob("*.csv")):
        run = read_run(path)
        of_name = found.setdefault(method_label(run), {})
        before = of_name.setdefault((run.stream_seed, run.seed), run)
        if before is not run:
            raise ValueError(f"{before.path} and {path}: the same run twice; remove one of them")
        _check_alike(alike, run)
    groups = [Group(name, [runs[pair] for pair in sorted(runs)]) for name, runs in found.items()]
    most = max((group.n for group in groups), default=0)

    def place(group: Group) -> tuple[bool, bool, float, float, str]:
        average, last = (
            math.inf if math.isnan(mean) else -mean for mean in map(group.mean, (RANKED_BY, "last"))
        )
        return bool(group.keeps), group.n < most, average, last, group.name

    return Study(folder, sorted(groups, key=place))


def _check_alike(known: dict[tuple[object, ...], tuple[object, Path]], run: KeptRun) -> None:
    """Raise ValueError where a run cannot be compared with the folder's others.

    Args:
        known: what was found first of each stream, and in which file; filled here.
    """
    size = whole_settings(run).get("data.size")
    facts: dict[tuple[object, ...], object] = {
        ("the tasks' tests", size): dict(sorted(zip(run.tasks, run.tests, strict=True)))
    }
    if not run.has_no_stream:
        first = dict(sorted(zip(run.tasks, run.first, strict=True)))
        facts["the tasks' first chunks", size, run.stream_seed] = first
        facts["the evaluated chunks", size] = run.evaluated
    for key, found in facts.items():
        before, path = known.setdefault(key, (found, run.path))
        if before != found:
            raise ValueError(
                f"{path} and {run.path}: {key[0]} are {before} and {found}: such runs cannot be "
                "compared; keep them in folders of their own"
            )


def settings_of(run: KeptRun) -> dict[str, str]:
    """Return what a grid set, sorted by key, but for the stream that the folder's name says."""
    found = whole_settings(run)
    if "data.size" in found and run.path.parent.name.startswith(found["data.size"]):
        del found["data.size"]
    return found


def whole_settings(run: KeptRun) -> dict[str, str]:
    """Return all that a grid set, sorted by key."""
    # A value may hold blanks: "replay={memory: 500, share: 0.5} tuner.rank=8".
    parts = re.split(r" (?=[\w.]+=)", run.settings) if run.settings else []
    return {key: value for key, _, value in (part.partition("=") for part in sorted(parts))}


def method_label(run: KeptRun) -> str:
    """Return a run's method with the blocks and values that a grid gave it, as print has it."""
    name, rest = printed(run.method), []
    for key, value in settings_of(run).items():
        word, inherent = BLOCKS.get(key, ("", set()))
        if not word:
            rest.append(f"{re.sub('^(schedule|tuner)[.]', '', key)} {value}")
        elif value == "null":
            name += f" without {word}" if run.method in inherent else ""
        elif value == "{}":
            name += "" if run.method in inherent else f" + {word}"
        else:
            name += f" + {word} {value}"
    return ", ".join([name, *rest])


def shared_runs(one: Group, other: Group) -> list[tuple[KeptRun, KeptRun]]:
    """Return the runs of two methods that share the seeds of stream and run, pair by pair."""
    theirs = {(run.stream_seed, run.seed): run for run in other.runs}
    keys = [(run.stream_seed, run.seed) for run in one.runs]
    return [(run, theirs[key]) for run, key in zip(one.runs, keys, strict=True) if key in theirs]


def leads(first: Group, others: Sequence[Group], key: str) -> list[Lead]:
    """Return by how much a method is ahead of each other one, with paired t tests.

    The difference is `first` minus the other, of the runs that share seeds of stream and run, one
    value a stream; p is adjusted over the others (Holm).
    """
    rows = []
    for other in others:
        ours, theirs = first.scores(key), other.scores(key)
        shared = sorted(ours.keys() & theirs.keys())
        one, two = (by_stream({pair: side[pair] for pair in shared}) for side in (ours, theirs))
        gaps = np.subtract(one, two).tolist()
        mean = float(np.mean(gaps)) if gaps else math.nan
        rows.append((other, len(gaps), mean, t_interval(gaps), paired_t(one, two)))
    adjusted = holm([row[-1] for row in rows])
    return [Lead(*row, p) for row, p in zip(rows, adjusted, strict=True)]

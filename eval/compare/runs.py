"""Runs side by side: the same tasks, test samples and chunks, seeds of one recipe together."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.compare.names import kept_data, method_name, told_apart
from eval.metrics import Array, First
from eval.predictions import TaskScores
from eval.report.data import Gap, RunData, load_run
from eval.run_files import JsonObject, RunState

# What may differ between runs of one method: none of it changes what is learned, but the seeds.
NOT_THE_METHOD = (
    "name", "seed", "run_dir", "launcher", "eval.batch_size", "eval.both_weights", "data.stream",
    "data.seed",
)  # fmt: skip
# Keys that came after version 0.1, with the value that a run recorded without them had.
LATER_KEYS: JsonObject = {
    "data.too_long": "skip",
    "replay.samples": "more",
    "schedule.later.optimizer_state": "fresh",
    "schedule.later.rate_factor": 1.0,
}
RUN_FILES = ("manifest.json", "matrix.csv")
Replicate = tuple[int | None, int | None]
Cells = NDArray[np.bool_]


def draws_of(pairs: Sequence[Replicate]) -> list[Replicate]:
    """Return for each run what counts as one in intervals and tests (`mean_of_each`).

    That is its stream, without the model's seed; where all runs are on one stream, the run.
    """
    if len({stream for stream, _ in pairs}) == 1:
        return list(pairs)
    return [(stream, None) for stream, _ in pairs]


@dataclass(frozen=True)
class Entry:
    """One run, cut to what all runs have.

    Attributes:
        run: its files.
        values: a[chunk, task] of the common tasks (chunks + 1, tasks); a chunk that is not compared
            is NaN.
        samples: for each task its sample scores (chunks + 1, n), the columns in the order of
            sorted ids; empty where prediction files are missing.
        first: for each task the first chunk that held it.
    """

    run: RunData
    values: Array
    samples: list[Array]
    first: First

    @property
    def seed(self) -> int | None:
        """Return the run's seed, None where no file says it."""
        return self.run.manifest.seed

    @property
    def rows(self) -> list[int]:
        """Return the compared chunks, 0 being the base model."""
        return np.flatnonzero(np.isfinite(self.values).any(axis=1)).tolist()

    @property
    def replicate(self) -> Replicate:
        """Return the seeds of stream and run: what two methods must share to be paired."""
        return _stream_seed(self.run), self.seed


@dataclass(frozen=True)
class Method:
    """The runs of one recipe, which differ in nothing but the seeds of run and stream.

    Attributes:
        name: the method's name with the blocks added to it; where two recipes share that, with the
            keys in which they differ.
        entries: one for each pair of seeds.
    """

    name: str
    entries: list[Entry]

    def name_of(self, entry: Entry) -> str:
        """Return the name of one of its runs: with the seeds where there are several."""
        if len(self.entries) == 1:
            return self.name
        streams = {e.replicate[0] for e in self.entries}
        stream = f", stream seed {entry.replicate[0]}" if len(streams) > 1 else ""
        return f"{self.name}, seed {entry.seed}{stream}"

    @property
    def draws(self) -> list[Replicate]:
        """Return for each run the draw that it belongs to (`draws_of`)."""
        return draws_of([entry.replicate for entry in self.entries])

    @property
    def keeps_data(self) -> str:
        """Return what past data the method keeps, in words; empty: none."""
        manifest = self.entries[0].run.manifest
        return kept_data(manifest.protocol, manifest.recipe)


@dataclass(frozen=True)
class Comparable:
    """What can be compared: methods, common tasks, their aggregates, and what was left out.

    Attributes:
        methods: in the order in which they were given.
        tasks: tasks that every run was tested on, with the same samples.
        aggregates: for each task what turns a mean sample score into the task's score.
        gaps: what was left out, and why.
    """

    methods: list[Method]
    tasks: list[str]
    aggregates: list[Callable[[Array], Array]]
    gaps: list[Gap] = field(default_factory=list)


def load_methods(folders: Sequence[Path]) -> Comparable:
    """Read runs and cut them to what they share.

    A folder that is no run stands for the runs in it (a sweep). Runs of one stream are compared
    over the chunks that all of them have evaluated; so are runs of several streams, those on which
    every method has run. A run on another stream, and one without a stream (joint training,
    zero-shot), only by its own last scores. What is left out becomes a gap.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: a run given twice, one without any score, or runs without a common task.
    """
    gaps: list[Gap] = []
    runs = _read(folders, gaps)
    gaps += [Gap(f"{run.folder}: {gap.what}", gap.why) for run in runs for gap in run.gaps]
    runs = _on_shared_streams(runs, gaps)
    groups = _grouped(runs)
    streams = [{run.manifest.stream_sha256 for run in group} for group in groups.values()]
    # Every method on each of several streams: means over streams say the same of all.
    balanced = len(streams[0]) > 1 and all(found == streams[0] for found in streams)
    tasks = _common_tasks(runs, balanced, gaps)
    cells = _common_cells(runs, tasks, balanced, gaps)
    for group in groups.values():
        if len({(_stream_seed(run), run.manifest.seed) for run in group}) < len(group):
            roots = ", ".join(run.folder for run in group)
            raise ValueError(f"{roots}: the same recipe and seed; give only one of them")
    methods = [
        Method(name, [_entry(run, tasks, cells[_stream_of(run, balanced)]) for run in group])
        for name, group in groups.items()
    ]
    # Any of them: a task that runs score differently is not compared (`_common_tasks`).
    judge = next((run for run in runs if run.stream is not None), runs[0])
    return Comparable(methods, tasks, [judge.aggregate(task) for task in tasks], gaps)


def _read(folders: Sequence[Path], gaps: list[Gap]) -> list[RunData]:
    found = [(folder, given) for given in folders for folder in _runs_in(given) or [given]]
    times = Counter(folder.resolve() for folder, _ in found)
    if twice := [folder for folder, _ in found if times[folder.resolve()] > 1]:
        raise ValueError(f"{twice[0]}: given twice; a run compared with itself says nothing")
    runs = []
    labels = told_apart([folder for folder, _ in found])
    for (folder, given), label in zip(found, labels, strict=True):
        run = load_run(folder)
        run.folder = label
        if np.isfinite(run.matrix.values).any():
            runs.append(run)
            continue
        why = "; ".join(gap.why for gap in run.gaps if gap.what == "Scores")
        if folder == given:
            raise ValueError(f"{folder}: no score to compare ({why or 'matrix.csv has none'})")
        gaps.append(Gap(label, f"left out, since it has no score yet ({why})"))
    if not runs:
        raise ValueError(f"{', '.join(map(str, folders))}: no run in it has a score yet")
    return runs


def _on_shared_streams(runs: list[RunData], gaps: list[Gap]) -> list[RunData]:
    """Return the runs on the streams that every method has run on; all, where there is none."""
    groups = _grouped(runs).values()
    shared = set.intersection(*({run.manifest.stream_sha256 for run in group} for group in groups))
    kept = [run for run in runs if run.manifest.stream_sha256 in shared]
    if not kept or len(kept) == len(runs):
        return runs
    why = "left out: not every method has a run on its stream"
    gaps += [Gap(run.folder, why) for run in runs if run not in kept]
    return kept


def _runs_in(folder: Path) -> list[Path]:
    """Return the run folders in a folder that is none itself, as a sweep leaves them."""
    if any((folder / name).exists() for name in RUN_FILES):
        return []
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [f for f in inside if any((f / name).is_file() for name in RUN_FILES)]


def _stream_of(run: RunData, balanced: bool) -> str:
    """Return what runs must share to be compared chunk by chunk."""
    stream = "each stream" if balanced else run.manifest.stream_sha256 or "unknown"
    return f"{stream} without chunks" if run.has_no_stream else stream


def _stream_seed(run: RunData) -> int | None:
    seed = run.manifest.block("data").get("seed")
    return seed if isinstance(seed, int) else None


def _sample_ids(run: RunData, task: str) -> list[str]:
    """Return the ids behind the columns of `run.sample_scores(task)`; none without predictions."""
    scored = _first_scored(run, task)
    return [] if scored is None else scored.ids


def _first_scored(run: RunData, task: str) -> TaskScores | None:
    found = (run.scored.get((chunk, task)) for chunk in range(len(run.matrix.values)))
    return next((scored for scored in found if scored is not None), None)


def _common_tasks(runs: Sequence[RunData], balanced: bool, gaps: list[Gap]) -> list[str]:
    tasks = []
    # Streams may differ in their samples where every method was tested on all of them.
    streams = {run.manifest.stream_sha256 if balanced else "" for run in runs}
    tested = [
        [run for run in runs if not balanced or run.manifest.stream_sha256 == stream]
        for stream in sorted(streams)
    ]
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        without = [run.folder for run in runs if task not in run.tasks]
        if without:
            why = f"not evaluated in {', '.join(without)}; left out of every score"
            gaps.append(Gap(f"Task {task}", why))
        elif len({by for run in runs if (by := _scorer(run, task))}) > 1:
            why = "judged by different scorers; left out of every score"
            gaps.append(Gap(f"Task {task}", why))
        elif all(_same_samples(group, task) for group in tested):
            tasks.append(task)
        else:
            why = "the runs were tested on different samples; left out of every score"
            gaps.append(Gap(f"Task {task}", why))
    if not tasks:
        found = "; ".join(f"{run.folder}: {run.tasks}" for run in runs)
        raise ValueError(
            f"no task that all runs were tested on with the same samples; {found}. Streams of"
            " several seeds are compared where every method has run on each of them"
        )
    return tasks


def _scorer(run: RunData, task: str) -> tuple[str, str] | None:
    """Return a task's scorer and, of one of the recipe's own, its hash; None: not known."""
    if run.stream is None or task not in run.stream.tests:
        return None
    name = run.stream.task(task).scorer
    return name, str(run.manifest.scorers.get(name, ""))


def _same_samples(runs: Sequence[RunData], task: str) -> bool:
    counts = {int(run.matrix.samples[:, run.tasks.index(task)].max(initial=0)) for run in runs}
    asked = {scored.asked for run in runs if (scored := _first_scored(run, task)) is not None}
    return len(counts) == 1 and len(asked) <= 1


def _common_rows(runs: Sequence[RunData], balanced: bool, gaps: list[Gap]) -> dict[str, list[int]]:
    """Return for each stream the rows of a[chunk, task] that all its runs have."""
    rows: dict[str, set[int]] = {}
    for run in runs:
        evaluated = set(np.flatnonzero(np.isfinite(run.matrix.values).any(axis=1)).tolist())
        stream = _stream_of(run, balanced)
        rows[stream] = rows[stream] & evaluated if stream in rows else evaluated
    for run in runs:
        common = sorted(rows[_stream_of(run, balanced)])
        if not common:
            raise ValueError(f"{run.root}: no chunk that the other runs of its stream evaluated")
        if run.evaluated > common[-1]:
            why = f"compared as it was after chunk {common[-1]}, the last that all runs have"
            gaps.append(Gap(f"{run.folder}: chunks after {common[-1]}", why))
        if not run.finished and run.state != RunState():  # without one a gap says so already
            gaps.append(Gap(f"{run.folder}", f"still going on; chunk {run.evaluated} so far"))
    if len({run.manifest.stream_sha256 for run in runs}) > 1 and not balanced:
        why = "runs of different streams are compared by their last scores only"
        gaps.append(Gap("Streams", why))
    return {stream: sorted(found) for stream, found in rows.items()}


def _common_cells(
    runs: Sequence[RunData], tasks: Sequence[str], balanced: bool, gaps: list[Gap]
) -> dict[str, Cells]:
    """Return for each stream the cells of a[chunk, task] that all its runs have, as true.

    A run that grew with its stream has no early scores of late tasks: beside one over the whole
    stream its means would be over other tasks. In the last row: what the runs of all streams have.
    """
    rows, cells = _common_rows(runs, balanced, gaps), dict[str, Cells]()
    for run in runs:
        stream = _stream_of(run, balanced)
        known = np.isfinite(_values(run, tasks, rows[stream]))
        cells[stream] = cells.get(stream, known) & known
        for row in rows[stream]:
            for task in (task for i, task in enumerate(tasks) if not known[row, i]):
                why = "not measured; all runs' means are over the other tasks"
                gaps.append(Gap(f"{run.folder}: {task} after chunk {row}", why))
    last = np.logical_and.reduce([known[-1] for known in cells.values()])
    for known in cells.values():
        known[-1] = last
    return cells


def _values(run: RunData, tasks: Sequence[str], rows: Sequence[int]) -> Array:
    columns = [run.tasks.index(task) for task in tasks]
    values = np.full((rows[-1] + 1, len(tasks)), np.nan)
    values[list(rows)] = run.matrix.values[np.ix_(rows, columns)]
    return values


def _entry(run: RunData, tasks: Sequence[str], cells: Cells) -> Entry:
    values = np.where(cells, _values(run, tasks, range(len(cells))), np.nan)
    samples = [_samples(run, task, cells[:, i]) for i, task in enumerate(tasks)]
    return Entry(run, values, samples, [run.first_seen()[run.tasks.index(t)] for t in tasks])


def _samples(run: RunData, task: str, compared: Cells) -> Array:
    """Return sample scores (chunks + 1, n), columns by sorted id, cells not compared NaN."""
    table = run.sample_scores(task)[: len(compared)]
    kept = np.where(compared[:, None], table, np.nan)
    return np.asarray(kept[:, np.argsort(_sample_ids(run, task))])


def _grouped(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Return the runs of each method by its name, one for each pair of seeds."""
    streams: dict[int | None, set[str]] = defaultdict(set)
    for run in runs:
        streams[_stream_seed(run)].add(run.manifest.stream_sha256)
    # Where a seed does not say which stream it was, runs on different streams are kept apart.
    apart = any(len(found) > 1 for found in streams.values())
    groups: dict[str, list[RunData]] = defaultdict(list)
    for run in runs:
        groups[_recipe_key(run, apart)].append(run)
    names = _names(groups)
    return {names[key]: group for key, group in groups.items()}


def _recipe_key(run: RunData, apart: bool) -> str:
    """Return what makes a run's method: its recipe without what may differ between seeds."""
    recipe = _keys_of(run)
    if not recipe:
        return str(run.root.resolve())
    # A block that is null and one that a version did not know are the same: absent.
    kept = {k: v for k, v in recipe.items() if v is not None and not _is_free(k)}
    stream = run.manifest.stream_sha256 if apart else ""
    return json.dumps([stream, run.has_no_stream, kept], sort_keys=True, default=str)


def _is_free(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NOT_THE_METHOD)


def _keys_of(run: RunData) -> JsonObject:
    """Return the run's recipe by dotted key, with those that came later; {}: none is recorded."""
    recipe = _flat(run.manifest.recipe)
    return LATER_KEYS | recipe if recipe else {}


def _flat(value: JsonObject, prefix: str = "") -> JsonObject:
    flat: JsonObject = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _names(groups: dict[str, list[RunData]]) -> dict[str, str]:
    """Return a name for each group: the method, and where that is not enough what differs."""
    recipes = {key: _keys_of(group[0]) for key, group in groups.items()}
    short = {key: method_name(group[0], preset=False) for key, group in groups.items()}
    alike = Counter(short.values())
    short = {key: method_name(groups[key][0], alike[name] > 1) for key, name in short.items()}
    names = {}
    for key, name in short.items():
        twins = [recipes[other] for other in groups if short[other] == name]
        differing = [k for k in recipes[key] if not _is_free(k)
                     and any(twin.get(k) != recipes[key][k] for twin in twins)]  # fmt: skip
        parts = [f"{k}={recipes[key][k]}" for k in differing]
        names[key] = " ".join([name, *parts])
    if len(set(names.values())) < len(names):
        paths = told_apart([group[0].root for group in groups.values()])
        names = dict(zip(groups, paths, strict=True))
    return names

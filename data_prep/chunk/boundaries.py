"""Second pass: the order of the samples, where it is cut, and the shuffled chunks."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.append import Before
from data_prep.chunk.first_pass import INDEX, FirstPass
from data_prep.chunk.periods import Period
from data_prep.sources.fields import FIRST_BLOCK, StartOfFile, Uneven, harmonize
from data_prep.sources.image_paths import EMBEDDED
from data_prep.sources.records import encode
from data_prep.sources.test_sets import (
    TestFile,
    check_task_name,
    lines_of_test,
    planned_tests,
    test_entry,
)
from data_prep.stream import StreamError
from data_prep.stream_writer import LEFT_OUT, Contents, PlannedFile, WrittenFile

MOST_CHUNKS = 100_000


@dataclass(frozen=True)
class Rows:
    """Some samples of the first pass: rows `start` to `stop` of the order saved in `folder`."""

    folder: Path
    start: int
    stop: int
    tasks: tuple[str, ...]
    entry: dict[str, object] = field(default_factory=dict)  # of the manifest
    small: Uneven = field(default_factory=dict)  # fields that must be text in any file
    large: Uneven = field(default_factory=dict)  # and in a large one
    shuffle: tuple[int, int] | None = None  # seed and chunk


@dataclass(frozen=True)
class ChunkBoundaries:
    """How the ordered samples are cut: every `size` samples, and at the ends of `period`."""

    size: int | None
    period: Period | None
    shuffle: bool


def contents(
    first_pass: FirstPass,
    boundaries: ChunkBoundaries,
    tests: dict[str, Path],
    scorers: dict[str, str],
    before: Before,
) -> Contents:
    """Return what the stream holds, once the first pass is done.

    Args:
        first_pass: the first pass, finished.
        boundaries: where chunks end.
        tests: test file by task.
        scorers: scorer by task; "" is for all others.
        before: what the stream holds already.

    Raises:
        StreamError: nothing to train on, too many chunks, or a task that no file can be named by.
    """
    index, options, folder = first_pass.index(), first_pass.options, first_pass.folder
    order, bounds = ordered(index, options.by, boundaries)
    if not len(order):
        raise StreamError(_why_nothing(first_pass, len(index)))
    cut = _cut_facts(first_pass, index, order, bounds, boundaries.period)
    tasks_of_rows = tuple(first_pass.tasks)
    large = first_pass.columns.uneven(FIRST_BLOCK + 1)
    # Of several chunks `datasets` may be given all in one call.
    small = large if len(bounds) > 1 else first_pass.columns.uneven(0)
    chunks: list[PlannedFile] = []
    for number, (start, stop) in enumerate(bounds, before.chunks + 1):
        shuffle = (options.seed, number) if boundaries.shuffle else None
        rows = Rows(folder, start, stop, tasks_of_rows, {}, small, large, shuffle)
        chunks.append(PlannedFile(f"chunks/{number:03d}.jsonl", rows))
    held, chosen, orders, used = [], {}, [order], len(order)
    chunk_of = np.zeros(len(index), dtype=np.int64)
    if options.by == "time":
        chunk_of = _chunks_of_tests(index, order, bounds, boundaries.period)
    for number in sorted(set(index["task"][index["test"]])):
        task, own = first_pass.tasks[number], index["test"] & (index["task"] == number)
        check_task_name(task)
        for chunk in sorted(set(chunk_of[own].tolist())):
            name = before.test_name(task, str(cut[chunk]["period"]) if options.by == "time" else "")
            orders.append(np.flatnonzero(own & (chunk_of == chunk)))
            start, used = used, used + len(orders[-1])
            entry = test_entry(name, task, before.chunks + chunk + 1)
            rows = Rows(folder, start, used, tasks_of_rows, entry)
            held.append(PlannedFile(f"test/{name}.jsonl", rows, name))
            chosen[name] = scorers.get(task, scorers[""])
    tasks = {"", *first_pass.tasks, *tests}
    # A batch takes over the scorers of all earlier tasks, which need not be in it.
    if not before.chunks and (unknown := sorted(scorers.keys() - tasks)):
        raise StreamError(
            f"--scorer {unknown[0]}={scorers[unknown[0]]}: no task has this name; the tasks are: "
            f"{', '.join(sorted(tasks - {''}))}"
        )
    first, placed = before.chunks + 1, options.columns.placed
    files, of_files = planned_tests(
        tests, options.resolver, scorers, before.test_name, first, placed
    )
    if both := chosen.keys() & of_files:
        raise StreamError(
            f"test set {min(both)!r} is held out and given with --test: give the file another "
            "name, or leave --holdout out (with --append: --holdout 0)"
        )
    np.save(folder / "order.npy", np.concatenate(orders))
    if (folder / LEFT_OUT).stat().st_size:
        # A copy: a killed run that goes on opens the first pass's own file again.
        shutil.copyfile(folder / LEFT_OUT, folder.parent / LEFT_OUT)
    return Contents(
        chunks + held + files,
        chosen | of_files,
        {options.resolver.link: str(options.resolver.root)} if first_pass.images else {},
        (EMBEDDED,),
        {"cut": cut},
    )


def _why_nothing(first_pass: FirstPass, held: int) -> str:
    """Return why there is nothing to train on; `held` samples were kept for testing."""
    why, share = "expected at least one", first_pass.options.holdout
    if held:
        why = (
            f"the hold-out (--holdout {share:g}) takes all that there are, {held}; give more of "
            "them at once, or --holdout 0"
        )
    elif first_pass.problems:
        why = f"--skip-bad left all of them out, the first: {first_pass.problems[0]}"
    names = ", ".join(path.name for path in first_pass.sources)
    return f"{names}: no samples to train on; {why}"


def ordered(
    index: np.ndarray, by: str, boundaries: ChunkBoundaries
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the training rows in stream order, and (start, stop) of each chunk in them."""
    order = np.flatnonzero(~index["test"])
    group = index["group"][order]
    if by != "count":
        by_group = np.argsort(group, kind="stable")
        order, group = order[by_group], group[by_group]
    if by == "time":
        group = _periods(group, group, boundaries.period)
    ends = [*(np.flatnonzero(np.diff(group)) + 1).tolist(), len(order)]
    bounds, start = [], 0
    for end in ends:
        step = boundaries.size or max(end - start, 1)
        bounds += [(at, min(at + step, end)) for at in range(start, end, step)]
        start = end
        if len(bounds) > MOST_CHUNKS:
            raise StreamError(f"more than {MOST_CHUNKS} chunks: use a larger --size or --every")
    return order, bounds


def _periods(times: np.ndarray, trained: np.ndarray, period: Period | None) -> np.ndarray:
    """Return the number of each time's period; `trained` holds the sorted times of all chunks."""
    if period is None or not len(trained):
        return np.zeros_like(times)
    return period.numbers(times, int(trained[0]))


def _chunks_of_tests(
    index: np.ndarray, order: np.ndarray, bounds: list[tuple[int, int]], period: Period | None
) -> np.ndarray:
    """Return for each sample the first chunk (from 0) of its period.

    A period that no chunk has (nothing was left to train on) counts to the one before it.
    """
    times = index["group"]
    starts = times[order[[start for start, _ in bounds]]]
    if period is not None:
        starts, times = (_periods(t, times[order], period) for t in (starts, times))
    place = np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)
    return np.searchsorted(starts, starts[place], side="left")


def _cut_facts(
    first_pass: FirstPass,
    index: np.ndarray,
    order: np.ndarray,
    bounds: list[tuple[int, int]],
    period: Period | None,
) -> list[dict[str, object]]:
    """Return for each chunk what the samples in it have in common.

    That is the label, or the first and the last time and the name of the period; where a period
    has several chunks, each has a `name` of its own.
    """
    facts: list[dict[str, object]] = []
    for start, stop in bounds if first_pass.options.by != "count" else []:
        first, last = int(index["group"][order[start]]), int(index["group"][order[stop - 1]])
        if first_pass.options.by == "column":
            facts.append({"label": first_pass.labels[first]})
            continue
        named = first if period is None else period.start(first, int(index["group"][order[0]]))
        name = period.name(named) if period else _iso(first)[:10]
        facts.append({"from": _iso(first), "to": _iso(last), "period": name})
    names = Counter(fact.get("period") for fact in facts)
    seen: Counter[object] = Counter()
    for fact in facts:
        if names[period_name := fact.get("period")] > 1 and period_name:
            seen[period_name] += 1
            fact["name"] = f"{period_name} ({seen[period_name]})"
    return facts


def _iso(microseconds: int) -> str:
    return str(np.datetime64(microseconds, "us")) + "Z"


def make(planned: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of one chunk or test set."""
    if isinstance(planned.source, TestFile):
        yield from lines_of_test(planned.source, made)
        return
    rows: Rows = planned.source
    made.entry.update(rows.entry)
    index = np.memmap(rows.folder / "index.bin", dtype=INDEX, mode="r")
    saved = np.load(rows.folder / "order.npy", mmap_mode="r")
    order = np.asarray(saved[rows.start : rows.stop])
    seen: set[int] = set()
    if rows.shuffle is not None:
        # RandomState's stream of numbers never changes between versions of numpy.
        state = np.random.RandomState([*rows.shuffle])
        order = order[state.permutation(len(order))]
    with (rows.folder / "records.jsonl").open("rb") as file:
        starts = index["at"][order].tolist()
        # A line ends where the next one of the file begins, whatever follows in this order. For the
        # last line, row 0 is looked up instead of one that is not there.
        last = order == len(index) - 1
        ends = np.where(last, os.fstat(file.fileno()).st_size, index["at"][(order + 1) * ~last])
        large = int(ends.sum()) - sum(starts) > FIRST_BLOCK
        uneven, start_of_file = rows.large if large else rows.small, StartOfFile()
        names, tasks = index["id"][order].tolist(), index["task"][order].tolist()
        for start, end, name, task in zip(starts, ends.tolist(), names, tasks, strict=True):
            line = os.pread(file.fileno(), end - start, start)
            if planned.task is not None and name in seen:
                repeated = json.loads(line)["id"]
                raise StreamError(f"id {repeated!r} occurs twice; ids of a test set must be unique")
            seen.add(name)
            made.count(rows.tasks[task])
            if uneven:
                line = encode(harmonize(json.loads(line), uneven))
            if large and planned.task is None:
                record = json.loads(line)
                if key := start_of_file.late(record, len(line)):
                    raise StreamError(
                        f"{planned.file}: {key!r} of sample {record['id']!r} holds what no sample "
                        "in the first 5 MB of the chunk holds (pictures after text alone, text "
                        "after times): the host's loader would stop there; cut smaller chunks with "
                        "--size, or shuffle the source"
                    )
            yield line

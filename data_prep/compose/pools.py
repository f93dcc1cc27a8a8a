"""All samples of a task, converted once, from which the chunks of a stream are drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from data_prep.errors import DataError, Problem
from data_prep.files import write_blocks
from data_prep.parallel import ordered_map
from data_prep.sources.converting import Converter, Limit, converted
from data_prep.sources.fields import FIRST_BLOCK, Columns, harmonize
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.readers import DECODER
from data_prep.sources.records import HostSample, encode
from data_prep.sources.test_sets import TestFile, lines_of_test
from data_prep.stream_writer import BadSamples, PlannedFile, WrittenFile

Counts = list[dict[str, int]]  # samples by task, for each chunk


@dataclass(frozen=True)
class Pool:
    """The converted samples of a task: `samples` lines in `path`, their starts in `index`."""

    task: str
    path: Path
    samples: int
    problems: tuple[Problem, ...] = ()
    columns: Columns = field(default_factory=Columns)

    @property
    def index(self) -> Path:
        """Return the file with the first byte of each line, and the end of the last."""
        return self.path.with_suffix(".npy")


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of a pool's shuffled order; past its end they begin anew."""

    pool: Pool
    start: int
    stop: int
    seed: int


class TrainFile(Converter):
    """Finishes the training samples of one task.

    `numbered` gives all of them ids by their place, else those that have none.
    """

    def __init__(self, task: str, id_prefix: str, numbered: bool = False) -> None:
        self.task, self.id_prefix, self.numbered = task, id_prefix, numbered

    def finish(self, raw: Any, record: HostSample, number: int) -> HostSample:
        """Return the record with its task and an id."""
        record["task"] = self.task
        if self.numbered or "id" not in record:
            record["id"] = f"{self.id_prefix}{self.task}-{number:06d}"
        return record


def make_pools(
    folder: Path,
    files: dict[str, Path],
    resolvers: dict[str, ImageResolver],
    skip_bad: bool,
    workers: int,
    id_prefix: str = "",
    limit: Limit | None = None,
    numbered: bool = False,
) -> dict[str, Pool]:
    """Convert the training file of each task, or `limit` of it, into `folder`.

    Raises:
        BadSamples: samples were refused and `skip_bad` is off.
        DataError: a file cannot be read, or none of its samples is good.
    """
    jobs = [
        (path, resolvers[task], TrainFile(task, id_prefix, numbered), limit)
        for task, path in files.items()
    ]
    pools = {p.task: p for p in ordered_map(partial(_make_pool, folder), jobs, workers)}
    problems = [problem for pool in pools.values() for problem in pool.problems]
    if problems and not skip_bad:
        raise BadSamples(problems)
    for task, pool in pools.items():
        if not pool.samples:
            raise DataError("empty-file", f"{files[task]}: none of its samples is good")
    return pools


def _make_pool(folder: Path, job: tuple[Path, ImageResolver, TrainFile, Limit | None]) -> Pool:
    path, resolver, special, limit = job
    target = folder / f"{special.task}.jsonl"
    made, starts, columns = WrittenFile(), [0], Columns()

    def lines() -> Iterator[bytes]:
        for record in converted(path, resolver, special, made, limit):
            line = encode(record)
            starts.append(starts[-1] + len(line))
            columns.add(record)
            yield line

    write_blocks(target, lines())
    np.save(target.with_suffix(".npy"), np.array(starts, dtype=np.uint64))
    return Pool(special.task, target, len(starts) - 1, tuple(made.problems), columns)


def chunk_files(
    pools: dict[str, Pool], counts: Counts, seed: int, before: int = 0
) -> list[PlannedFile]:
    """Return the chunks: each takes the next rows of every task's shuffled order.

    `before` is the number of chunks that the stream holds already.
    """
    used = dict.fromkeys(pools, 0)
    columns, files = Columns(), []
    for pool in pools.values():
        columns.merge(pool.columns)
    uneven = columns.uneven(FIRST_BLOCK + 1)  # chunks may be read together: one form in all
    for number, chunk in enumerate(counts, start=before + 1):
        slices = []
        for task, count in chunk.items():
            start, used[task] = used[task], used[task] + count
            slices.append(Slice(pools[task], start, used[task], seed))
        files.append(
            PlannedFile(f"chunks/{number:03d}.jsonl", (number, seed, tuple(slices), uneven))
        )
    return files


def rows(piece: Slice) -> list[HostSample]:
    """Return the samples of a slice."""
    order = np.random.RandomState([piece.seed, crc32(piece.pool.task.encode())])
    shuffled = order.permutation(piece.pool.samples)
    starts = np.load(piece.pool.index)
    out = []
    # Line by line: a chunk takes lines from all over a file that may not fit into memory.
    with piece.pool.path.open("rb") as file:
        for place in range(piece.start, piece.stop):
            row = int(shuffled[place % piece.pool.samples])
            start, stop = int(starts[row]), int(starts[row + 1])
            out.append(DECODER.decode(os.pread(file.fileno(), stop - start, start).decode()))
    return out


def chunk_lines(planned: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of one chunk, its tasks shuffled together."""
    number, seed, slices, uneven = planned.source
    records = [harmonize(record, uneven) for piece in slices for record in rows(piece)]
    # RandomState's stream of numbers never changes between versions of numpy.
    for at in np.random.RandomState([seed, number]).permutation(len(records)):
        made.count(records[at]["task"])
        yield encode(records[at])


def make(planned: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of a test set, or of a chunk that is drawn from pools."""
    if isinstance(planned.source, TestFile):
        yield from lines_of_test(planned.source, made)
    else:
        yield from chunk_lines(planned, made)

"""A file of samples in any form, or a subset of it, -> host samples; what is refused is listed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from data_prep.errors import DataError
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.raw_forms import to_host
from data_prep.sources.readers import place, read_all
from data_prep.sources.records import HostSample, encode
from data_prep.stream_writer import WrittenFile

_LETTERS = 40  # of an answer: longer ones are all different


@dataclass(frozen=True)
class Limit:
    """At most so many samples of a file; `seed` says which."""

    samples: int
    seed: int


def read_some(path: Path, limit: Limit | None) -> Iterator[tuple[int, Any]]:
    """Yield (number, sample) as `read_all` does, of a limited file the chosen ones in their order.

    A limited file is read twice, so that no more than its answers are in memory.
    """
    if limit is None:
        yield from read_all(path)
        return
    kept = chosen([stratum(raw) for _, raw in read_all(path)], limit, path.name)
    for number, item in enumerate(read_all(path)):
        if number in kept:
            yield item


def chosen(strata: Sequence[str], limit: Limit, name: str = "") -> set[int]:
    """Return the places of at most `limit.samples` items, each stratum with its share of them.

    Systematic sampling: the items lie stratum by stratum, shuffled inside, and every (n / samples)
    th is taken, so that a stratum of m gives m * samples / n, rounded up or down.

    Args:
        strata: of each item.
        limit: how many, and the seed.
        name: of the file, so that files of one length are not cut alike.
    """
    count = len(strata)
    if limit.samples >= count:
        return set(range(count))
    random = np.random.RandomState([limit.seed, crc32(name.encode())])
    # lexsort sorts by its last key first: by stratum, and at random inside each.
    order = np.lexsort((random.permutation(count), np.array(strata)))
    steps = (np.arange(limit.samples) + random.random_sample()) * (count / limit.samples)
    return {int(at) for at in order[steps.astype(int)]}


def stratum(raw: Any) -> str:
    """Return what a sample as published is told apart by: its picture's folder and its answer."""
    if not isinstance(raw, dict):
        return ""
    images = raw.get("images") or [raw.get("image")]
    first = images[0] if isinstance(images, list) else images
    folder = "/".join(str(first or "").split("/")[:2])
    answer = raw.get("answer", raw.get("answers"))
    turns = raw.get("messages") or raw.get("conversations")
    if answer is None and isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        answer = turns[-1].get("content", turns[-1].get("value"))
    return f"{folder} {json.dumps(answer, default=str)[:_LETTERS]}"


class Converter(ABC):
    """Knows what is special about the samples of one file."""

    def prepare(self, raw: Any) -> Any:
        """Return the raw sample in a form that `to_host` reads; by default as it is."""
        return raw

    @abstractmethod
    def finish(self, raw: Any, record: HostSample, number: int) -> HostSample:
        """Return the record with task and id. Raises DataError for a sample that cannot be used."""


def converted(
    path: Path,
    resolver: ImageResolver,
    special: Converter,
    made: WrittenFile,
    limit: Limit | None = None,
) -> Iterator[HostSample]:
    """Yield the samples of a file, or the chosen ones, in the host's form.

    They are counted in `made`, and what is refused is noted there.
    """
    for number, raw in read_some(path, limit):
        try:
            raw = special.prepare(raw)
            record = special.finish(raw, to_host(raw, resolver.resolve), number)
            encode(record)  # refuses what could not be written
        except DataError as refused:
            name = raw.get("id", raw.get("question_id", "")) if isinstance(raw, dict) else ""
            made.problems.append(refused.at(place(path, number), str(name)))
            continue
        made.count(record["task"])
        yield record

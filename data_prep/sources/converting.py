"""A file of samples in any form -> host samples, those that are refused listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import DataError
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.raw_forms import to_host
from data_prep.sources.readers import place, read_all
from data_prep.sources.records import HostSample, encode
from data_prep.stream_writer import WrittenFile


class Converter(Protocol):
    """Knows what is special about the samples of one file."""

    def prepare(self, raw: Any) -> Any:
        """Return the raw sample in a form that `to_host` reads."""

    def finish(self, raw: Any, record: HostSample, number: int) -> HostSample:
        """Return the record with task and id. Raises DataError for a sample that cannot be used."""


def converted(
    path: Path, resolver: ImageResolver, special: Converter, made: WrittenFile
) -> Iterator[HostSample]:
    """Yield the samples of a file in the host's form.

    They are counted in `made`, and what is refused is noted there.
    """
    for number, raw in read_all(path):
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

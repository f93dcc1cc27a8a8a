"""Harmonizes the extra fields of a chunk: every sample has them, each of one type.

The host reads a chunk with `datasets`: a field that first appears after 10 MB of the file stops it
(measured with 4.8.4), and so does, in older versions, one that is text here and a list there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from data_prep.sources.records import HostSample, encode

FIRST_BLOCK = 8 << 20  # bytes of a file by which its columns are known; `datasets` reads 10 MB
# The host knows these fields, so they are left as they are.
HOSTS_OWN = ("messages", "images", "task", "id", "objects", "tools", "rejected_response")


class Columns:
    """The types of the extra fields of many samples, counted one sample at a time."""

    def __init__(self) -> None:
        self.samples = 0
        self.kinds: dict[str, set[str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, record: HostSample) -> None:
        """Count the fields of one sample."""
        self.samples += 1
        for key, value in record.items():
            if key not in HOSTS_OWN:
                self.kinds.setdefault(key, set()).add(kind_of(value))
                self.counts[key] = self.counts.get(key, 0) + 1

    def merge(self, other: Columns) -> None:
        """Add what `other` has counted."""
        self.samples += other.samples
        for key, kinds in other.kinds.items():
            self.kinds[key] = self.kinds.get(key, set()) | kinds
            self.counts[key] = self.counts.get(key, 0) + other.counts[key]

    def mixed(self) -> list[str]:
        """Return the fields that are of several types."""
        return sorted(key for key, kinds in self.kinds.items() if len(kinds) > 1)

    def sparse(self) -> list[str]:
        """Return the fields that are not in every sample."""
        return sorted(key for key, count in self.counts.items() if count < self.samples)

    def uneven(self, size: int) -> list[str]:
        """Return the fields that must become text in a file of `size` bytes."""
        return sorted({*self.mixed(), *(self.sparse() if size > FIRST_BLOCK else [])})


def kind_of(value: Any) -> str:
    """Return the type of a field's value, as a column sees it."""
    if isinstance(value, bool | str | int | float):
        return type(value).__name__
    if isinstance(value, list) and value:
        inner = {kind_of(item) for item in value}
        if len(inner) == 1 and not inner & {"nested"} and not next(iter(inner)).startswith("list"):
            return f"list of {inner.pop()}"
    return "nested"


def harmonize(record: HostSample, uneven: list[str]) -> HostSample:
    """Return the sample with the `uneven` fields as text: JSON where it is not text already."""
    out: dict[str, object] = {**record}
    for key in uneven:
        value = out.get(key)
        if value is None:
            out[key] = ""
        elif not isinstance(value, str):
            out[key] = json.dumps(value, ensure_ascii=False)
    return cast("HostSample", out)


def harmonize_all(records: Iterable[HostSample]) -> list[HostSample]:
    """Return the samples of one chunk with harmonized fields."""
    records = list(records)
    columns = Columns()
    for record in records:
        columns.add(record)
    mixed, sparse = columns.mixed(), columns.sparse()
    if not mixed and not sparse:
        return records
    size = sum(map(len, map(encode, records)))
    uneven = columns.uneven(size)
    return [harmonize(record, uneven) for record in records] if uneven else records

"""Harmonizes the extra fields of a chunk: every sample has them, each of one type at any depth.

The host reads a chunk with `datasets`, which fixes the type of every field by the first 10 MB of a
file and stops at the first sample of another type (measured with 4.8.4): a key that appears later,
also inside an object; text that looked like a time so far; a list that was empty so far. Where
several chunks are given to it in one call, the first of them decides. A field
that is an integer here and text there stops it in files of any size, and so does an integer above
2^63. Such fields are written as JSON text, in all samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from data_prep.sources.records import HostSample, encode

FIRST_BLOCK = 5 << 20  # bytes of a file by which its columns are known; `datasets` reads 10 MB
MOST_PATHS = 200  # of keys inside one field; more are names, such as {"img1": 0.1, "img2": 0.3}
# The host knows these fields, so they are left as they are.
HOSTS_OWN = ("messages", "images", "task", "id", "objects", "tools")
REJECTED = "rejected_response"  # the host deletes a sample where it is null
_TURN_DEFAULTS = {"loss": True}  # of an answer; the recipes train on all answers
_TIME = re.compile(r"\s*\d{4}-\d\d-\d\d")  # what `datasets` may read as a time
# Read by the host, by the scorers or by `check`.
FIELDS_READ = {
    *HOSTS_OWN,
    *(REJECTED, "rejected_messages", "label", "channel", "margin", "chat_template_kwargs"),
    *("options", "references", "answer_bbox", "size", "question_id"),
}
MESSAGES = "messages"  # become uneven by a `loss` that not all answers have
Uneven = dict[str, bool]  # field that must become JSON text; whether text is put in quotes too


@dataclass
class Columns:
    """The types of the extra fields of many samples, counted one sample at a time.

    Attributes:
        samples: how many were counted.
        kinds: by field, then by the path inside it ("" is the field itself, ".a" a key, "[]" the
            items of a list): how often each type was found.
    """

    samples: int = 0
    kinds: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count the fields of one sample."""
        self.samples += 1
        for turn in record["messages"]:
            for key in _TURN_DEFAULTS.keys() & turn.keys():
                self._count(MESSAGES, f".{key}", "any", 1)
            if turn["role"] == "assistant":
                self._count(MESSAGES, "", "any", 1)
        for key, value in record.items():
            if key not in HOSTS_OWN:
                for path, kind in _kinds(value, ""):
                    self._count(key, path, kind, 1)

    def merge(self, other: Columns) -> None:
        """Add what `other` has counted."""
        self.samples += other.samples
        for key, paths in other.kinds.items():
            for path, kinds in paths.items():
                for kind, count in kinds.items():
                    self._count(key, path, kind, count)

    def of_several_types(self) -> list[str]:
        """Return the fields that no file may hold as they are: of several types, or too large."""
        return sorted(key for key, paths in self.kinds.items() if _has_several_types(paths))

    def sparse(self) -> list[str]:
        """Return the fields whose type the start of a large file may not show."""
        return sorted(
            key
            for key, paths in self.kinds.items()
            if (_is_loss_sparse(paths) if key == MESSAGES else self._is_sparse(paths))
        )

    def uneven(self, size: int, limit: int = FIRST_BLOCK) -> Uneven:
        """Return the fields that must become text in a file of `size` bytes."""
        sparse = self.sparse()
        names = {
            *self.of_several_types(),
            *(sparse if size > limit else {REJECTED}.intersection(sparse)),
        }
        return {name: "time" in self.kinds[name].get("", {}) for name in sorted(names)}

    def _count(self, key: str, path: str, kind: str, count: int) -> None:
        paths = self.kinds.setdefault(key, {})
        if path not in paths and len(paths) >= MOST_PATHS:
            path, kind = "", "many keys"
        kinds = paths.setdefault(path, {})
        kinds[kind] = kinds.get(kind, 0) + count

    def _is_sparse(self, paths: dict[str, dict[str, int]]) -> bool:
        if sum(paths.get("", {}).values()) < self.samples:
            return True
        for path, kinds in paths.items():
            if len(kinds) > 1:
                return True
            if path and not path.endswith("[]"):
                # Keys may hold dots: then the parent is not found, and the field becomes text.
                objects = paths.get(path.rpartition(".")[0], {}).get("object")
                if objects is None or sum(kinds.values()) < objects:
                    return True
        return False


def _is_loss_sparse(paths: dict[str, dict[str, int]]) -> bool:
    answers = paths.get("", {}).get("any", 0)
    return any(kinds["any"] < answers for path, kinds in paths.items() if path)


def _has_several_types(paths: dict[str, dict[str, int]]) -> bool:
    for kinds in paths.values():
        types = {{"time": "text", "empty": "list"}.get(kind, kind) for kind in kinds} - {"null"}
        if len(types) > 1 or types & {"large", "many keys"}:
            return True
    return False


def _kinds(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the type of a value and of everything inside it."""
    if value is None:
        yield path, "null"
    elif isinstance(value, bool | float):
        yield path, type(value).__name__
    elif isinstance(value, int):
        yield path, "int" if -(2**63) <= value < 2**63 else "large"
    elif isinstance(value, dict):
        yield path, "object" if value else "null"
        for key, inner in value.items():
            yield from _kinds(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        yield path, "list" if value else "empty"
        for inner in value:
            yield from _kinds(inner, f"{path}[]")
    else:  # also what `encode` writes as text: dates, decimals
        yield path, "time" if _TIME.match(str(value)) else "text"


class StartOfFile:
    """Finds what the host's own fields hold only after the start of a large file.

    They cannot become text, so such a file must be cut or shuffled.
    """

    def __init__(self, limit: int = FIRST_BLOCK) -> None:
        self.limit, self.at = limit, 0
        self.known: set[tuple[str, str, str]] = set()

    def late(self, record: Mapping[str, Any], size: int) -> str | None:
        """Return the field of a type that did not occur before; `size` is of the line, in bytes."""
        types = {
            (key, path, kind)
            for key in HOSTS_OWN
            if key in record and key != "tools"
            for path, kind in _kinds(record[key], "")
            if kind not in ("null", "empty")
        }
        self.at += size
        if self.at <= self.limit:
            self.known |= types
            return None
        return next((key for key, _, _ in sorted(types - self.known)), None)


def harmonize(record: HostSample, uneven: Uneven) -> HostSample:
    """Return the sample with the `uneven` fields as text: JSON where it is not text already.

    Where some of a field's texts look like times, its text is written as JSON (in quotes), too.
    """
    out: dict[str, object] = {**record}
    for key, quoted in uneven.items():
        value = out.get(key)
        if key == MESSAGES:
            out[key] = [
                {**_TURN_DEFAULTS, **turn} if turn["role"] == "assistant" else turn
                for turn in record["messages"]
            ]
        elif value is None:
            # Never null: a column that begins with nulls has no type for `datasets`, and the host
            # deletes a sample whose rejected_response is null.
            out[key] = ""
        elif quoted or not isinstance(value, str):
            out[key] = json.dumps(value, ensure_ascii=False)
    return cast("HostSample", out)


def harmonize_all(records: Iterable[HostSample]) -> list[HostSample]:
    """Return the samples of one chunk with harmonized fields."""
    records = list(records)
    columns = Columns()
    for record in records:
        columns.add(record)
    if not columns.of_several_types() and not columns.sparse():
        return records
    uneven = columns.uneven(sum(map(len, map(encode, records))))
    return [harmonize(record, uneven) for record in records] if uneven else records

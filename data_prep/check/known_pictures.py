"""What is known of a stream's pictures, so that an append decodes those of its batch alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from data_prep.files import read_jsonl, write_jsonl
from data_prep.images import Picture

FILE = "pictures.jsonl"
Stamp = tuple[int, int]


def read_known(root: Path) -> dict[str, Picture]:
    """Return what was found out about the pictures of the stream in `root`, by their names.

    Pictures that changed since are left out, those that are gone are not: their samples are still
    compared. A file of notes that cannot be read is as good as none: all are decoded again.
    """
    known: dict[str, Picture] = {}
    with suppress(OSError, ValueError, TypeError, KeyError):
        for line in read_jsonl(root / FILE):
            name, stamp = str(line["name"]), tuple(line.pop("stamp"))
            if _stamp(root / name) in (None, stamp):
                size, findings = line["size"], map(tuple, line["findings"])
                line |= {"size": tuple(size) if size else None, "findings": [*findings]}
                known[name] = Picture(**line)
    return known


def write_known(root: Path, pictures: Mapping[str, Picture]) -> None:
    """Note what was found out about pictures, by their names."""
    # Without a hash a picture could not be read: the next append looks again.
    readable = ((name, each) for name, each in sorted(pictures.items()) if each.sha256)
    notes = (
        # (0, 0) for a file that is gone: read_known keeps what was known of it.
        {"name": name, "stamp": _stamp(root / name) or (0, 0)} | asdict(picture)
        for name, picture in readable
    )
    write_jsonl(root / FILE, notes)


def _stamp(path: Path) -> Stamp | None:
    """Return what changes with a file's bytes, its size and time of change; None without one."""
    try:
        facts = path.stat()
    except OSError:
        return None
    # Not st_mtime, which cp -p and rsync -t set to that of another file.
    return facts.st_size, facts.st_ctime_ns

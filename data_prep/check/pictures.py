"""All images of a stream, each decoded once, in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from data_prep.errors import DataError
from data_prep.images import Picture, inspect, resolve
from data_prep.parallel import ordered_map
from data_prep.progress_bar import Progress

BATCH = 64


class _Job(NamedTuple):
    root: Path
    allowed: tuple[Path, ...]
    names: list[str]
    near: bool
    decode: bool


def inspect_all(
    root: Path,
    allowed: tuple[Path, ...],
    names: Iterable[str],
    workers: int,
    near: bool = False,
    decode: bool = True,
    progress: Progress | None = None,
) -> dict[str, Picture]:
    """Return what was found out about every image, by its name in the samples.

    Args:
        root: the stream folder.
        allowed: resolved folders that may hold images.
        names: image paths as the samples write them.
        workers: processes.
        near: compute difference hashes.
        decode: False only checks that the files exist.
        progress: called after every batch.
    """
    names = sorted(set(names))
    found: dict[str, Picture] = {}
    batches = (_Job(root, allowed, batch, near, decode) for batch in _batches(names))
    for pictures in ordered_map(_inspect_batch, batches, min(workers, len(names) // BATCH + 1)):
        found.update(pictures)
        if progress:
            progress(len(found), len(names))
    return found


def _batches(names: list[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _inspect_batch(job: _Job) -> dict[str, Picture]:
    known: dict[str, str] = {}
    return {name: _inspect(job, name, known) for name in job.names}


def _inspect(job: _Job, name: str, known: dict[str, str]) -> Picture:
    try:
        path = resolve(job.root, name, job.allowed, known)
    except DataError as refused:
        picture = Picture()
        picture.add(refused.code, refused.text)
        return picture
    return inspect(path, name, job.near) if job.decode else Picture()

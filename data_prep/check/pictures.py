"""All images of a stream, each decoded once, in parallel."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from data_prep.errors import ERROR, DataError
from data_prep.images import Picture, inspect, resolve
from data_prep.parallel import ordered_map
from data_prep.progress_bar import Progress

BATCH = 64


def inspect_all(
    root: Path,
    allowed: tuple[Path, ...],
    names: set[str],
    workers: int,
    near: bool = False,
    decode: bool = True,
) -> dict[str, Picture]:
    """Return what was learnt about every image, by its name in the samples.

    Args:
        root: the stream folder.
        allowed: resolved folders that may hold images.
        names: image paths as the samples write them.
        workers: processes.
        near: compute difference hashes.
        decode: False only checks that the files exist.
    """
    order = sorted(names)
    batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    work = partial(_inspect_batch, root, allowed, near, decode)
    pictures: dict[str, Picture] = {}
    progress = Progress("images", "images")
    for batch in ordered_map(work, batches, min(workers, len(batches))):
        pictures.update(batch)
        progress(len(pictures), len(names))
    progress.close()
    return pictures


def _inspect_batch(
    root: Path, allowed: tuple[Path, ...], near: bool, decode: bool, names: list[str]
) -> dict[str, Picture]:
    folders: dict[str, str] = {}
    pictures: dict[str, Picture] = {}
    for name in names:
        try:
            path = resolve(root, name, allowed, folders)
            pictures[name] = inspect(path, name, near) if decode else Picture(name)
        except DataError as refused:
            pictures[name] = Picture(name, findings=[(refused.code, refused.text, ERROR)])
    return pictures

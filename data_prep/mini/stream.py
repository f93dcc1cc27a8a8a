"""Writes a stream folder: in parallel, resumable, and a no-op when it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.files import sha256_file, write_json
from data_prep.mini import manifest
from data_prep.mini.assets import DEFAULT_CACHE, fetch_all
from data_prep.mini.mixtures import SIZES
from data_prep.mini.samples import Unit, Written, write_unit
from data_prep.mini.tasks import TASKS
from data_prep.parallel import cores, ordered_map

PARTIAL = "stream.partial.json"  # settings and hashes of an unfinished run
Report = Callable[[int, int, str], None]  # samples done, samples in all, file just written


def write_stream(
    folder: Path,
    size: str = "tiny",
    seed: int = 0,
    workers: int | None = None,
    report: Report | None = None,
    cache: Path = DEFAULT_CACHE,
) -> bool:
    """Write the stream to `folder`; return False when it was already complete.

    Raises KeyError for an unknown size, AssetError when the data cannot be had, and StreamError
    when the folder holds another stream or a changed file.
    """
    if size not in SIZES:
        raise KeyError(f"size {size!r} is unknown, expected one of {', '.join(SIZES)}")
    folder = Path(folder)
    done = finished(folder, size, seed)
    todo = [unit for unit in manifest.units(size, seed) if unit.file not in done]
    if not todo and (folder / manifest.FILE).exists():
        return False
    needed = {package for name in SIZES[size].tasks(seed) for package in TASKS[name].packages}
    fetch_all(cache, sorted(needed))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.FILE).unlink(missing_ok=True)
    _note(folder, size, seed, done)
    total = sum(unit.samples for unit in todo)
    so_far = 0
    for unit, written in _write_all(folder, todo, workers or cores(), cache):
        done[written.file] = written
        _note(folder, size, seed, done)
        so_far += unit.samples
        if report:
            report(so_far, total, written.file)
    content = manifest.build(folder, size, seed, list(done.values()))
    write_json(folder / manifest.FILE, content)
    (folder / PARTIAL).unlink()
    return True


def finished(folder: Path, size: str, seed: int) -> dict[str, Written]:
    """Return the files of `folder` that need not be written again, from a whole or partial run."""
    if (folder / manifest.FILE).exists():
        missing = manifest.check(folder, size, seed)
        content = json.loads((folder / manifest.FILE).read_text())
        entries = manifest.entries(content)
        items = [Written(e["file"], e["sha256"], e["pixels_sha256"]) for e in entries]
        return {item.file: item for item in items if item.file not in missing}
    if not (folder / PARTIAL).exists():
        return {}
    content = json.loads((folder / PARTIAL).read_text())
    manifest.expect_settings(folder / PARTIAL, content, size, seed)
    manifest.expect_counts(folder / PARTIAL, content.get("planned", {}), size, seed)
    items = [Written(**entry) for entry in content["written"]]
    return {item.file: item for item in items if _unchanged(folder / item.file, item.sha256)}


def _unchanged(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_file(path) == sha256


def _note(folder: Path, size: str, seed: int, done: dict[str, Written]) -> None:
    """Record what is written so far, so that an interrupted run can go on."""
    content = {
        **manifest.settings(size, seed),
        "planned": manifest.planned(size, seed),
        "written": [vars(w) for w in done.values()],
    }
    write_json(folder / PARTIAL, content)


def _write_all(
    folder: Path, todo: list[Unit], workers: int, cache: Path
) -> Iterator[tuple[Unit, Written]]:
    """Yield every unit with its hashes as it is written, in the order of `todo`."""
    jobs = [(folder, unit, cache) for unit in todo]
    written = ordered_map(write_unit, jobs, min(workers, len(todo)))
    yield from zip(todo, written, strict=True)

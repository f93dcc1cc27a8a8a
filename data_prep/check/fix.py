"""The cleaned copy: a new stream without the samples that have errors; the source stays as is."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from data_prep.check import GENERATOR, VERSION
from data_prep.check.checking import Result
from data_prep.check.sample_rules import check_sample
from data_prep.check.stream_folder import DataFile
from data_prep.files import sha256_file, write_blocks
from data_prep.progress_bar import Progress
from data_prep.sources.fields import Uneven, harmonize
from data_prep.sources.readers import read_all
from data_prep.sources.records import encode
from data_prep.stream import StreamError
from data_prep.stream_writer import LEFT_OUT, Contents, Plan, PlannedFile, WrittenFile, write_stream


@dataclass(frozen=True)
class Kept:
    """A file of the source, and the lines that are left out of it."""

    root: Path
    file: DataFile
    dropped: frozenset[int]
    uneven: Uneven
    entry: dict[str, object]  # of the manifest


def write_clean(result: Result, out: Path, workers: int | None) -> tuple[int, list[str]]:
    """Write the cleaned copy; return the samples left out and the files that became empty.

    Raises:
        StreamError: `out` cannot be written, lies inside the source, or no chunk is left.
    """
    root = result.layout.root.resolve()
    # A file that was given alone has its whole path for a name, and its folder is no stream.
    one_file = any(Path(file.name).is_absolute() for file in result.layout.files)
    inside = out.resolve().is_relative_to(root) and not one_file
    if inside or root.is_relative_to(out.resolve()):
        raise StreamError(f"--fix {out}: expected a folder beside {root}, not inside or around it")
    files, empty = _files(result)
    if not any(planned.task is None for planned in files):
        raise StreamError("no chunk has a good sample left; nothing was written")
    manifest = result.layout.manifest or {}
    settings = {
        "of": manifest.get("generator"),
        "files": {file.name: sha256_file(root / file.name) for file in result.layout.files},
        "left_out": sorted(f"{name}:{line}" for name, line in result.bad),
    }
    generator = {"name": GENERATOR, "version": VERSION, "settings": settings}
    name = str(manifest.get("name", root.name))
    batches = _batches(manifest, files)
    contents = partial(_contents, result, files, batches)
    plan = Plan(name, generator, manifest.get("seed", 0), contents, make)
    write_stream(out, replace(plan, review=partial(_note_hashes, batches)), workers)
    return len(result.bad), empty


def _files(result: Result) -> tuple[list[PlannedFile], list[str]]:
    """Return the files of the copy, and the names of those that nothing is left of."""
    files, empty = [], []
    kept_chunks, numbers = _kept_chunks(result), count(1)
    for file in result.layout.files:
        dropped = frozenset(line for name, line in result.bad if name == file.name)
        if sum(result.seen[file.name].values()) <= len(dropped):
            empty.append(file.name)
            continue
        uneven = result.uneven.get(file.name, {}) if file.task is None else {}
        entry: dict[str, object] = {}
        if file.chunk is not None:
            entry = {"of": file.of, "chunk": max(1, sum(n <= file.chunk for n in kept_chunks))}
        kept = Kept(result.layout.root, file, dropped, uneven, entry)
        # Numbered anew: behind a chunk that nothing is left of, an append would take the name of a
        # later one.
        place = file.name if file.task is not None else f"chunks/{next(numbers):03d}.jsonl"
        files.append(PlannedFile(place, kept, file.task, file.validation))
    return files, empty


def _batches(manifest: dict[str, Any], planned: list[PlannedFile]) -> list[dict[str, Any]]:
    """Return the batches that were appended to the source, their files by their names in the copy.

    An append to the copy goes on behind them, and knows their sources again.
    """
    places = {each.source.file.name: each.file for each in planned}
    return [
        {
            **batch,
            "before": None,  # the sha256 of a stream that runs trained on: never of this one
            "files": {places[file]: sha for file, sha in batch["files"].items() if file in places},
        }
        for batch in manifest.get("batches", ())
    ]


def _note_hashes(batches: list[dict[str, Any]], made: list[WrittenFile]) -> None:
    """Write the hashes of the copy's own files into its batches."""
    for batch in batches:
        batch["files"] = {each.file: each.sha256 for each in made if each.file in batch["files"]}


def _kept_chunks(result: Result) -> list[int]:
    """Return the numbers, from 1, of the chunks that keep a sample."""
    chunks = [file.name for file in result.layout.files if file.task is None]
    bad = Counter(name for name, _ in result.bad)
    return [n for n, name in enumerate(chunks, 1) if sum(result.seen[name].values()) > bad[name]]


def _contents(
    result: Result, planned: list[PlannedFile], batches: list[dict[str, Any]], staging: Path
) -> Contents:
    """Copy the images that are still used and return what the copy holds."""
    root, manifest = result.layout.root, result.layout.manifest or {}
    bad, files = result.bad, result.layout.files
    links = {name: str(Path(to).resolve()) for name, to in manifest.get("links", {}).items()}
    used = {
        image
        for sample in result.samples
        if (files[sample.file].name, sample.line) not in bad
        for image in sample.images
    }
    copied = sorted(image for image in used if Path(image).parts[0] not in links)
    progress = Progress("copying", "images")
    for number, image in enumerate(copied, start=1):
        _copy(root / image, staging / image)
        progress(number, len(copied))
    write_blocks(staging / LEFT_OUT, _left_out(result))
    tops = {Path(image).parts[0] for image in copied}
    scorers = {f.task: f.scorer or "exact" for f in files if f.task is not None}
    cut = manifest.get("cut") or []
    facts: dict[str, Any] = {"cut": [cut[n - 1] for n in _kept_chunks(result)]} if cut else {}
    if batches:
        facts["batches"] = batches
    return Contents(planned, scorers, links, (LEFT_OUT, *sorted(tops)), facts)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: after a kill, what has the right name is whole.
    shutil.copyfile(source, target.with_name(f".{target.name}"))
    target.with_name(f".{target.name}").replace(target)


def _left_out(result: Result) -> Iterator[bytes]:
    root = result.layout.root
    places = {f"{root / name}:{line}" for name, line in result.bad}
    for problem in result.problems:
        if problem.where in places:
            yield encode(problem.as_json())


def make(planned: PlannedFile, made: WrittenFile) -> Iterator[bytes]:
    """Yield the lines of one file that stay."""
    kept: Kept = planned.source
    made.entry.update(kept.entry)
    for line, raw in read_all(kept.root / kept.file.name):
        if line in kept.dropped:
            continue
        record = check_sample(raw, kept.file)
        made.count(str(record.get("task") or planned.task or ""))
        yield encode(harmonize(record, kept.uneven) if kept.uneven else record)

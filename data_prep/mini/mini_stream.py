"""What the embedded stream holds, written with `data_prep.stream_writer`."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

from data_prep.mini import GENERATOR, VERSION, stream_name
from data_prep.mini.assets import DEFAULT_CACHE, fetch_all
from data_prep.mini.constant_answer import best_constant_score
from data_prep.mini.mixtures import SIZES
from data_prep.mini.rendering import IMAGES, SampleRange, render_file
from data_prep.mini.tasks import TASKS
from data_prep.stream_writer import (
    PARTIAL,
    Contents,
    Plan,
    PlannedFile,
    Report,
    WrittenFile,
    write_stream,
)


def write_mini_stream(
    folder: Path,
    size: str = "tiny",
    seed: int = 0,
    workers: int | None = None,
    report: Report | None = None,
    cache: Path = DEFAULT_CACHE,
) -> bool:
    """Write the stream to `folder`; return False when it was already complete.

    Raises:
        KeyError: the size is unknown.
        DataError: the packages with the real data cannot be had.
        StreamError: the folder holds another stream or a changed file.
    """
    if size not in SIZES:
        raise KeyError(f"size {size!r} is unknown, expected one of {', '.join(SIZES)}")
    plan = plan_of(folder, size, seed, cache)
    return write_stream(folder, plan, workers, report) is not None


def plan_of(folder: Path, size: str, seed: int, cache: Path) -> Plan:
    """Return how the stream of a size is made in `folder`."""
    files = planned_files(size, seed)
    scorers = {name: TASKS[name].scorer for name in SIZES[size].tasks(seed)}

    def contents(staging: Path) -> Contents:
        # Once, before the workers start: each of them would fetch for itself. And only here, where
        # something is to be made: a finished stream needs no packages.
        fetch_all(cache, sorted({package for name in scorers for package in TASKS[name].packages}))
        return Contents(files, scorers, links=None, extras=(IMAGES,))

    return Plan(
        name=stream_name(size),
        generator={"name": GENERATOR, "version": VERSION},
        seed=seed,
        contents=contents,
        make=partial(render_file, folder / PARTIAL, cache),
        review=partial(_add_majorities, scorers),
        samples={planned.file: planned.source.samples for planned in files},
        is_whole=partial(_has_all_images, files),
    )


def planned_files(size: str, seed: int) -> list[PlannedFile]:
    """Return the files of a stream: its chunks in order, then test (and validation) by task."""
    table, used, files = SIZES[size], Counter[str](), []
    for number, counts in enumerate(table.counts(seed), 1):
        ranges = {name: (used[name], used[name] + count) for name, count in counts.items()}
        used.update(counts)
        source = SampleRange("train", ranges, seed, table.wording)
        files.append(PlannedFile(f"chunks/{number:03d}.jsonl", source))
    for split, samples in (("test", table.test), ("validation", table.validation)):
        for name in table.tasks(seed) if samples else ():
            source = SampleRange(split, {name: (0, samples)}, seed, table.wording)
            files.append(PlannedFile(f"{split}/{name}.jsonl", source, name, split == "validation"))
    return files


def _add_majorities(scorers: dict[str, str], made: list[WrittenFile]) -> None:
    """Add the score of the best constant answer to the test sets' entries in the manifest."""
    trained: dict[str, Counter[str]] = {name: Counter() for name in scorers}
    for item in made:
        for name, answers in item.answers.items() if item.file.startswith("chunks/") else ():
            trained[name].update(answers)
    for item in made:
        if item.file.startswith("test/"):
            ((name, answers),) = item.answers.items()
            if scorers[name] != "caption":  # CIDEr is not a share of right answers: see levels.json
                score = best_constant_score(scorers[name], trained[name], Counter(answers))
                item.entry["majority"] = score


def _has_all_images(files: list[PlannedFile], folder: Path) -> bool:
    """Return whether the images of every file are there, counted by split and task."""
    # Counted, not hashed: the bytes of a PNG depend on the zlib that Pillow was built with.
    present: Counter[str] = Counter()
    for path in (folder / IMAGES).glob("*/*"):
        names = (entry.name for entry in os.scandir(path))
        present[f"{path.parent.name}/{path.name}"] = sum(name.endswith(".png") for name in names)
    return all(
        present[f"{planned.source.split}/{task}"] >= stop
        for planned in files
        for task, (_, stop) in planned.source.ranges.items()
    )

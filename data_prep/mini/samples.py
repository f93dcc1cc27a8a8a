"""Samples of the stream: from a task, a split and an index to a JSONL record and a PNG file.

A unit is one JSONL file (a chunk, or the test set of a task) with its images. Its images are
written first and its JSONL is renamed into place last, so that a JSONL that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from data_prep.files import write_blocks
from data_prep.mini.assets import DEFAULT_CACHE, Assets
from data_prep.mini.tasks import Question, Scene, Task, load_task, sample_rng

_tasks: dict[tuple[str, Path], Task] = {}


@dataclass(frozen=True)
class Unit:
    """What one JSONL file is made of: for each task the half-open range of sample indices."""

    file: str  # relative to the stream folder
    split: str  # train, validation or test
    ranges: dict[str, tuple[int, int]]
    seed: int
    shared: bool = False  # one vague instruction for all tasks

    @property
    def samples(self) -> int:
        """Return the number of lines of the file."""
        return sum(stop - start for start, stop in self.ranges.values())


@dataclass(frozen=True)
class Written:
    """The hashes of a unit: of the JSONL's bytes, and of the decoded pixels in line order."""

    file: str
    sha256: str
    pixels: str


def image_path(split: str, task: str, index: int) -> str:
    """Return the image path of a sample, relative to the stream folder."""
    return f"images/{split}/{task}/{index:06d}.png"


def record(task: str, split: str, index: int, question: Question) -> dict[str, Any]:
    """Return the sample as one line of the host's chat format."""
    return {
        "messages": [
            {"role": "user", "content": "<image>" + question.prompt},
            {"role": "assistant", "content": question.answer},
        ],
        "images": [image_path(split, task, index)],
        "task": task,
        "id": f"{task}-{split}-{index:06d}",
        **question.extra,
    }


def draw_samples(
    task: Task, split: str, start: int, stop: int, seed: int, shared: bool = False
) -> Iterator[tuple[int, Scene, Question]]:
    """Yield (index, scene, question); validation and test never repeat picture and prompt.

    Every train sample depends on its own index alone. `shared`: all under one vague prompt.
    """
    seen: set[tuple[bytes, str]] = set()
    for index in range(start, stop):
        attempt = 0
        while True:
            number = index if attempt == 0 else index + attempt * 1_000_000
            rng = sample_rng(seed, task.name, split, number)
            scene = task.draw(split, rng)
            question = (task.settled if shared else task.ask)(scene, rng)
            key = (scene.image.tobytes(), question.prompt)
            if split == "train" or key not in seen:
                break
            attempt += 1
        seen.add(key)
        yield index, scene, question


def write_unit(job: tuple[Path, Unit, Path]) -> Written:
    """Write the images and the JSONL of a unit (`job`: stream folder, unit, asset cache)."""
    folder, unit, cache = job
    lines = []
    for name, (start, stop) in unit.ranges.items():
        task = _task(name, cache)
        (folder / f"images/{unit.split}/{name}").mkdir(parents=True, exist_ok=True)
        drawn = draw_samples(task, unit.split, start, stop, unit.seed, unit.shared)
        for index, scene, question in drawn:
            scene.image.save(folder / image_path(unit.split, name, index), format="PNG")
            digest = hashlib.sha256(scene.image.tobytes()).digest()
            lines.append((json.dumps(record(name, unit.split, index, question)), digest))
    if unit.split == "train":
        Random(f"{unit.seed}/{unit.file}").shuffle(lines)
    sha256 = write_blocks(folder / unit.file, (f"{line}\n".encode() for line, _ in lines))
    pixels = hashlib.sha256(b"".join(digest for _, digest in lines)).hexdigest()
    return Written(unit.file, sha256, pixels)


def _task(name: str, cache: Path = DEFAULT_CACHE) -> Task:
    """Return a task of this process, loaded once."""
    if (name, cache) not in _tasks:
        _tasks[name, cache] = load_task(name, Assets(cache))
    return _tasks[name, cache]

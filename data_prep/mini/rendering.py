"""Samples of the embedded stream: from a task, a split and an index to a JSON line and a PNG file.

The images of a file are written first and its JSONL is renamed into place last, so that a JSONL
that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from typing import cast

from data_prep.mini.assets import Assets
from data_prep.mini.mixtures import Wording
from data_prep.mini.tasks import Question, Scene, Task, load_task, sample_rng
from data_prep.mini.wordings import reworded
from data_prep.sources.records import HostSample
from data_prep.stream_writer import PlannedFile, WrittenFile

IMAGES = "images"


@dataclass(frozen=True)
class SampleRange:
    """What a file is made of: for each task the half-open range of sample indices."""

    split: str  # train, validation or test
    ranges: dict[str, tuple[int, int]]
    seed: int
    wording: Wording = "own"

    @property
    def samples(self) -> int:
        """Return the number of lines of the file."""
        return sum(stop - start for start, stop in self.ranges.values())


def image_path(split: str, task: str, index: int) -> str:
    """Return the image path of a sample, relative to the stream folder."""
    return f"{IMAGES}/{split}/{task}/{index:06d}.png"


def record(task: str, split: str, index: int, question: Question) -> HostSample:
    """Return the sample as one line of the host's chat format."""
    sample = {
        "messages": [
            {"role": "user", "content": "<image>" + question.prompt},
            {"role": "assistant", "content": question.answer},
        ],
        "images": [image_path(split, task, index)],
        "task": task,
        "id": f"{task}-{split}-{index:06d}",
        **question.extra,
    }
    return cast("HostSample", sample)


def draw_samples(
    task: Task, split: str, start: int, stop: int, seed: int, wording: Wording = "own"
) -> Iterator[tuple[int, Scene, Question]]:
    """Yield (index, scene, question); validation and test never repeat picture and prompt.

    Every train sample depends on its own index alone. Wordings are as `mixtures.Size` has them.
    """
    seen: set[tuple[bytes, str]] = set()
    for index in range(start, stop):
        for attempt in count():
            # A million on: no sample of a stream has that index as its first attempt.
            rng = sample_rng(seed, task.name, split, index + attempt * 1_000_000)
            scene = task.draw(split, rng)
            question = (task.ask_vaguely if wording == "vague" else task.ask)(scene, rng)
            if wording == "several":
                question = replace(question, prompt=reworded(question.prompt, rng))
            key = (scene.image.tobytes(), question.prompt)
            if split == "train" or key not in seen:
                break
        seen.add(key)
        yield index, scene, question


def render_file(
    staging: Path, packages: Path, planned: PlannedFile, made: WrittenFile
) -> Iterator[bytes]:
    """Write the images of one file below `staging`, then yield its lines.

    Adds `pixels_sha256`, over the decoded pixels in the order of the lines, to its entry in the
    manifest; the folder `packages` holds those with the real data.
    """
    source: SampleRange = planned.source
    rendered: list[tuple[str, Question, str, bytes]] = []  # task, question, line, hash of pixels
    for name, (start, stop) in source.ranges.items():
        task = _task(name, packages)
        (staging / image_path(source.split, name, 0)).parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_samples(task, source.split, start, stop, source.seed, source.wording)
        for index, scene, question in drawn:
            scene.image.save(staging / image_path(source.split, name, index), format="PNG")
            digest = hashlib.sha256(scene.image.tobytes()).digest()
            line = json.dumps(record(name, source.split, index, question))
            rendered.append((name, question, line, digest))
            made.count(name)
    if source.split == "train":
        Random(f"{source.seed}/{planned.file}").shuffle(rendered)
    made.entry["pixels_sha256"] = hashlib.sha256(b"".join(r[-1] for r in rendered)).hexdigest()
    if planned.task is None:
        made.entry["tasks"] = dict(made.tasks)  # in the order of the mixture
    for name, question, line, _ in rendered:
        counts = made.answers.setdefault(name, {})
        counts[question.answer] = counts.get(question.answer, 0) + 1
        yield f"{line}\n".encode()


@cache
def _task(name: str, folder: Path) -> Task:
    """Return a task of this process, loaded once, with the packages in `folder`."""
    return load_task(name, Assets(folder))

"""The pretraining images and their (field, value) pairs, made in parallel and cached on disk."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from data_prep.files import write_text
from data_prep.mini import VERSION
from data_prep.mini.assets import Assets, fetch_all
from data_prep.mini.draw import SIZE
from data_prep.mini.tasks import Task, load_task, sample_rng

# Share of the images; families that are hard to see (or new, when going on from a base) get more.
WEIGHTS = {
    "VQAv2": 0.5,
    "OCRVQA": 0.6,
    "Fin": 0.4,
    "Grounding": 1.1,
    "ImageNet": 1.0,
    "Places365": 0.2,
    "AD": 1.2,
    "ChartQA": 1.6,
    "GQA": 1.5,
    "RS": 0.6,
    "TextCaps": 1.7,
}
Record = dict  # {"task": str, "head": str, "pairs": [[field, value], ...]}


def plan(count: int) -> list[str]:
    """Return `count` task names in the shares of WEIGHTS, evenly interleaved."""
    total, done, names = sum(WEIGHTS.values()), dict.fromkeys(WEIGHTS, 0), []
    for position in range(1, count + 1):
        name = max(WEIGHTS, key=lambda key: WEIGHTS[key] / total * position - done[key])
        done[name] += 1
        names.append(name)
    return names


@cache
def _task(name: str) -> Task:
    return load_task(name, Assets())


def make_one(name: str, split: str, index: int, seed: int) -> tuple[np.ndarray, Record]:
    """Return one image (112, 112, 3) uint8 of `split` and its record."""
    task = _task(name)
    scene = task.draw(split, sample_rng(seed, name, f"{split}-description", index))
    record = {"task": name, "head": task.head, "pairs": task.describe(scene)}
    return np.asarray(scene.image), record


def _make_range(job: tuple[int, int, list[str], int, Path]) -> list[Record]:
    """Fill rows start..stop of the image file; return their records."""
    start, stop, names, seed, path = job
    images = np.load(path, mmap_mode="r+")
    records = []
    for row in range(start, stop):
        images[row], record = make_one(names[row - start], "pretrain", row, seed)
        records.append(record)
    images.flush()
    return records


def build(folder: Path, count: int, seed: int, workers: int) -> tuple[np.ndarray, list[Record]]:
    """Return images (count, 112, 112, 3) uint8 (memory-mapped) and records, made when missing."""
    fetch_all()
    images_path = folder / f"images-v{VERSION}-{count}-{seed}.npy"
    records_path = images_path.with_suffix(".json")
    if not records_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, SIZE, SIZE, 3)
        np.lib.format.open_memmap(images_path, mode="w+", dtype=np.uint8, shape=shape).flush()
        records = list(_all_records(images_path, count, seed, workers))
        # Last: where the records are, the images are whole.
        write_text(records_path, json.dumps(records))
    return np.load(images_path, mmap_mode="r"), json.loads(records_path.read_text())


def _all_records(path: Path, count: int, seed: int, workers: int) -> Iterator[Record]:
    """Run the jobs of 1,000 images in `workers` processes and yield their records in order."""
    names = plan(count)
    jobs = [
        (start, min(start + 1000, count), names[start : start + 1000], seed, path)
        for start in range(0, count, 1000)
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for number, records in enumerate(pool.imap(_make_range, jobs), 1):
            if number % 10 == 0 or number == len(jobs):
                print(f"pretraining images: {number * 1000} of {count}", flush=True)
            yield from records

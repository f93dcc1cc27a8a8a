"""The stream's manifest, stream.json: made from the written files, and checked against them."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from data_prep.files import sha256_file
from data_prep.mini import GENERATOR, VERSION
from data_prep.mini.mixtures import SIZES
from data_prep.mini.samples import Unit, Written
from data_prep.mini.tasks import TASKS

FILE = "stream.json"
FORMAT = "strlora-stream/1"
CANDIDATES = 30  # most frequent train answers tried as the best constant


class StreamError(RuntimeError):
    """A stream folder holds something else than its manifest or its settings say."""


def units(size: str, seed: int) -> list[Unit]:
    """Return the files of a stream: its chunks in order, then test (and validation) by task."""
    table, used, out = SIZES[size], Counter[str](), []
    for number, counts in enumerate(table.counts(seed), 1):
        ranges = {name: (used[name], used[name] + count) for name, count in counts.items()}
        used.update(counts)
        out.append(Unit(f"chunks/{number:03d}.jsonl", "train", ranges, seed, table.shared))
    for split, samples in (("test", table.test), ("validation", table.validation)):
        for name in table.tasks(seed) if samples else ():
            ranges = {name: (0, samples)}
            out.append(Unit(f"{split}/{name}.jsonl", split, ranges, seed, table.shared))
    return out


def settings(size: str, seed: int) -> dict[str, Any]:
    """Return the part of the manifest that decides every byte of the stream."""
    return {
        "format": FORMAT,
        "name": f"mini-strcvit-{size}",
        "generator": {"name": GENERATOR, "version": VERSION},
        "seed": seed,
    }


def build(folder: Path, size: str, seed: int, written: list[Written]) -> dict[str, Any]:
    """Return the manifest of the files in `folder`, all of them written."""
    hashes = {item.file: item for item in written}
    chunks: list[dict[str, Any]] = []
    tasks: dict[str, Any] = {}
    train: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for unit in units(size, seed):
        entry: dict[str, Any] = {"samples": unit.samples, "sha256": hashes[unit.file].sha256}
        entry["pixels_sha256"] = hashes[unit.file].pixels
        (name, *_) = unit.ranges
        if unit.split == "train":
            counts = {task: stop - start for task, (start, stop) in unit.ranges.items()}
            entry = {"index": len(chunks) + 1, "file": unit.file, **entry, "tasks": counts}
            chunks.append(entry)
            for row in read_records(folder / unit.file):
                train[row["task"]].append(row)
        elif unit.split == "test":
            scorer = TASKS[name].scorer
            tasks[name] = {"scorer": scorer, "test": unit.file, **entry}
            if scorer != "caption":  # CIDEr is no share of right answers: see levels.json
                rows = read_records(folder / unit.file)
                tasks[name]["majority"] = majority(scorer, train[name], rows)
        else:
            tasks[name]["validation"] = {"file": unit.file, **entry}
    return {**settings(size, seed), "tasks": tasks, "chunks": chunks}


def entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the manifest's entries of files, each with `file`, `samples` and both hashes."""
    tests = [{**entry, "file": entry["test"]} for entry in content["tasks"].values()]
    checks = [entry["validation"] for entry in content["tasks"].values() if "validation" in entry]
    return [*content["chunks"], *tests, *checks]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def majority(scorer: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Return the test score of the constant answer that scores best on the train samples."""
    golds = [row["messages"][-1]["content"] for row in train]
    wanted = [row["messages"][-1]["content"] for row in test]
    common = [answer for answer, _ in Counter(golds).most_common(CANDIDATES)]
    best = max(common, key=lambda answer: sum(hit(scorer, answer, gold) for gold in golds))
    return round(sum(hit(scorer, best, gold) for gold in wanted) / len(wanted), 6)


def hit(scorer: str, answer: str, gold: str) -> bool:
    """Return whether `answer` is right: IoU over 0.5, numbers within 5 %, else equality."""
    if scorer == "relaxed" and answer.isdigit() and gold.isdigit():
        return abs(int(answer) - int(gold)) <= 0.05 * int(gold)
    if scorer != "grounding":
        return answer == gold
    a, b = (json.loads(text) for text in (answer, gold))
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return wide * high > 0.5 * (sum(areas) - wide * high)


def check(folder: Path, size: str, seed: int) -> list[str]:
    """Return the files that are missing from a finished stream (empty: complete and unchanged).

    Raises StreamError when the manifest is of other settings or a file is not the one it names.
    """
    content = json.loads((folder / FILE).read_text())
    expect_settings(folder / FILE, content, size, seed)
    found_counts = {entry["file"]: entry["samples"] for entry in entries(content)}
    expect_counts(folder / FILE, found_counts, size, seed)
    missing = []
    for entry in entries(content):
        file = entry["file"]
        path = folder / file
        if not path.exists():
            missing.append(file)
        elif (found := sha256_file(path)) != entry["sha256"]:
            raise StreamError(
                f"{path}: sha256 is {found}, the manifest says {entry['sha256']}: the file was "
                "changed. Delete it and run the same command again to make it anew."
            )
    present = images_present(folder)
    for unit in units(size, seed):
        counts = {(unit.split, task): stop for task, (_, stop) in unit.ranges.items()}
        whole = all(present[key] >= stop for key, stop in counts.items())
        if not whole and unit.file not in missing:
            missing.append(unit.file)
    return missing


def images_present(folder: Path) -> Counter[tuple[str, str]]:
    """Return the number of image files by (split, task)."""
    found: Counter[tuple[str, str]] = Counter()
    for path in (folder / "images").glob("*/*"):
        names = (entry.name for entry in os.scandir(path))
        found[path.parent.name, path.name] = sum(name.endswith(".png") for name in names)
    return found


def expect_settings(path: Path, content: dict[str, Any], size: str, seed: int) -> None:
    """Raise StreamError unless the manifest at `path` is of this size, seed and generator."""
    for key, wanted in settings(size, seed).items():
        if content.get(key) != wanted:
            raise StreamError(
                f"{path}: {key} is {content.get(key)!r}, this run would make {wanted!r}. "
                "Choose another --out, or delete the folder."
            )


def planned(size: str, seed: int) -> dict[str, int]:
    """Return the number of samples of every file of a stream."""
    return {unit.file: unit.samples for unit in units(size, seed)}


def expect_counts(path: Path, found: dict[str, int], size: str, seed: int) -> None:
    """Raise StreamError unless the files that `path` speaks of are those of this size and seed."""
    if found != planned(size, seed):
        raise StreamError(
            f"{path}: its files or their counts are not those of size {size!r} as it is now (an "
            "older version wrote them). Choose another --out, or delete the folder."
        )

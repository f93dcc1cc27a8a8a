"""Compares the counts of a source with its own manifest and with the published mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import WARNING, DataError, Problem
from data_prep.files import read_json, sha256_file
from data_prep.mini.mixtures import SHORT, strcvit_mixture
from data_prep.published.benchmarks import CHUNK_SAMPLES
from data_prep.strcvit.source import PROXIES
from data_prep.stream_writer import WrittenFile

_COUNTS = ("samples", "count", "num_samples", "num_records", "records", "n", "total")
_NAMES = ("file", "path", "name", "filename")
_OF_EVERY_TASK = ("test.json", *PROXIES)


def against_manifest(source: Path, counts: dict[str, int]) -> list[Problem]:
    """Return where manifest.json of the source and its files differ.

    The layout of that file is not fixed: every number and sha256 beside the name of a file is
    compared, whatever surrounds it.

    Args:
        source: the published folder.
        counts: samples by file, relative to `source`.
    """
    path = source / "manifest.json"
    if not path.is_file():
        return []
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError("manifest-format", f"{error}, or download it again") from error
    problems: list[Problem] = []
    for name, facts, around in _entries(content):
        if (file := _file_of(name, around, counts)) is not None:
            problems += _compare(source / file, counts[file], facts, str(path))
    return problems


def _file_of(name: str, around: frozenset[str], counts: dict[str, int]) -> str | None:
    """Return the file that an entry is about; a name that every task has needs its task around."""
    files = [file for file in counts if file == name or file.endswith(f"/{name}")]
    if name in _OF_EVERY_TASK:
        files = [file for file in files if Path(file).parent.name in around]
    return files[0] if len(files) == 1 else None


def _entries(
    content: Any, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any, frozenset[str]]]:
    """Yield (file name, its entry, the keys above it and the texts beside it) from any nesting."""
    if isinstance(content, list):
        for item in content:
            yield from _entries(item, above)
    if isinstance(content, dict):
        name = next((content[key] for key in _NAMES if isinstance(content.get(key), str)), None)
        around = above.union(text for text in content.values() if isinstance(text, str))
        if name is not None and name.endswith((".json", ".jsonl")):
            yield name, content, around
        for key, value in content.items():
            if str(key).endswith((".json", ".jsonl")):
                yield str(key), value, around
            else:
                yield from _entries(value, around | {str(key)})


def _compare(file: Path, count: int, facts: Any, where: str) -> Iterator[Problem]:
    published = facts if isinstance(facts, int) else None
    if isinstance(facts, dict):
        published = next((facts[key] for key in _COUNTS if isinstance(facts.get(key), int)), None)
        wanted = facts.get("sha256")
        if isinstance(wanted, str) and sha256_file(file) != wanted:
            text = f"{file} has another sha256 than {wanted}: download it again"
            yield Problem("manifest-sha256", where, text)
    # A bare number beside a name may be the size of the file in bytes.
    if published is not None and published not in (count, file.stat().st_size):
        text = f"{file} has {count} samples, expected {published}: download it again"
        yield Problem("manifest-count", where, text)


def against_mixture(chunks: list[WrittenFile]) -> list[Problem]:
    """Return where the counts of chunks differ from the published groups."""
    problems: list[Problem] = []
    mixture = strcvit_mixture()
    if len(chunks) != len(mixture):
        text = f"{len(chunks)} chunks, the published stream has {len(mixture)}"
        problems.append(Problem("chunks", "train", text, WARNING))
    for number, made in enumerate(chunks, start=1):
        counts = Counter[str]()
        for task, count in made.tasks.items():
            counts["short" if task in SHORT else task] += count
        published = mixture[number - 1] if number <= len(mixture) else {}
        differs = {
            group: (counts[group], published.get(group, 0))
            for group in [*published, *sorted(set(counts) - set(published))]
            if counts[group] != published.get(group, 0)
        }
        if differs:
            parts = (f"{g} {a} (published {b})" for g, (a, b) in differs.items())
            total = "" if made.samples == CHUNK_SAMPLES else f"{made.samples} samples; "
            text = f"{total}{', '.join(parts)}"
            problems.append(Problem("mixture", made.file, text, WARNING))
    return problems

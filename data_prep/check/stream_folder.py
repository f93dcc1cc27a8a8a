"""What a folder to check holds: its manifest, its chunk and test files, and whether they agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import ERROR, WARNING, DataError, Problem
from data_prep.files import sha256_file
from data_prep.published.benchmarks import SCORERS
from data_prep.stream import MANIFEST, StreamError, read_manifest
from data_prep.stream_writer import LEFT_OUT, PARTIAL, manifest_entries


@dataclass(frozen=True)
class DataFile:
    """One JSONL file, `name` relative to the folder; task and scorer where it is a test set.

    Where the test set is of one period of a task, `of` is that task, `chunk` the period's (from 1).
    """

    name: str
    task: str | None = None
    scorer: str | None = None
    validation: bool = False
    of: str | None = None
    chunk: int | None = None


@dataclass
class Layout:
    """A folder to check.

    Attributes:
        root: the stream folder.
        files: chunks in their order, then test sets.
        manifest: content of stream.json, None where there is none.
        allowed: resolved folders that may hold images.
        problems: what is wrong with the manifest.
    """

    root: Path
    files: list[DataFile]
    manifest: dict[str, Any] | None
    allowed: tuple[Path, ...]
    problems: list[Problem] = field(default_factory=list)

    def note(self, code: str, text: str, severity: str = ERROR) -> None:
        """Add a problem of the manifest."""
        self.problems.append(Problem(code, str(self.root / MANIFEST), text, severity))


def read_layout(path: Path, images: Path | None = None) -> Layout:
    """Return what `path` holds: a stream folder, a folder of JSONL files, or one JSONL file.

    Args:
        path: what to check.
        images: a further folder that may hold images.

    Raises:
        DataError: there is nothing to check.
    """
    more = (images.resolve(),) if images else ()
    if path.is_file():
        root = images or path.parent
        name = str(path.resolve())
        return Layout(root, [DataFile(name)], None, (root.resolve(), *more))
    if not path.is_dir():
        raise DataError("no-data", f"{path}: no such folder")
    if (path / MANIFEST).exists():
        return _from_manifest(path, more)
    files = [DataFile(f"chunks/{p.name}") for p in sorted((path / "chunks").glob("*.jsonl"))]
    files += [DataFile(p.name) for p in sorted(path.glob("*.jsonl")) if p.name != LEFT_OUT]
    tests = sorted((path / "test").glob("*.jsonl"))
    files += [DataFile(f"test/{p.name}", p.stem, "exact") for p in tests]
    if not files:
        raise DataError(
            "no-data", f"{path}: no {MANIFEST} and no JSONL files; is it a stream folder?"
        )
    text = f"{MANIFEST} is missing, the orchestrator needs it: make the stream with data_prep.chunk"
    layout = Layout(path, files, None, (path.resolve(), *more))
    layout.note("manifest-missing", text)
    return layout


def _from_manifest(root: Path, more: tuple[Path, ...]) -> Layout:
    try:
        manifest = read_manifest(root / MANIFEST)
    except StreamError as error:
        raise DataError("manifest-format", str(error)) from error
    layout = Layout(root, [], manifest, (root.resolve(), *more))
    try:
        files = [DataFile(entry["file"]) for entry in manifest["chunks"]]
        for task, entry in manifest["tasks"].items():
            period = {key: entry.get(key) for key in ("of", "chunk")}
            files.append(DataFile(entry["test"], task, entry.get("scorer"), **period))
        for task, entry in manifest["tasks"].items():
            if "validation" in entry:
                file = entry["validation"]["file"]
                files.append(DataFile(file, task, entry.get("scorer"), validation=True))
        # Links that the stream itself made may lead out of its folder.
        layout.allowed += tuple(Path(t).resolve() for t in manifest.get("links", {}).values())
    except (KeyError, TypeError, AttributeError) as error:
        expected = "'chunks' (file, samples, sha256, tasks) and 'tasks'"
        text = f"{root / MANIFEST}: {error!r}: expected {expected}"
        raise DataError("manifest-keys", text) from error
    layout.files = [file for file in files if _usable(layout, file)]
    for file in layout.files:
        if file.task is not None and not file.validation and file.scorer not in SCORERS:
            text = f"tasks.{file.task}.scorer is {file.scorer!r}, expected one of {list(SCORERS)}"
            layout.note("scorer", text)
    if not manifest["chunks"]:
        layout.note("no-chunks", "no chunks: there is nothing to train on")
    for number, entry in enumerate(manifest["chunks"], start=1):
        if entry.get("index") != number:
            text = f"chunks[{number - 1}].index is {entry.get('index')!r}, expected {number}"
            layout.note("chunk-index", text)
    if (root / PARTIAL).exists():
        text = f"{PARTIAL}/ is there: a preparation was interrupted; give its command again"
        layout.problems.append(Problem("unfinished", str(root), text, WARNING))
    present = {f"{top}/{p.name}" for top in ("chunks", "test") for p in (root / top).glob("*")}
    for name in sorted(present - {file.name for file in files}):
        layout.note("unlisted", f"{name} is not named in {MANIFEST} and will not be used", WARNING)
    return layout


def _usable(layout: Layout, file: DataFile) -> bool:
    path = layout.root / file.name
    if not path.resolve().is_relative_to(layout.root.resolve()):
        layout.note("manifest-escape", f"{file.name!r} lies outside the stream folder")
        return False
    if not path.is_file():
        text = f"{file.name!r} is named, but not there: prepare the stream again"
        layout.note("file-missing", text)
        return False
    return True


def check_counts(layout: Layout, seen: dict[str, Counter[str]]) -> list[Problem]:
    """Return where the manifest's hashes and counts differ from the files.

    Args:
        layout: the folder.
        seen: samples by task in each file, bad samples not counted under a task but under "".
    """
    problems: list[Problem] = []
    manifest = layout.manifest or {"chunks": [], "tasks": {}}
    for name, entry in manifest_entries(manifest).items():
        if name not in seen:
            continue
        where, there = str(layout.root / name), sum(seen[name].values())
        if sha256_file(layout.root / name) != entry.get("sha256"):
            text = (
                f"changed since {MANIFEST} was written (another sha256): prepare the stream again"
            )
            problems.append(Problem("file-changed", where, text))
        if entry.get("samples") != there:
            text = f"{there} samples, but {MANIFEST} says {entry.get('samples')}"
            problems.append(Problem("samples-count", where, text))
        counts = {task: n for task, n in seen[name].items() if n and task}
        if "tasks" in entry and not seen[name][""] and entry["tasks"] != counts:
            text = f"samples by task are {counts}, but {MANIFEST} says {entry['tasks']}"
            problems.append(Problem("tasks-count", where, text))
    return problems

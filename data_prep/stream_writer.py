"""Writes a stream folder: in parallel, resumable, whole or not at all, a no-op when complete.

Files are made in `.partial/` inside the folder and moved into place when all of them are there;
stream.json comes last. A killed run goes on with the files that were finished. If samples are
refused, nothing stays behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, Problem
from data_prep.files import (
    read_json,
    read_jsonl,
    sha256_file,
    write_blocks,
    write_json,
    write_jsonl,
)
from data_prep.parallel import cores, ordered_map
from data_prep.stream import FORMAT, MANIFEST, StreamError, read_manifest

PARTIAL = ".partial"
STATE, JOURNAL = "state.json", "made.jsonl"
LEFT_OUT = "left_out.jsonl"


class BadSamples(StreamError):
    """Samples were refused. `problems` holds all of them, `note` how to correct them."""

    def __init__(self, problems: list[Problem], note: str = "") -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems, self.note = problems, note


class StreamBusy(StreamError):
    """Another process is writing to the stream."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of a stream: a chunk (`task` is None), or the test or validation set of a task.

    `source` is whatever the tool needs to make it; it must be picklable. Validation sets come after
    the test sets.
    """

    file: str
    source: Any
    task: str | None = None
    validation: bool = False


@dataclass
class WrittenFile:
    """What is known of a file once it is written.

    Attributes:
        file: its name inside the stream. sha256: of its bytes.
        samples: how many it holds. tasks: samples by task.
        problems: samples that were refused.
        entry: further keys of its entry in the manifest.
        answers: how often each answer occurs, by task, where `Plan.review` needs it.
    """

    file: str = ""
    sha256: str = ""
    samples: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    entry: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, dict[str, int]] = field(default_factory=dict)

    def count(self, task: str) -> None:
        """Count one sample of `task`."""
        self.samples += 1
        self.tasks[task] += 1

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON, for the state of an unfinished run."""
        content = {**vars(self), "tasks": dict(self.tasks)}
        return content | {"problems": [problem.as_json() for problem in self.problems]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> WrittenFile:
        """Return what `as_json` wrote."""
        problems = [Problem(**problem) for problem in content["problems"]]
        return cls(**{**content, "tasks": Counter(content["tasks"]), "problems": problems})


# Yields the encoded lines of a file and fills in what else is known of it on the way.
Make = Callable[[PlannedFile, WrittenFile], Iterator[bytes]]
Report = Callable[[int, int, str], None]  # files done, files in all, the file just written


@dataclass(frozen=True)
class Contents:
    """What a stream holds.

    Attributes:
        files: chunks in their order, then test sets, then validation sets.
        scorers: scorer by task, for every task with a test set.
        links: folder name inside the stream -> folder with images that it links to; None leaves
            the key out of the manifest.
        extras: files and folders that the tool made in the staging folder, moved into the stream.
        facts: further keys of the manifest.
        problems: what was left out before the files were made.
    """

    files: list[PlannedFile]
    scorers: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] | None = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a stream is made.

    Attributes:
        name: of the stream, in its manifest.
        generator: {"name", "version", "settings"}: the same settings make the same stream.
        seed: of everything random.
        contents: returns what the stream holds, given the staging folder.
        make: makes one file; runs in a process of its own, so it must be picklable.
        skip_bad: leave refused samples out (and list them) where others refuse the whole.
        review: sees all files before the manifest is written and may add to their `entry`; what it
            raises leaves nothing behind.
        samples: of every file, where that is known beforehand. A folder with other counts, which
            another version of the tool began, is refused.
        is_whole: whether what the manifest does not name (images) is all there.
    """

    name: str
    generator: dict[str, Any]
    seed: int
    contents: Callable[[Path], Contents]
    make: Make
    skip_bad: bool = False
    review: Callable[[list[WrittenFile]], None] | None = None
    samples: dict[str, int] | None = None
    is_whole: Callable[[Path], bool] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the part of the manifest that decides every byte of the stream."""
        head = {"format": FORMAT, "name": self.name, "generator": self.generator}
        return {**head, "seed": self.seed}


def write_stream(
    folder: Path, plan: Plan, workers: int | None = None, report: Report | None = None
) -> list[WrittenFile] | None:
    """Write the stream of `plan` to `folder`; return what was made, None if it was there already.

    Args:
        folder: of the stream; made if it is not there.
        plan: what to write.
        workers: processes; None takes all cores.
        report: called after every file: files done, files in all, name of the file.

    Raises:
        BadSamples: samples were refused and `skip_bad` is off; nothing was written.
        DataError: a source cannot be read at all; nothing was written.
        StreamError: the folder holds something else, a changed file, or another run is on it.
    """
    if is_complete(folder, plan):
        return None
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _claim(folder, plan)
        try:
            contents = plan.contents(folder / PARTIAL)
            made = _make_all(folder, plan, contents, workers or cores(), report)
            _expect_content(made, plan.skip_bad)
            if plan.review:
                plan.review(made)
        # Only what will not do better next time: after Ctrl-C or on a full disk the finished files
        # stay, and the same command goes on with them.
        except (DataError, StreamError):
            discard(folder, existed)
            raise
        _finish(folder, plan, contents, made)
    return made


def is_complete(folder: Path, plan: Plan) -> bool:
    """Return whether `folder` holds the stream of `plan`, whole and unchanged.

    Raises:
        StreamError: it holds another stream, or a changed file.
    """
    path = folder / MANIFEST
    if not path.exists():
        return False
    manifest = read_manifest(path)
    expect_settings(path, manifest, plan.settings)
    if plan.samples is not None:
        counts = {file: entry["samples"] for file, entry in manifest_entries(manifest).items()}
        expect_settings(path, {"samples": counts}, {"samples": plan.samples})
    whole = plan.is_whole is None or plan.is_whole(folder)
    for file, entry in manifest_entries(manifest).items():
        if not (folder / file).exists():
            whole = False
        elif (digest := sha256_file(folder / file)) != entry["sha256"]:
            raise StreamError(
                f"{folder / file}: sha256 is {digest}, the manifest says {entry['sha256']}: the "
                "file was changed. Delete it and run the same command again, which makes it."
            )
    return whole


def manifest_entries(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a manifest's entries by the file that they describe: chunks, then test sets, ..."""
    tasks = list(manifest["tasks"].values())
    entries = {entry["file"]: entry for entry in manifest["chunks"]}
    entries |= {entry["test"]: entry for entry in tasks}
    validation = [entry["validation"] for entry in tasks if "validation" in entry]
    return entries | {entry["file"]: entry for entry in validation}


def expect_settings(path: Path, content: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise StreamError unless `content`, that of the file `path`, was made with `settings`."""
    for key, wanted in settings.items():
        if content.get(key) != wanted:
            where, there, here = _difference(key, content.get(key), wanted)
            raise StreamError(
                f"{path}: {where} is {there}, this run would make {here}. "
                "Choose another --out, or delete the folder."
            )


def _difference(key: str, there: Any, wanted: Any) -> tuple[str, str, str]:
    """Return the key at which two settings differ ("generator.settings.size"), and both values."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = [inner for inner in {**there, **wanted} if there.get(inner) != wanted.get(inner)]
        if len(keys) == 1:
            return _difference(f"{key}.{keys[0]}", there.get(keys[0]), wanted.get(keys[0]))
        return key, str({k: there.get(k) for k in keys}), str({k: wanted.get(k) for k in keys})
    return key, repr(there), repr(wanted)


def discard(folder: Path, existed: bool = True) -> None:
    """Take away what an unfinished run left in `folder`, and the folder if it was not there."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    if not existed and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run."""
    # The kernel lets go of this lock when its process is killed.
    # The folder itself is locked: a lock file would be one file more in every stream.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StreamBusy(
                f"{folder}: another run is writing to it; wait until it ends"
            ) from error
        yield
    finally:
        os.close(handle)


def _claim(folder: Path, plan: Plan) -> None:
    """Note in an empty folder what is going to be made; check it where a run was interrupted.

    Raises:
        StreamError: the folder holds something else, or an interrupted run of other settings.
    """
    state = folder / PARTIAL / STATE
    settings = {**plan.settings, "samples": plan.samples}
    if state.exists():
        expect_settings(state, read_json(state), settings)
        return
    others = sorted(name for name in os.listdir(folder) if name != PARTIAL)
    # With a manifest it is a stream of this plan that lacks a file: is_complete refuses others.
    if others and MANIFEST not in others:
        raise StreamError(
            f"{folder} holds {others[0]!r} and no {MANIFEST}: not begun by this program. "
            "Choose another --out, or delete the folder if nothing in it is needed."
        )
    (folder / PARTIAL).mkdir(exist_ok=True)
    write_json(state, settings)


def _make_all(
    folder: Path, plan: Plan, contents: Contents, workers: int, report: Report | None
) -> list[WrittenFile]:
    journal = folder / PARTIAL / JOURNAL
    done = _finished(folder, journal)
    todo = [planned for planned in contents.files if planned.file not in done]
    work = partial(_make_file, folder / PARTIAL, plan.make)
    with journal.open("a", encoding="utf-8") as notes:
        for made in ordered_map(work, todo, min(workers, len(todo))):
            done[made.file] = made
            notes.write(json.dumps(made.as_json()) + "\n")
            notes.flush()  # a killed run finds what is whole, and makes only the rest
            if report:
                report(len(done), len(contents.files), made.file)
    return [done[planned.file] for planned in contents.files]


def _make_file(staging: Path, make: Make, planned: PlannedFile) -> WrittenFile:
    made = WrittenFile(planned.file)
    made.sha256 = write_blocks(staging / planned.file, make(planned, made))
    return made


def _finished(folder: Path, journal: Path) -> dict[str, WrittenFile]:
    """Return the files that an interrupted run left whole."""
    if not journal.exists():
        return {}
    notes = read_jsonl(journal, torn_tail=True)
    write_jsonl(journal, notes)  # without the line that the kill cut off
    finished: dict[str, WrittenFile] = {}
    for made in map(WrittenFile.from_json, notes):
        # A kill while files are moved into place leaves some of them in either folder.
        paths = (folder / PARTIAL / made.file, folder / made.file)
        if any(path.exists() and sha256_file(path) == made.sha256 for path in paths):
            finished[made.file] = made
    return finished


def _expect_content(made: list[WrittenFile], skip_bad: bool) -> None:
    problems = [problem for item in made for problem in item.problems]
    if problems and not skip_bad:
        raise BadSamples(problems)
    for item in made:
        if not item.samples:
            first = f": {item.problems[0]}" if item.problems else ""
            raise StreamError(f"{item.file} would be empty, all its samples were refused{first}")


def _finish(folder: Path, plan: Plan, contents: Contents, made: list[WrittenFile]) -> None:
    """Move everything into place, the manifest last."""
    problems = [*contents.problems, *(problem for item in made for problem in item.problems)]
    if problems:  # behind what the tool itself may have listed
        path = folder / PARTIAL / LEFT_OUT
        before = read_jsonl(path) if path.exists() else []
        write_jsonl(path, [*before, *(problem.as_json() for problem in problems)])
    for name in [*(item.file for item in made), *contents.extras, LEFT_OUT]:
        staged = folder / PARTIAL / name
        if staged.exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            move(staged, folder / name)
    for name, target in (contents.links or {}).items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target, target_is_directory=True)
    # Runs remember the sha256 of their stream's manifest: its bytes must not change.
    write_json(folder / MANIFEST, manifest_of(plan, contents, made), indent=1)
    shutil.rmtree(folder / PARTIAL)


def move(staged: Path, target: Path) -> None:
    """Move a file, or what a folder holds: a killed run may have moved a part of it."""
    if not staged.is_dir():
        os.replace(staged, target)
        return
    target.mkdir(exist_ok=True)
    for inner in staged.iterdir():
        move(inner, target / inner.name)


def manifest_of(plan: Plan, contents: Contents, made: Iterable[WrittenFile]) -> dict[str, Any]:
    """Return the content of stream.json."""
    tasks: dict[str, Any] = {}
    chunks: list[dict[str, Any]] = []
    for planned, item in zip(contents.files, made, strict=True):
        entry = {"samples": item.samples, "sha256": item.sha256, **item.entry}
        if planned.task is None:
            # The embedded stream sets `tasks` itself, in its mixture's order (golden hashes).
            entry.setdefault("tasks", dict(sorted(item.tasks.items())))
            chunks.append({"index": len(chunks) + 1, "file": planned.file, **entry})
        elif planned.validation:
            tasks[planned.task]["validation"] = {"file": planned.file, **entry}
        else:
            scorer = contents.scorers[planned.task]
            tasks[planned.task] = {"scorer": scorer, "test": planned.file, **entry}
    # None keeps the bytes that the manifest of the embedded stream always had.
    links = {} if contents.links is None else {"links": contents.links}
    return {**plan.settings, **links, **contents.facts, "tasks": tasks, "chunks": chunks}

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

from data_prep.errors import Problem, Refused
from data_prep.files import sha256_file, write_blocks, write_json
from data_prep.parallel import cores, ordered_map
from data_prep.progress import Progress

FORMAT = "strlora-stream/1"
FILE = "stream.json"
PARTIAL = ".partial"
STATE, JOURNAL = "state.json", "made.jsonl"
LEFT_OUT = "left_out.jsonl"


class StreamError(RuntimeError):
    """A stream folder cannot be written; the message says why and what to do."""


class BadSamples(StreamError):
    """Samples were refused. `problems` holds all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


@dataclass(frozen=True)
class Part:
    """One file of a stream: a chunk (`task` is None), or the test or validation set of a task.

    `source` is whatever the tool needs to make it; it must be picklable. Validation sets come after
    the test sets.
    """

    file: str
    source: Any
    task: str | None = None
    validation: bool = False


@dataclass
class Made:
    """What is known of a part once it is written. `note` is free for the tool's own report."""

    file: str = ""
    sha256: str = ""
    samples: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    note: dict[str, Any] = field(default_factory=dict)

    def count(self, task: str) -> None:
        """Count one sample of `task`."""
        self.samples += 1
        self.tasks[task] += 1

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON, for the state of an unfinished run."""
        content = {**vars(self), "tasks": dict(self.tasks)}
        return content | {"problems": [problem.as_json() for problem in self.problems]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Made:
        """Return what `as_json` wrote."""
        problems = [Problem(**problem) for problem in content["problems"]]
        return cls(**{**content, "tasks": Counter(content["tasks"]), "problems": problems})


# Yields the encoded lines of a part and fills in counts, problems and note on the way.
Make = Callable[[Part, Made], Iterator[bytes]]


@dataclass(frozen=True)
class Contents:
    """What a stream holds.

    Attributes:
        parts: the files, chunks in their order.
        scorers: scorer by task, for every task with a test set.
        links: folder name inside the stream -> folder with images that it leads to.
        extras: files and folders that the tool made in the staging folder, moved into the stream.
        facts: further keys of the manifest.
        problems: what was left out before the parts were made.
    """

    parts: list[Part]
    scorers: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
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
        contents: given the staging folder, says what the stream holds.
        make: makes one part; runs in a process of its own, so it must be picklable.
        skip_bad: leave refused samples out (and list them) where others refuse the whole.
        verify: looks at everything that was made; what it raises leaves nothing behind.
    """

    name: str
    generator: dict[str, Any]
    seed: int
    contents: Callable[[Path], Contents]
    make: Make
    skip_bad: bool = False
    verify: Callable[[list[Made]], None] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the part of the manifest that decides every byte of the stream."""
        head = {"format": FORMAT, "name": self.name, "generator": self.generator}
        return {**head, "seed": self.seed}


def write_stream(
    folder: Path, plan: Plan, workers: int | None = None, progress: Progress | None = None
) -> list[Made] | None:
    """Write the stream of `plan` to `folder`; return what was made, None if it was there already.

    Raises:
        BadSamples: samples were refused and `skip_bad` is off; nothing was written.
        Refused: a source cannot be read at all; nothing was written.
        StreamError: the folder holds something else, a changed file, or another run is on it.
    """
    folder = Path(folder)
    if is_complete(folder, plan.settings):
        return None
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        _expect_ours(folder, plan.settings)
        try:
            contents = plan.contents(folder / PARTIAL)
            made = _make_all(folder, plan, contents, workers or cores(), progress)
            _expect_content(contents, made, plan.skip_bad)
            if plan.verify:
                plan.verify(made)
        except (Refused, StreamError):
            discard(folder, existed)
            raise
        _finish(folder, plan, contents, made)
    return made


def is_complete(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether the stream of these settings lies in `folder`, whole and unchanged.

    Raises StreamError when another stream lies there or a file of it was changed.
    """
    path = folder / FILE
    if not path.exists():
        return False
    manifest = read_manifest(path)
    expect_settings(path, manifest, settings)
    whole = True
    for file, sha256 in manifest_files(manifest).items():
        if not (folder / file).exists():
            whole = False
        elif (found := sha256_file(folder / file)) != sha256:
            raise StreamError(
                f"{folder / file}: sha256 is {found}, the manifest says {sha256}: the file was "
                "changed. Delete it and run the same command again to make it anew."
            )
    return whole


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a stream.json. Raises StreamError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StreamError(f"{path}: no JSON ({error}); prepare the stream again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise StreamError(f"{path}: format is {found!r}, expected {FORMAT!r}")
    return content


def manifest_files(manifest: dict[str, Any]) -> dict[str, str]:
    """Return sha256 by file of everything a manifest names."""
    return {str(e.get("file") or e["test"]): str(e["sha256"]) for e in manifest_entries(manifest)}


def manifest_entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a manifest that stand for a file: chunks, test and validation sets."""
    tasks = list(manifest["tasks"].values())
    validation = [task["validation"] for task in tasks if "validation" in task]
    return [*manifest["chunks"], *tasks, *validation]


def expect_settings(path: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise StreamError unless `found` was made with `settings`."""
    for key, wanted in settings.items():
        if found.get(key) != wanted:
            there, here = _difference(found.get(key), wanted)
            raise StreamError(
                f"{path}: {key} is {there}, this run would make {here}. "
                "Choose another --out, or delete the folder."
            )


def _difference(found: Any, wanted: Any) -> tuple[str, str]:
    """Return the parts of two settings that differ, as text."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        if len(keys) == 1:
            return _difference(found.get(keys[0]), wanted.get(keys[0]))
        return str({k: found.get(k) for k in keys}), str({k: wanted.get(k) for k in keys})
    return repr(found), repr(wanted)


def discard(folder: Path, existed: bool = True) -> None:
    """Take away what an unfinished run left in `folder`, and the folder if it was not there."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    if not existed and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StreamError(f"{folder}: another run writes to it; wait for its end") from error
        yield
    finally:
        os.close(handle)


def _expect_ours(folder: Path, settings: dict[str, Any]) -> None:
    """Raise StreamError unless the folder is empty or holds a run of these settings."""
    state = folder / PARTIAL / STATE
    if state.exists():
        expect_settings(state, json.loads(state.read_text()), settings)
        return
    if not (folder / FILE).exists():
        others = [name for name in os.listdir(folder) if name != PARTIAL]
        if others:
            raise StreamError(
                f"{folder} holds {sorted(others)[0]!r} and no {FILE}: not a folder of this "
                "program. Choose another --out."
            )
    (folder / PARTIAL).mkdir(exist_ok=True)
    write_json(state, settings)


def _make_all(
    folder: Path, plan: Plan, contents: Contents, workers: int, progress: Progress | None
) -> list[Made]:
    journal = folder / PARTIAL / JOURNAL
    done = _finished(folder, journal)
    todo = [part for part in contents.parts if part.file not in done]
    work = partial(_make_part, folder / PARTIAL, plan.make)
    with journal.open("a", encoding="utf-8") as notes:
        for made in ordered_map(work, todo, min(workers, len(todo))):
            done[made.file] = made
            notes.write(json.dumps(made.as_json()) + "\n")
            notes.flush()
            if progress:
                progress(len(done), len(contents.parts), made.file)
    return [done[part.file] for part in contents.parts]


def _make_part(staging: Path, make: Make, part: Part) -> Made:
    made = Made(part.file)
    made.sha256 = write_blocks(staging / part.file, make(part, made))
    return made


def _finished(folder: Path, journal: Path) -> dict[str, Made]:
    """Return the parts that an interrupted run left whole."""
    found: dict[str, Made] = {}
    lines = (
        journal.read_text(encoding="utf-8").splitlines(keepends=True) if journal.exists() else []
    )
    for line in lines:
        if not line.endswith("\n"):
            journal.write_text("".join(lines[:-1]), encoding="utf-8")  # cut off by the kill
            break
        made = Made.from_json(json.loads(line))
        places = (folder / PARTIAL / made.file, folder / made.file)
        if any(path.exists() and sha256_file(path) == made.sha256 for path in places):
            found[made.file] = made
    return found


def _expect_content(contents: Contents, made: list[Made], skip_bad: bool) -> None:
    problems = [problem for item in made for problem in item.problems]
    if problems and not skip_bad:
        raise BadSamples(problems)
    for part, item in zip(contents.parts, made, strict=True):
        if not item.samples:
            first = f": {item.problems[0]}" if item.problems else ""
            raise StreamError(f"{part.file} would be empty, all its samples were refused{first}")


def _finish(folder: Path, plan: Plan, contents: Contents, made: list[Made]) -> None:
    """Move everything into place, the manifest last."""
    _list_left_out(folder / PARTIAL / LEFT_OUT, contents, made)
    for name in [*(item.file for item in made), *contents.extras, LEFT_OUT]:
        staged = folder / PARTIAL / name
        if staged.exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _move(staged, folder / name)
    for name, target in contents.links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target, target_is_directory=True)
    write_json(folder / FILE, manifest_of(plan, contents, made), indent=1)
    shutil.rmtree(folder / PARTIAL)


def _list_left_out(path: Path, contents: Contents, made: list[Made]) -> None:
    """Write the list of what was left out, behind what the tool itself may have listed."""
    problems = [*contents.problems, *(problem for item in made for problem in item.problems)]
    if problems:
        lines = [json.dumps(p.as_json(), ensure_ascii=False).encode() + b"\n" for p in problems]
        before = path.read_bytes() if path.exists() else b""
        write_blocks(path, [before, *lines])


def _move(staged: Path, target: Path) -> None:
    """Move a file, or what a folder holds: a killed run may have moved a part of it."""
    if not staged.is_dir():
        os.replace(staged, target)
        return
    target.mkdir(exist_ok=True)
    for inner in staged.iterdir():
        _move(inner, target / inner.name)


def manifest_of(plan: Plan, contents: Contents, made: Iterable[Made]) -> dict[str, Any]:
    """Return the content of stream.json."""
    tasks: dict[str, Any] = {}
    chunks: list[dict[str, Any]] = []
    for part, item in zip(contents.parts, made, strict=True):
        entry = {"samples": item.samples, "sha256": item.sha256}
        if part.task is None:
            counts = dict(sorted(item.tasks.items()))
            chunks.append({"index": len(chunks) + 1, "file": part.file, **entry, "tasks": counts})
        elif part.validation:
            tasks[part.task]["validation"] = {"file": part.file, **entry}
        else:
            tasks[part.task] = {"scorer": contents.scorers[part.task], "test": part.file, **entry}
    facts = {"links": contents.links, **contents.facts}
    return {**plan.settings, **facts, "tasks": tasks, "chunks": chunks}

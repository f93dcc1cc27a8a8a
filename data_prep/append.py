"""Appends a batch to a stream: new chunks and test sets behind the old, which stay as they are.

The batch is made as a stream of its own in `.append/` inside the folder, compared with what is
there, and moved into place; stream.json, which names it, is written last. A kill at any moment
leaves the old stream, whole, or the new one; the same command then goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from data_prep.check.checking import Check, Result, Settings
from data_prep.check.known_pictures import FILE, read_known, write_known
from data_prep.check.stream_folder import Layout, read_layout
from data_prep.command_line import UNUSABLE, run_plan
from data_prep.errors import DataError, Problem, listing
from data_prep.files import a_few, sha256_file, sync_folder, write_json
from data_prep.images import resolve
from data_prep.sources.image_paths import EMBEDDED, LINK
from data_prep.stream import MANIFEST, StreamError, read_manifest
from data_prep.stream_writer import (
    LEFT_OUT,
    BadSamples,
    Plan,
    Report,
    WrittenFile,
    locked,
    manifest_entries,
    move,
    write_stream,
)

STAGING = ".append"
# Options that say how one option is meant: with another value of that one they are not taken over.
_BELONGS = {"by": ("column", "every", "epoch"), "mixture": ("dirichlet",)}
# What a comparison with the samples before finds; other findings are those of `data_prep.check`.
_CODES = (
    *("duplicate-sample", "answers-differ", "near-image"),
    *("leak-sample", "leak-image", "leak-text", "leak-near"),
)


@dataclass(frozen=True)
class Before:
    """What a stream holds before a batch is appended; by default nothing, as for a new one.

    Attributes:
        place: folder into which the batch is written.
        name: of the stream. chunks: how many it has. tests: names of its test sets.
        batch: number of the batch, 1 for what the stream was made from.
        links: folders of pictures that it links to, by name.
        own: files and folders of its own, by which no link can be called.
        settings: of the command that made it.
    """

    place: Path
    name: str
    chunks: int = 0
    tests: frozenset[str] = frozenset()
    batch: int = 1
    links: dict[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def id_prefix(self) -> str:
        """What made-up ids of the batch begin with."""
        return f"b{self.batch}-" if self.batch > 1 else ""

    def link(self, root: Path) -> str:
        """Return the name under which the stream links to a folder of pictures."""
        known = {target: name for name, target in self.links.items()}
        free = self._free(LINK, f"{LINK}{{}}", self.links.keys() | self.own)
        return known.get(str(root), free)

    def test_name(self, task: str, period: str = "") -> str:
        """Return the name of a new test set of a task, one that is not taken."""
        name = f"{task}.{period}" if period else task
        return self._free(name, f"{name}.batch{{}}", self.tests)

    def _free(self, name: str, numbered: str, taken: Collection[str]) -> str:
        """Return `name` or, where it is taken, with the number of the batch or a higher one."""
        # A copy that an earlier version cleaned names no batches, so that numbers may be taken.
        names = chain([name], map(numbered.format, count(self.batch)))
        return next(each for each in names if each not in taken)


def write_or_append(
    command: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    generator: str,
    keys: Iterable[str],
    plan: Callable[[argparse.Namespace, Before], Plan],
) -> int:
    """Write the stream that `plan` returns, or append it to --append; return the exit code.

    `command`, `argv`, `generator` and `keys` are those of `parsed`.
    """
    try:
        args, before = parsed(command, argv, generator, keys)
    except StreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    write, left_out = write_stream, LEFT_OUT
    if args.append is not None:
        write, left_out = append_stream, _left_out(before.batch)
    return run_plan(args, partial(plan, args, before), write=write, left_out=left_out)


def parsed(
    command: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    generator: str,
    keys: Iterable[str],
) -> tuple[argparse.Namespace, Before]:
    """Return the options, and the stream that they append to.

    With --append, options that are not given are those that the stream was made with.

    Args:
        command: with the options --out and --append.
        argv: the command line.
        generator: name of the command; another one's options are not taken.
        keys: options that are taken over.

    Raises:
        StreamError: --append names no stream.
    """
    args = command.parse_args(argv)
    if (args.out is None) == (args.append is None):
        command.error("give --out for a new stream, or --append STREAM to add to one")
    if args.append is None:
        return args, Before(args.out, args.out.resolve().name)
    manifest = _manifest_of(args.append)
    settings = _settings(manifest, generator)
    command.set_defaults(**{key: settings[key] for key in keys if key in settings})
    if generator == "data_prep.chunk" and "scorers" in settings:
        named = [f"{task}={name}" if task else name for task, name in settings["scorers"].items()]
        # argparse adds what is given to the default of an "append" option: it comes later and wins.
        command.set_defaults(scorer=named)
    command.set_defaults(seed=int(manifest.get("seed", 0)))
    args = command.parse_args(argv)  # again, now that the defaults are the stream's
    for option, others in _BELONGS.items():
        if getattr(args, option, None) != settings.get(option):  # given, and another
            command.set_defaults(**dict.fromkeys(others))
    args = command.parse_args(argv)
    args.out = args.append
    before = Before(
        args.append / STAGING,
        str(manifest.get("name", args.append.resolve().name)),
        len(manifest["chunks"]),
        frozenset(manifest["tasks"]),
        # The first batch is not in the list: the generator of the manifest stands for it.
        len(manifest.get("batches", ())) + 2,
        dict(manifest.get("links") or {}),
        frozenset(path.name for path in args.append.iterdir() if not path.is_symlink()),
        settings,
    )
    return args, before


def _manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a stream. Raises StreamError where there is none."""
    if not (folder / MANIFEST).is_file():
        raise StreamError(f"--append {folder}: no {MANIFEST} there; make the stream with --out")
    return read_manifest(folder / MANIFEST)


def _settings(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the settings with which a stream was made, {} if another command made it."""
    generator = manifest.get("generator") or {}
    while generator and generator.get("name") == "data_prep.check":  # a cleaned copy
        generator = generator.get("settings", {}).get("of") or {}
    return dict(generator.get("settings", {})) if generator.get("name") == name else {}


def append_stream(
    folder: Path,
    plan: Plan,
    workers: int | None = None,
    report: Report | None = None,
    checked: bool = False,
) -> list[WrittenFile] | None:
    """Append the batch of `plan` to the stream in `folder`; return what was made.

    None where the same sources were appended before. What is found between the batch and the
    samples before (duplicates, leaks into test sets) is printed and counted in the manifest. With
    `checked` a batch is refused if `data_prep.check` finds other errors in it, such as pictures
    that are missing or damaged.

    Raises:
        BadSamples, DataError, StreamError: as `write_stream`; the stream is as it was.
    """
    staging = folder / STAGING
    with locked(folder):
        manifest = _manifest_of(folder)
        # A killed append may have been of another source, and write_stream refuses to go on with
        # that.
        shutil.rmtree(staging, ignore_errors=True)
        for name in (MANIFEST, FILE):
            for left in folder.glob(f".{name}.*"):  # by a kill while it was written
                left.unlink()
        if _is_there(manifest, plan.generator):
            return None
        try:
            made = write_stream(staging, plan, workers, report)
            batch = read_manifest(staging / MANIFEST)
            _expect_new(folder, manifest, batch)
            # Before the comparison: samples name pictures from the stream's own folder on, so those
            # of the batch must be found there.
            _bring_pictures(folder, manifest.get("links") or {}, batch)
            counts = _compared(folder, workers, checked)
            grown = _grown(folder, manifest, batch, counts)
            _move_into_place(folder, batch, len(grown["batches"]) + 1)
            write_json(folder / MANIFEST, grown, indent=1)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return made


def _is_there(manifest: dict[str, Any], generator: dict[str, Any]) -> bool:
    """Return whether the sources of a batch are in the stream. Raises StreamError if some are."""
    first = {"settings": _settings(manifest, generator["name"])}
    held = set(_sources(first))
    for batch in manifest.get("batches", ()):
        held.update(_sources(batch["generator"]))
    given = _sources(generator)
    known = [name for source, name in given.items() if source in held]
    if known and len(known) < len(given):
        raise StreamError(
            f"{a_few(known)}: in the stream already, with the same pictures; {len(known)} of "
            f"{len(given)} files. Leave out what is there, or it would be added twice"
        )
    return bool(known)


def _sources(generator: dict[str, Any]) -> dict[tuple[object, ...], str]:
    """Return the names of a batch's files by what makes one the same as another: its bytes.

    The folder of the pictures belongs to it: two months may have tables of the same bytes. So does
    the task for which `compose` takes a file.
    """
    settings = generator.get("settings", {})
    files = [("", each) for each in settings.get("sources", ())]
    files += (settings.get("train") or {}).items()
    images = settings.get("images")
    return {(each["sha256"], images, task): str(each["name"]) for task, each in files}


def _expect_new(folder: Path, manifest: dict[str, Any], batch: dict[str, Any]) -> None:
    """Raise StreamError where a batch would take the place of what the stream holds."""
    held, brought = manifest_entries(manifest), manifest_entries(batch)
    links = manifest.get("links") or {}
    taken = sorted(held.keys() & brought.keys()) + sorted(
        name for name, to in (batch.get("links") or {}).items() if links.get(name, to) != to
    )
    if taken:
        raise StreamError(
            f"{folder / MANIFEST} names {a_few(taken)} already, so nothing was added: another "
            "append may have been faster (give the command again), or the stream's chunks are not "
            "numbered from 001 on (copy it with data_prep.check --fix, which numbers them)"
        )


def _bring_pictures(folder: Path, links: dict[str, str], batch: dict[str, Any]) -> None:
    """Move pictures that came inside samples and make links; the old samples know neither."""
    if (folder / STAGING / EMBEDDED).is_dir():
        move(folder / STAGING / EMBEDDED, folder / EMBEDDED)
    for name, target in (batch.get("links") or {}).items():
        if name in links:  # the same folder: see _expect_new
            continue
        if (folder / name).is_symlink():  # of a batch that was refused or killed
            (folder / name).unlink()
        (folder / name).symlink_to(target, target_is_directory=True)


def _compared(folder: Path, workers: int | None, checked: bool) -> dict[str, int]:
    """Print what is found between the batch and the samples before; return how often, by code.

    Raises:
        BadSamples: `checked`, and there are errors in the batch itself.
    """
    old = read_layout(folder)
    batch = read_layout(folder / STAGING)
    new = [replace(file, name=f"{STAGING}/{file.name}") for file in batch.files]
    layout = Layout(folder, [*old.files, *new], None, (*old.allowed, *batch.allowed))
    known = read_known(folder)
    result = Check(layout, Settings(near=True), workers, known).run()
    write_known(folder, result.pictures)
    mark = f"{folder}/{STAGING}/"
    own = [p for p in result.errors if mark in p.where and p.code not in _CODES]
    own += _gone(result, len(old.files), known)
    if checked and own:
        raise BadSamples([replace(p, where=f"sample {p.sample or '?'}") for p in own])
    # A finding has one sample as its place and the other in its text: it is between old and new
    # where exactly one of the two lies in the batch.
    across = [
        Problem(p.code, p.where.replace(mark, f"{folder}/"), p.text.replace(mark, f"{folder}/"))
        for p in result.problems
        if p.code in _CODES and (mark in p.where) != (mark in p.text)
    ]
    if gone := [p.text for p in old.problems if p.code == "file-missing"]:
        print(f"not compared with what is gone: {gone[0].split(' is ')[0]}, {len(gone)} files")
    if across:
        print(f"between the new samples and those before:\n{listing(across)}")
    return dict(Counter(problem.code for problem in across))


def _gone(result: Result, first: int, known: Container[str]) -> Iterator[Problem]:
    """Yield where a batch, the files from number `first` on, names a picture that is gone since.

    For the samples before, notes stand for such pictures; what is new must be trained on them.
    """
    layout, folders = result.layout, dict[str, str]()
    for sample in result.samples:
        for image in sample.images if sample.file >= first else ():
            try:
                if image in known:
                    resolve(layout.root, image, layout.allowed, folders)
            except DataError as refused:
                yield refused.at("", sample.id)


def _grown(
    folder: Path, manifest: dict[str, Any], batch: dict[str, Any], counts: dict[str, int]
) -> dict[str, Any]:
    """Return the manifest of the stream with the batch."""
    count = len(manifest["chunks"])
    chunks = [{**e, "index": count + n} for n, e in enumerate(batch["chunks"], start=1)]
    old, new = (stream.get("cut") or [{} for _ in stream["chunks"]] for stream in (manifest, batch))
    last, first = [{}, *old][-1].get("to"), [*new, {}][0].get("from")
    if last and first and first < last:
        print(f"the new samples begin at {first}, before the last of the stream ({last})")
    entry = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "generator": batch["generator"],
        "seed": batch["seed"],
        # of the stream.json that the batch was appended to: runs know by it what they trained on
        "before": sha256_file(folder / MANIFEST),
        "files": {file: each["sha256"] for file, each in manifest_entries(batch).items()},
        "found": counts,
    }
    return {
        **manifest,
        "links": {**(manifest.get("links") or {}), **(batch.get("links") or {})},
        "cut": [*old, *new] if any([*old, *new]) else [],
        "batches": [*manifest.get("batches", ()), entry],
        "tasks": {**manifest["tasks"], **batch["tasks"]},
        "chunks": [*manifest["chunks"], *chunks],
    }


def _move_into_place(folder: Path, batch: dict[str, Any], number: int) -> None:
    for name in manifest_entries(batch):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / STAGING / name, folder / name)
        # stream.json comes next; it must not name a file that a power cut takes back.
        sync_folder((folder / name).parent)
    if (folder / STAGING / LEFT_OUT).exists():
        os.replace(folder / STAGING / LEFT_OUT, folder / _left_out(number))


def _left_out(batch: int) -> str:
    return f"left_out.batch{batch}.jsonl"

"""`watch`: what arrives in a folder is checked, appended to the stream, trained and evaluated.

Each step can be repeated: what was accepted and is not in the stream's manifest is appended, a run
that is behind its stream goes on. So a kill at any moment loses nothing and does nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.chunk.__main__ import append_source
from data_prep.errors import DataError, listing, printable
from data_prep.files import read_json, write_json
from data_prep.stream import MANIFEST, StreamError, open_stream, read_manifest
from data_prep.stream_writer import BadSamples, StreamBusy, locked
from recipes.config.schema import Recipe
from recipes.processes.run_lock import RunLocked
from recipes.run.session import RunError
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import has_grown
from recipes.run_folder.state import load_state
from recipes.watch.inbox import Inbox, changed_at, check_kinds, content_of, pictures_of

SUBMITTED = "watch.json"


@dataclass(frozen=True)
class Watch:
    """One watched folder.

    Attributes:
        load: loads the recipe; its chunks are those that the stream holds at that moment.
        bring_up: trains and evaluates what is not yet, or submits the job that does.
        submits: whether it is a job.
        inbox: the folder.
        skip_bad: leave samples out that cannot be read, where else their file is rejected.
        workers: processes that read and check.
    """

    load: Callable[[], Recipe]
    bring_up: Callable[[Recipe], None]
    submits: bool
    inbox: Inbox
    skip_bad: bool = False
    workers: int | None = None

    def run(self, poll: float, once: bool) -> None:
        """Look every `poll` seconds, or once, until a signal comes.

        Raises:
            OSError, RunLocked, StreamBusy: with `once`, what another look would try again.
            RunError, RunChanged, StreamError: the run or the stream cannot go on.
        """
        self.inbox.prepare()
        # Two processes on one inbox would take each other's deliveries for their own.
        with locked(self.inbox.folder):
            while True:
                try:
                    self._look()
                except (OSError, RunLocked, StreamBusy) as error:
                    if once:
                        raise
                    _say(f"{error}; the next look tries again")
                if once:
                    return
                time.sleep(poll)

    def _look(self) -> None:
        """Bring everything that is there to its end, one delivery after the other."""
        self._bring_up()
        known = self._deliveries()
        for path in self.inbox.accepted():  # a kill came before it was in the stream
            if path.name not in known:
                self._append(path)
        for path in self.inbox.arrived():
            try:
                check_kinds(path)
                accepted = self.inbox.accept(path, self._deliveries().keys())
            except DataError as refused:
                self._reject(path, str(refused))
            except PermissionError as error:  # of a folder that is not ours to move
                _say(f"{path.name}: left where it is, {error.strerror}: it may not be moved")
            else:
                self._append(accepted)

    def _append(self, path: Path) -> None:
        """Append an accepted delivery and train it, or reject it."""
        stream, before = Path(self.load().data.stream), changed_at(path)
        try:
            content = content_of(path)
            # By content: a sender that repeats a delivery may give it another name.
            known = {sha256: name for name, sha256 in self._deliveries().items()}
            if content in known:
                raise DataError("again", f"the same content as {known[content]}, which is there")
            made = append_source(
                stream,
                path,
                pictures_of(path),
                {"delivery": {"name": path.name, "sha256": content}},
                lambda: _expect_unchanged(path, before),
                self.skip_bad,
                self.workers,
            )
            if made is None:
                raise DataError("again", f"the same content is in {stream} already")
        except StreamBusy:
            raise
        except (DataError, StreamError) as error:
            text = str(error)
            if isinstance(error, BadSamples):
                text = listing(error.problems, most=1000) + error.note
            elif isinstance(error, StreamError):
                open_stream(stream)  # raises where the stream itself is at fault
            self._reject(path, text)
            return
        samples = sum(each.samples for each in made)
        _say(f"{path.name}: accepted, {samples} samples, into {stream}")
        self._bring_up()

    def _reject(self, path: Path, reasons: str) -> None:
        target = self.inbox.reject(path, reasons)
        first = reasons.splitlines()[0].replace(str(path), path.name)
        _say(f"{path.name}: rejected, {first}\n  all reasons: {target}.reasons.txt")

    def _deliveries(self) -> dict[str, str]:
        """sha256 of the deliveries that are in the stream, by the names that they were given."""
        manifest = read_manifest(Path(self.load().data.stream) / MANIFEST)
        settings = [each["generator"].get("settings", {}) for each in manifest.get("batches", ())]
        given = [each["delivery"] for each in settings if "delivery" in each]
        return {each["name"]: each["sha256"] for each in given}

    def _bring_up(self) -> None:
        """Let the run catch up with its stream, if it is behind."""
        recipe = self.load()
        check_recipe(recipe)
        layout = RunLayout(Path(recipe.folder))
        if load_state(layout.state).finished and not has_grown(layout, recipe):
            return
        if not self.submits:
            self.bring_up(recipe)
            return
        note = layout.root / "slurm" / SUBMITTED
        asked = {"stream": open_stream(Path(recipe.data.stream)).sha256}
        if not note.is_file() or read_json(note) != asked:  # else its job waits, runs or has failed
            self.bring_up(recipe)
            # After the submission: killed in between, the job is submitted once more and finds
            # nothing to do.
            write_json(note, asked)


def check_recipe(recipe: Recipe) -> None:
    """Raise RunError for a recipe whose run cannot grow with what arrives."""
    stream = Path(recipe.data.stream)
    if recipe.data.source == "mini" or not (stream / MANIFEST).is_file():
        raise RunError(
            f"data.stream = {stream}: watch adds to a stream of your own, which is not there yet: "
            "make it from the first files with python -m data_prep.chunk --source FILE --out "
            f"{stream} (and its options for columns, periods and test sets: later files are read "
            "with the same), and set data.source: folder"
        )
    if not recipe.protocol.grows:
        raise RunError(
            f"method = {recipe.method} shuffles all chunks into one training: it cannot grow; "
            "watch with another method"
        )
    held = len(open_stream(stream).chunks)
    if recipe.data.chunks != held:
        raise RunError(
            f"data.chunks = {recipe.data.chunks}, but {stream} holds {held}: leave data.chunks out "
            "of the recipe (a run folder's own recipe.yaml names it: give the file that it was "
            "started with), so that the run grows with its stream"
        )
    if recipe.pool is not None and recipe.pool.descriptions:
        raise RunError(
            "pool.descriptions names a text for each chunk, and what will arrive has none: leave "
            "it out"
        )


def open_inbox(recipe: Recipe, folder: Path, rest: float, marked: bool) -> Inbox:
    """Return the inbox of a recipe's stream.

    Raises:
        RunError: the recipe cannot grow, the folder is not there, or it is not one to be emptied.
    """
    check_recipe(recipe)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; make it, or name the one that data arrive in")
    folder, stream = folder.resolve(), Path(recipe.data.stream).resolve()
    links: dict[str, Any] = read_manifest(stream / MANIFEST).get("links") or {}
    pictures = [Path(target).resolve() for target in links.values()]
    if folder in pictures or folder.is_relative_to(stream):
        where = "the stream" if folder.is_relative_to(stream) else "the pictures of the stream"
        raise RunError(
            f"{folder} holds {where}: what arrives is moved away from there; name another folder"
        )
    return Inbox(folder, rest, marked, (*pictures, stream, Path(recipe.folder).resolve()))


def _expect_unchanged(path: Path, before: int) -> None:
    if changed_at(path) != before:
        raise DataError(
            "changed",
            f"{path.name} changed while it was read: deliver it again when it is whole (a longer "
            "--rest, or a mark NAME.done, says when)",
        )


def _say(text: str) -> None:
    print(printable(text), flush=True)

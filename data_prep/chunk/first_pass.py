"""First pass: the converted samples on disk, in the order of the source, with a small index.

So that memory does not grow with the data: a sample stays in memory for the time of its batch; the
index takes 30 bytes a sample. A killed pass resumes after the batch that was saved last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from data_prep.chunk.batches import MOST_PROBLEMS, Batch, Group, Options, Summary, convert
from data_prep.chunk.columns import missing
from data_prep.errors import Problem
from data_prep.files import read_json, write_json
from data_prep.parallel import ordered_map
from data_prep.progress_bar import Progress
from data_prep.sources.fields import FIELDS_READ, Columns
from data_prep.sources.readers import Item, read_items
from data_prep.sources.records import encode
from data_prep.stream import StreamError
from data_prep.stream_writer import LEFT_OUT, STATE, BadSamples

BATCH = 1000  # samples handed to a process at a time
SAVE_EVERY = 5  # batches between two saves of the state
MOST_GROUPS = 10_000
_OF_COLUMNS = ("column", "no-turns", "no-answer")  # problems that the columns' names explain
INDEX = np.dtype([("at", "<u8"), ("group", "<i8"), ("task", "<i4"), ("test", "?"), ("id", "<u8")])
_FILES = ("records.jsonl", "index.bin", LEFT_OUT)
_FOUND = (
    "columns found: {}; name those of picture, question and answer with --image-column, "
    '--question-column and --answer-column, or give one question for all with --question "..."'
)
Handles = Sequence[IO[bytes]]  # of _FILES, opened for appending


@dataclass
class _State(Summary):
    """What a killed pass goes on from: file and sample, sizes of the files, names in the index."""

    file: int = 0
    number: int = 0
    finished: bool = False
    sizes: list[int] = field(default_factory=lambda: [0, 0, 0])
    tasks: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


class FirstPass(_State):
    """The first pass over `sources`, in `folder`."""

    def __init__(self, folder: Path, sources: list[Path], options: Options, skip_bad: bool) -> None:
        super().__init__()
        self.folder, self.sources = folder, sources
        self.options, self.skip_bad = options, skip_bad

    @property
    def samples(self) -> int:
        """Return the number of samples that were kept."""
        return self.sizes[1] // INDEX.itemsize

    def run(self, workers: int, progress: Progress | None = None) -> None:
        """Do what is left of the pass.

        Raises:
            DataError: a source cannot be read at all.
            BadSamples: samples were refused and `skip_bad` is off.
            StreamError: too many groups.
        """
        self._resume()
        if self.finished:
            return
        handles = [(self.folder / name).open("ab") for name in _FILES]
        try:
            for file in range(self.file, len(self.sources)):
                self._read(file, handles, workers, progress)
            self._stop_if_bad(0)
            self._refuse_unknown_pictures()
            if self.options.needs_pictures and self.samples and not self.images:
                raise StreamError(
                    f"--images is given, but none of the {self.samples} samples has a picture: "
                    "name the column of their paths with --image-column. Columns found: "
                    f"{', '.join(self.keys)}"
                )
            self._report()
            self.finished = True
            self._note(handles)
        finally:
            for handle in handles:
                handle.close()

    def index(self) -> np.ndarray:
        """Return the index: at (byte), group, task and test flag of every sample."""
        return np.fromfile(self.folder / "index.bin", dtype=INDEX)

    def _read(self, file: int, handles: Handles, workers: int, progress: Progress | None) -> None:
        if file != self.file:
            self.file, self.number = file, 0
        path = self.sources[file]
        jobs = ((self.options, path, items) for items in self._batches(path))
        for done, batch in enumerate(ordered_map(convert, jobs, workers), start=1):
            self._keep(batch, handles)
            self.number = batch.last
            self._stop_if_bad(MOST_PROBLEMS)
            if done % SAVE_EVERY == 0:
                self._note(handles)
            if progress:
                progress(self.samples, None, path.name)

    def _batches(self, path: Path) -> Iterator[list[Item]]:
        start = self.number  # it moves on while the batches are made
        items = (item for item in read_items(path) if item[0] > start)
        while batch := list(islice(items, BATCH)):
            yield batch

    def _keep(self, batch: Batch, handles: Handles) -> None:
        rows = np.zeros(len(batch.lengths), dtype=INDEX)
        lengths = np.array(batch.lengths, dtype=np.uint64)
        rows["at"] = self.sizes[0] + np.cumsum(lengths) - lengths
        groups: Sequence[Group] = batch.groups
        if self.options.by == "column":
            groups = _numbers([str(group) for group in groups], self.labels)
            if len(self.labels) > MOST_GROUPS:
                raise StreamError(
                    f"column {self.options.column!r} has more than {MOST_GROUPS} values: each "
                    "would be a chunk of its own; choose a column with few values"
                )
        rows["group"] = groups
        rows["task"] = _numbers(batch.tasks, self.tasks)
        rows["test"] = batch.tests
        rows["id"] = np.array(batch.ids, dtype=np.uint64)
        left_out = b"".join(encode(problem.as_json()) for problem in batch.summary.problems)
        for at, data in enumerate((batch.lines, rows.tobytes(), left_out)):
            handles[at].write(data)
            self.sizes[at] += len(data)
        self.merge(batch.summary)
        if len(self.forms) > 1:
            forms = "; ".join(f"{form} ({where})" for form, where in self.forms.items())
            raise StreamError(
                f"column {self.options.column!r} holds times of several forms: {forms}; write all "
                "of them in one form, such as 2026-01-31T12:00:00"
            )

    def _refuse_unknown_pictures(self) -> None:
        """Refuse --image-column where no sample has anything in it: a picture is no must."""
        column = self.options.columns.image
        if not column or not self.keys or {column, column.split(".")[0]} & {*self.keys}:
            return
        lower = {key.lower(): key for key in self.keys}
        near = get_close_matches(column.lower(), lower, n=1)
        hint = f"; did you mean {lower[near[0]]}?" if near else "."
        raise StreamError(
            f"--image-column {column}: no sample has a value there{hint} Columns found: "
            f"{', '.join(self.keys)}"
        )

    def _report(self) -> None:
        """Print once what was read from where, what is not there, and what nobody reads."""
        if self.taken:
            print(f"read: {self.taken}; {self.images} of {self.samples} samples with pictures")
        if self.lacking:
            names = ", ".join(self.missing) + (", ..." if self.lacking > len(self.missing) else "")
            print(
                f"warning: {self.lacking} of {self.samples} samples name a picture that is not in "
                f"{self.options.resolver.root}: {names}{self._similar()}; bring the files there, "
                "or leave such samples out with data_prep.check --fix",
                file=sys.stderr,
            )
        for form in self.forms:
            if form != "dates and times":
                print(f"column {self.options.column!r}: read as {form}", file=sys.stderr)
        if self.unread:
            print(f"keys of turns that are left out: {', '.join(self.unread)}", file=sys.stderr)
        if self.marks:
            print(f"marks that stay text: {', '.join(self.marks)}", file=sys.stderr)
        if kept := sorted(self.columns.kinds.keys() - FIELDS_READ):
            shown = ", ".join(kept[:20]) + (", ..." if len(kept) > 20 else "")
            print(f"fields that are kept, but not read in training: {shown}", file=sys.stderr)

    def _similar(self) -> str:
        """Say which file may be meant by the first picture that is not there: another case, ..."""
        wanted = Path(self.missing[0]).name.lower()
        with os.scandir(self.options.resolver.root) as entries:
            for name in (entry.name for entry in islice(entries, MOST_GROUPS)):
                if wanted in (name.lower(), Path(name).stem.lower()):
                    return f" ({name} is there: write its path below --images letter by letter)"
        return ""

    def _stop_if_bad(self, most: int) -> None:
        if len(self.problems) > most and not self.skip_bad:
            self._refuse_unknown_pictures()
            empty = {missing(key): missing(key, elsewhere=True) for key in self.keys}
            asked = [p for p in self.problems if p.code in _OF_COLUMNS and p.text not in empty]
            hint = f"\n{_FOUND.format(', '.join(self.keys))}" if asked else ""
            raise BadSamples(
                [replace(p, text=empty.get(p.text, p.text)) for p in self.problems], hint
            )

    def _note(self, handles: Handles) -> None:
        for handle in handles:
            # Before the state, which must not count bytes that a power cut would take back.
            handle.flush()
            os.fsync(handle.fileno())
        # asdict knows the fields of _State alone: folder, sources and options come with each run.
        write_json(self.folder / STATE, asdict(self))

    def _resume(self) -> None:
        """Read the state that a killed run saved and cut off what it wrote after that."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / STATE).exists():
            vars(self).update(read_json(self.folder / STATE))
            self.columns = Columns(**vars(self)["columns"])
            self.problems = [Problem(**problem) for problem in vars(self)["problems"]]
        for name, size in zip(_FILES, self.sizes, strict=True):
            with (self.folder / name).open("ab") as handle:
                handle.truncate(size)


def _numbers(values: list[str], known: list[str]) -> list[int]:
    """Return the place of each value in `known`, which grows with new ones."""
    known[:] = dict.fromkeys([*known, *values])
    places = {value: number for number, value in enumerate(known)}
    return [places[value] for value in values]

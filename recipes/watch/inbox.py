"""A folder into which data are delivered: what has arrived, and where it goes.

A delivery is a file or a folder at the top of the inbox. It is moved to `accepted/`, from where it
is appended to the stream and where its pictures stay, or to `rejected/`, reasons beside it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import DataError, expect_utf8, printable
from data_prep.files import sha256_file, sha256_folder, sync_folder, write_text
from data_prep.images import EXTENSIONS

ACCEPTED, REJECTED = "accepted", "rejected"
MARK = ".done"
REASONS = ".reasons.txt"
# Bytes of a delivery's name: a file system takes 255, and `.NAME-2.reasons.txt.abcdefgh` is longer.
LONGEST = 200
# Files that their senders rename when they are whole.
_UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp")


@dataclass(frozen=True)
class Inbox:
    """An inbox.

    Attributes:
        folder: where deliveries arrive.
        rest: seconds for which nothing of a delivery must have changed before it counts as whole.
        marked: whether only a mark, NAME.done beside it, says that a delivery is whole.
        kept: what lies in the inbox and is no delivery: stream, run and folders of pictures.
    """

    folder: Path
    rest: float
    marked: bool
    kept: tuple[Path, ...]

    def prepare(self) -> None:
        """Make the two folders. Raises OSError where that is not allowed."""
        for name in (ACCEPTED, REJECTED):
            (self.folder / name).mkdir(exist_ok=True)

    def arrived(self) -> Iterator[Path]:
        """Yield the deliveries that are whole, in the order of their names.

        Also links, and folders with links or devices in them, which nobody should wait for.
        """
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".") or path.name.endswith((MARK, *_UNFINISHED)):
                continue
            if path.name in (ACCEPTED, REJECTED):
                continue
            if not any(kept.is_relative_to(path) for kept in self.kept) and self._is_whole(path):
                yield path

    def _is_whole(self, path: Path) -> bool:
        """Tell whether a delivery is marked, or has been at rest for long enough.

        The time of change is taken, which no program can set: `cp -p` and `rsync -t` set others.
        """
        try:
            changed = changed_at(path)
            mark = path.with_name(path.name + MARK)
            # An old mark says nothing about a later delivery of the same name. Path.is_file would
            # raise where the name with the mark is too long.
            if os.path.isfile(mark) and mark.lstat().st_ctime_ns >= changed:
                return True
        except FileNotFoundError:  # moved while we looked
            return False
        return not self.marked and time.time() - changed / 1e9 >= self.rest

    def accept(self, path: Path, taken: Collection[str]) -> Path:
        """Move a delivery to accepted/, under a name that is not in `taken`; return where it is."""
        target = _free(self.folder / ACCEPTED / path.name, taken)
        _move(path, target)
        return target

    def accepted(self) -> list[Path]:
        """What was accepted, by name."""
        return sorted((self.folder / ACCEPTED).iterdir())

    def reject(self, path: Path, reasons: str) -> Path:
        """Move a delivery to rejected/, the reasons beside it; return where it is.

        The reasons then name its files where they lie. A name that is too long is cut.
        """
        name = path.name
        if len(os.fsencode(name)) > LONGEST:
            name = os.fsencode(name)[:LONGEST].decode(errors="ignore")
        target = _free(self.folder / REJECTED / name)
        reasons = printable(reasons.replace(str(path), str(target)))
        # Before the move: a kill in between leaves the delivery to the next look; after it nothing
        # would say why it lies there.
        write_text(target.with_name(target.name + REASONS), f"{reasons}\n")
        _move(path, target)
        return target


def changed_at(path: Path) -> int:
    """When anything of a file or folder changed last, in nanoseconds since 1970."""
    return max(each.lstat().st_ctime_ns for each in _parts(path))


def _parts(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        yield from path.rglob("*")


def check_kinds(path: Path) -> None:
    """Raise DataError unless a delivery is made of files and folders only, with a name to keep.

    A link would lead to what is not delivered, or changes later; reading a pipe would never end.
    """
    if (length := len(os.fsencode(path.name))) > LONGEST:
        raise DataError(
            "file-name", f"a name of {length} bytes, expected at most {LONGEST}: rename it"
        )
    for each in _parts(path):
        mode = each.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise DataError(
                "link", f"{each.name} is a link to {os.readlink(each)}: deliver the file itself"
            )
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise DataError("kind", f"{each.name} is neither a file nor a folder: leave it out")


def content_of(path: Path) -> str:
    """The hex sha256 of what a delivery holds, whatever its name. Raises DataError."""
    try:
        for each in _parts(path):
            expect_utf8(Path(each.name))
        if path.is_dir():
            for each in filter(Path.is_dir, _parts(path)):
                os.listdir(each)  # rglob passes over a folder that may not be read
            return sha256_folder(path)
        return sha256_file(path)
    except OSError as error:
        raise DataError(
            "unreadable", f"{error.filename or path} cannot be read: {error.strerror}; deliver it "
            "again, readable for the user who watches"
        ) from error  # fmt: skip


def pictures_of(path: Path) -> Path | None:
    """The folder of the pictures that came with a delivery; None where none came."""
    pictures = path.is_dir() and any(each.suffix.lower() in EXTENSIONS for each in _parts(path))
    return path if pictures else None


def _free(path: Path, taken: Collection[str] = ()) -> Path:
    """The path, or the first of `name-2`, `name-3`, ... that nothing has."""
    name, number = path.name, 1
    while os.path.lexists(path) or path.name in taken:
        number += 1
        first, dot, rest = name.partition(".")
        path = path.with_name(f"{first}-{number}{dot}{rest}")
    return path


def _move(path: Path, target: Path) -> None:
    os.rename(path, target)  # not a copy: what is half-way there after a kill would look whole
    sync_folder(target.parent)
    sync_folder(path.parent)
    mark = path.with_name(path.name + MARK)
    if os.path.lexists(mark):  # False where such a name would be too long
        mark.unlink()

"""Files: hashes, JSON and JSON Lines with the place in every error, and atomic writes.

A reader of a file written here sees the old file or the whole new one, also after a power cut.
The standard library and jsonlines only, so that every package may use it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import jsonlines

Record = dict[str, Any]


def print_lines(lines: Iterable[object]) -> None:
    """Print lines to standard output; ends quietly when a reader such as `| head` has enough."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, which would fail again and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def a_few(names: Sequence[str], most: int = 5) -> str:
    """Return names for people, the first of many: "a, b, c and 17 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_missing(value: object) -> bool:
    """Tell whether a value is none: null, or the NaN that pandas writes for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_literal(value: Any) -> Any:
    """Return the list or object that a text is, in JSON or as Python prints it; else the value."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            # ast.literal_eval raises TypeError for "{[1]}", a set of lists, and the last two for
            # text that is nested deeply.
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return read(value.strip())
    return value


def hash64(text: str) -> int:
    """Return 64 bits of a hash of `text`, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    # By hand: hashlib.file_digest is there from Python 3.11 on.
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_folder(folder: Path) -> str:
    """Return the hex sha256 of the names and bytes of all files in a folder, its own name aside."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def write_blocks(path: Path, blocks: Iterable[bytes]) -> str:
    """Write `blocks` one after the other to `path` atomically; return the sha256 of the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: only inside one file system a rename is atomic.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files; ours are meant to be read by others
        os.replace(name, path)
    # Ctrl-C, too, must not leave the temporary file.
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> str:
    """Write `text` to `path` atomically, as UTF-8; return the sha256 of its bytes."""
    return write_blocks(path, [text.encode("utf-8")])


def write_json(path: Path, content: Any, indent: int = 2, allow_nan: bool = False) -> None:
    """Write `content` as one JSON file, atomically; text that is not ASCII stays readable.

    Raises:
        ValueError: it holds NaN or infinity, which JSON cannot express, and `allow_nan` is off.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    write_text(path, f"{text}\n")


def read_json(path: Path) -> Any:
    """Return the content of one JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON, or not UTF-8; the message names the file and the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(_undecodable(path, error.reason)) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); write it again"
        ) from error


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> str:
    """Write a JSON Lines file atomically; return the sha256 of its bytes."""
    text = StringIO()
    with jsonlines.Writer(
        text, dumps=partial(json.dumps, ensure_ascii=False, allow_nan=False)
    ) as writer:
        writer.write_all(records)
    return write_text(path, text.getvalue())


def read_jsonl(path: Path, torn_tail: bool = False) -> list[Record]:
    """Return the objects of a JSON Lines file, one a line; see `numbered_jsonl`."""
    return [record for _, record in numbered_jsonl(path, torn_tail)]


def numbered_jsonl(path: Path, torn_tail: bool = False) -> Iterator[tuple[int, Record]]:
    r"""Yield (line number from 1, object) of a JSON Lines file; blank lines are skipped.

    Lines end at ``\n`` only: other line separators may stand inside an answer. A byte order mark
    at the start, which editors add, is skipped.

    Args:
        path: the file.
        torn_tail: leave out a last line that has no line end and is not JSON, because its writer
            was killed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is not a JSON object, or not UTF-8; the message names file and line.
    """
    number, line = 0, ""

    def lines() -> Iterator[str]:
        nonlocal number, line
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                number += 1
                if line.strip():
                    yield line

    try:
        # Without `loads` it is another parser wherever orjson happens to be installed.
        with jsonlines.Reader(lines(), loads=json.loads) as reader:
            for record in reader.iter(allow_none=True):
                if not isinstance(record, dict):
                    found = line.strip()[:80]
                    raise ValueError(f"{path}:{number}: expected a JSON object, found {found!r}")
                yield number, record
    except jsonlines.InvalidLineError as error:
        if torn_tail and not line.endswith("\n"):
            return
        reason = getattr(error.__cause__, "msg", error)
        found = line.strip()[:80]
        raise ValueError(f"{path}:{number}: not JSON ({reason}): {found!r}") from error
    except UnicodeDecodeError as error:
        # Text is decoded in blocks, so that the line that was read last is not the one at fault.
        raise ValueError(_undecodable(path, error.reason)) from error


def _undecodable(path: Path, reason: str) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"{path}:{number}: not UTF-8 ({reason}); save the file as UTF-8"
    return f"{path}: not UTF-8 ({reason}); save the file as UTF-8"


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a file that end in a newline: the last may still be being written."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

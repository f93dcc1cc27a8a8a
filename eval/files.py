"""Small file helpers: JSON Lines with line numbers in every error, and atomic writes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_json(path: Path) -> Any:
    """Return the content of one JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON; the message names the file, the line and the fix.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); write it again"
        ) from error


def read_jsonl(path: Path, torn_tail: bool = False) -> list[Record]:
    """Return the objects of a JSON Lines file, one a line; see `numbered_jsonl`."""
    return [record for _, record in numbered_jsonl(path, torn_tail)]


def numbered_jsonl(path: Path, torn_tail: bool = False) -> list[tuple[int, Record]]:
    """Return (line number, object) of a JSON Lines file; blank lines are skipped.

    Lines end at `\\n` only: `str.splitlines` would also break at U+2028 inside an answer.

    Args:
        path: the file.
        torn_tail: drop a last line that has no line end and is not JSON (a writer was killed).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is not a JSON object, or the file no UTF-8; the message names file and
            line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # editors add a mark
    except UnicodeDecodeError as error:
        at = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{at}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    records: list[tuple[int, Record]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if torn_tail and number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}): {line[:80]!r}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, found {line[:80]!r}")
        records.append((number, record))
    return records


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: a reader sees the old file or the new one, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; it survives a power cut once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; results are meant to be read by others.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file atomically, indented, non-ASCII text kept readable."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write a JSON Lines file atomically."""
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
    write_text(path, "".join(f"{line}\n" for line in lines))

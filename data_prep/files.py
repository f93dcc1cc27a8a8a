"""Small file helpers: hashes, and writes that a reader sees whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_blocks(path: Path, blocks: Iterable[bytes]) -> str:
    """Write `blocks` one after the other to `path` atomically; return the sha256 of the whole.

    A reader, also after a power cut, sees the old file or the whole new one, never half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as stream:
            for block in blocks:
                stream.write(block)
                digest.update(block)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files; data is meant to be read by others
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically, indented."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_blocks(path, [text.encode() + b"\n"])

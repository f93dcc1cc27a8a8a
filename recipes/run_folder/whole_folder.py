"""Folders that appear under their names when all of them is written, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.files import sync_folder


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be filled, which then takes its name and is on the disk.

    `target` must not be there, or be empty. An exception inside leaves nothing behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        # mkdtemp makes private folders; these are read by others, too.
        os.chmod(temporary, 0o755)
        # Contents before the name: after a power cut the name must not stand over empty files.
        for path in (*temporary.rglob("*"), temporary):
            sync_folder(path)  # a file, too
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)

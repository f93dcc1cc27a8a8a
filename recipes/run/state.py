"""What has been done so far, in files that are either the old or the new, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically: temporary file in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically, two spaces of indent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the value in a JSON file; ValueError when it is none."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class ChunkRecord:
    """One chunk that was trained (index >= 1), or the base model (index 0).

    `trained` and `evaluated` turn true only after their files are in place; seconds are wall time
    over all starts of the chunk; `train_memory_gib` is the most main memory that training held.
    GPU time and energy are of starts that reached the chunk's end; None on CPU, or where the driver
    does not tell.
    """

    index: int
    trained: bool = False
    evaluated: bool = False
    steps: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    train_memory_gib: float | None = None
    loss: float | None = None
    gpu_seconds: float | None = None
    gpu_joules: float | None = None
    data_sha256: str = ""
    adapter_sha256: dict[str, str] = field(default_factory=dict)
    replay_sha256: dict[str, str] = field(default_factory=dict)
    router_sha256: dict[str, str] = field(default_factory=dict)


@dataclass
class RunState:
    """state.json: `done` is the last chunk that is trained and (where asked) evaluated."""

    chunks: list[ChunkRecord] = field(default_factory=list)
    done: int = 0
    finished: bool = False

    def record(self, index: int) -> ChunkRecord:
        """Returns the record of chunk `index`, making it when new; records stay sorted."""
        for record in self.chunks:
            if record.index == index:
                return record
        record = ChunkRecord(index)
        self.chunks.append(record)
        self.chunks.sort(key=lambda r: r.index)
        return record


class StateError(Exception):
    """state.json cannot be used; the message says what to do."""


def load_state(path: Path) -> RunState:
    """Reads state.json; a fresh state when the file does not exist.

    Raises:
        StateError: the file is no JSON of this format, or has what only a newer version writes.
    """
    if not path.exists():
        return RunState()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _check_version(path, raw)
        chunks = [ChunkRecord(**chunk) for chunk in raw["chunks"]]
        return RunState(chunks, int(raw["done"]), bool(raw["finished"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(
            f"{path} is damaged ({error}). This program did not write it as it stands: restore "
            "it from a copy, or start again with another run_dir."
        ) from error


def _check_version(path: Path, raw: dict[str, Any]) -> None:
    """Raises StateError for a newer version's file, ValueError or KeyError for a damaged one."""
    version = raw["format"]
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"format {version!r}, expected {FORMAT}")
    new = raw.keys() - _names(RunState) - {"format"}
    if version == FORMAT:
        keys = (chunk.keys() for chunk in raw["chunks"])
        new |= {f"chunks: {key}" for key in set().union(*keys) - _names(ChunkRecord)}
    if version > FORMAT or new:
        unknown = f", unknown keys {', '.join(sorted(new))}" if new else ""
        manifest = path.with_name("manifest.json")
        raise StateError(
            f"{path} was written by a newer version of this program (format {version}, this one "
            f"writes {FORMAT}{unknown}). Go on with that version ({manifest} names its git "
            "commit) or a later one, or start again with another run_dir. Nothing was changed."
        )


def _names(record: type[ChunkRecord] | type[RunState]) -> set[str]:
    return {each.name for each in fields(record)}


def save_state(path: Path, state: RunState) -> None:
    """Writes state.json atomically."""
    write_json(path, {"format": FORMAT, **asdict(state)})

"""state.json: what has been done so far. The only file of a run folder that changes in place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.files import read_json, write_json
from recipes import UserError

FORMAT = 1
# Measured by earlier versions; state.json of their runs still holds them.
_RETIRED = {"gpu_seconds", "gpu_joules"}


@dataclass
class ChunkRecord:
    """One chunk that was trained (index >= 1), or the base model (index 0).

    `trained` and `evaluated` turn true only after their files are in place; seconds are wall time
    over all starts of the chunk that were not killed; `train_memory_gib` is the most main memory
    that training held.
    """

    index: int
    trained: bool = False
    evaluated: bool = False
    steps: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    train_memory_gib: float | None = None
    loss: float | None = None
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


class StateError(UserError, ValueError):
    """A record of the run cannot be used; the message says what to do."""


def load_state(path: Path) -> RunState:
    """Reads state.json; a fresh state when the file does not exist.

    Raises:
        StateError: the file is no JSON of this format, or has what only a newer version writes.
    """
    if not path.exists():
        return RunState()
    try:
        raw = read_json(path)
        _check_version(path, raw)
        chunks = [
            ChunkRecord(**{key: value for key, value in chunk.items() if key not in _RETIRED})
            for chunk in raw["chunks"]
        ]
        return RunState(chunks, int(raw["done"]), bool(raw["finished"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(_damaged(path, error)) from error


def read_record(path: Path) -> Any:
    """Reads a file in which the program recorded something of the run.

    Raises:
        StateError: it is no JSON object.
    """
    try:
        record = read_json(path)
        if not isinstance(record, dict):
            raise ValueError(f"found {type(record).__name__}, expected a JSON object")
    except ValueError as error:
        raise StateError(_damaged(path, error)) from error
    return record


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged ({error}). This program did not write it as it stands: restore it "
        "from a copy, or start again with another run_dir."
    )


def _check_version(path: Path, raw: dict[str, Any]) -> None:
    """Raises StateError for a newer version's file, ValueError or KeyError for a damaged one."""
    version = raw["format"]
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"format {version!r}, expected {FORMAT}")
    new = raw.keys() - _names(RunState) - {"format"}
    if version == FORMAT:
        keys = (chunk.keys() for chunk in raw["chunks"])
        new |= {f"chunks: {key}" for key in set().union(*keys) - _names(ChunkRecord) - _RETIRED}
    # Unknown keys count, too: a version that adds one need not change the format.
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
    """Writes state.json atomically; the loss of a chunk that diverged may be NaN."""
    write_json(path, {"format": FORMAT, **asdict(state)}, allow_nan=True)

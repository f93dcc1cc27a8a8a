"""Checkpoints and adapters on disk: complete or not, finished or not, the same or not.

No torch: a safetensors header is JSON, and torch's other files are zip archives whose directory
stands at the end, so that a file cut short is recognised.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import sha256_file, sync_folder

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TRAINER_STATE = "trainer_state.json"
EWC_STATE = "ewc.safetensors"
# What only an interrupted chunk needs; it stays behind when an adapter is installed.
_RESUME_ONLY: tuple[str, ...] = (
    "optimizer.pt",
    "scheduler.pt",
    "training_args.bin",
    "rng_state",
    "global_step",
    "latest",
)
_RESUME_ONLY += ("zero_to_fp32", "scaler.pt")
_EXPONENT = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


class CheckpointError(Exception):
    """A checkpoint or adapter that cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete host checkpoint inside one chunk."""

    path: Path
    step: int
    max_steps: int

    @property
    def finished(self) -> bool:
        """Whether the chunk's training ended here, by the host's own count."""
        return self.step == self.max_steps > 0


def newest_checkpoint(host: Path) -> Checkpoint | None:
    """Returns the newest complete checkpoint in a host folder, or None."""
    for step, path in sorted(_numbered(host), reverse=True):
        checkpoint = read_checkpoint(path, step)
        if checkpoint is not None:
            return checkpoint
    return None


def _numbered(host: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, complete or not."""
    names = [(path.name.removeprefix("checkpoint-"), path) for path in host.glob("checkpoint-*")]
    return [(int(step), path) for step, path in names if step.isdigit() and not path.is_symlink()]


def read_checkpoint(path: Path, step: int) -> Checkpoint | None:
    """Returns the checkpoint when every file that resuming needs is whole, else None.

    The host writes trainer_state.json last; the rest guards against
    power cuts and full disks.
    """
    try:
        state = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        check_weights(path / WEIGHTS)
    except (OSError, ValueError, CheckpointError):
        return None
    archives = [*path.glob("*.pt"), *path.glob("rng_state*.pth"), *path.glob("global_step*/*.pt")]
    if not archives or not all(zipfile.is_zipfile(archive) for archive in archives):
        return None
    if state.get("global_step") != step:
        return None
    return Checkpoint(path, step, int(state.get("max_steps", 0)))


def check_weights(path: Path) -> list[str]:
    """Returns the tensor names of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, empty, or no safetensors file.
    """
    return sorted(_read_header(path)[0])


def check_finite(path: Path) -> None:
    """Raises CheckpointError naming the first tensor that holds a NaN or an infinity.

    The host filters NaN out of the loss that it logs, so that the weights are the only witness.
    """
    header, start = _read_header(path)
    for name, entry in header.items():
        if entry["dtype"] not in _EXPONENT:
            continue
        kind, mask = _EXPONENT[entry["dtype"]]
        first, last = entry["data_offsets"]
        count = (last - first) // np.dtype(kind).itemsize
        bits = np.fromfile(path, kind, count, offset=start + first)
        if np.any(bits & mask == mask):  # an exponent of ones is NaN or infinity
            raise CheckpointError(f"{path}: {name} holds NaN or infinity: the training diverged")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensor name -> entry of a safetensors file, and where the tensors' bytes start."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from error
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(f"{path} holds no tensors")
    end = max(entry["data_offsets"][1] for entry in header.values())
    if 8 + length + end != size:
        raise CheckpointError(f"{path} is cut short: {size} bytes of {8 + length + end}")
    return header, 8 + length


def install_adapter(checkpoint: Checkpoint, target: Path) -> None:
    """Copies the checkpoint's adapter to `target`, which appears complete or not at all.

    Raises:
        CheckpointError: the weights are damaged or not finite.
    """
    check_finite(checkpoint.path / WEIGHTS)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for source in checkpoint.path.iterdir():
            if not source.name.startswith(_RESUME_ONLY) and source.is_file():
                shutil.copyfile(source, temporary / source.name)
                _sync_file(temporary / source.name)
        os.chmod(temporary, 0o755)
        sync_folder(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def adapter_hashes(adapter: Path) -> dict[str, str]:
    """sha256 of the files that decide what an adapter computes, and what it carries beside them."""
    carried = [EWC_STATE] if (adapter / EWC_STATE).is_file() else []
    return {name: sha256_file(adapter / name) for name in (CONFIG, WEIGHTS, *carried)}


def verify_adapter(adapter: Path, expected: dict[str, str]) -> None:
    """Raises CheckpointError when the adapter is not the one that was recorded."""
    for name, digest in expected.items():
        path = adapter / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if sha256_file(path) != digest:
            raise CheckpointError(f"{path} was changed after the chunk was recorded")


def clean_host_folder(host: Path, keep: Checkpoint | None) -> None:
    """Removes what an interrupted process left behind, for the next to start from known ground.

    With a checkpoint to resume from, later checkpoints (incomplete ones) go, and metrics of
    steps after it, which the resumed process will write again; without one, everything goes.
    """
    if keep is None:
        shutil.rmtree(host, ignore_errors=True)
        return
    for step, path in _numbered(host):
        if step > keep.step:
            shutil.rmtree(path)
    metrics = host / "logging.jsonl"
    if metrics.is_file():
        kept = [line for line in complete_lines(metrics) if _step_of(line) <= keep.step]
        metrics.write_text("".join(kept), encoding="utf-8")


def complete_lines(path: Path) -> list[str]:
    """Lines of a JSONL file that end in a newline: the last one may still be being written."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line for line in file if line.endswith("\n")]


def _step_of(line: str) -> int:
    try:
        return int(str(json.loads(line).get("global_step/max_steps", "0")).split("/")[0])
    except ValueError:
        return 0

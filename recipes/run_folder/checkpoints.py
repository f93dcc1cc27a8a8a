"""Checkpoints and adapters on disk: complete or not, finished or not, the same or not.

No torch: strlora_tuner.saved judges the adapter, and torch's own files are zip archives whose
directory stands at the end, so that a file cut short is recognised.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import complete_lines, read_json, sha256_file, write_text
from recipes import UserError
from recipes.run_folder.whole_folder import whole_folder
from strlora_tuner import saved
from strlora_tuner.methods import options_class
from strlora_tuner.methods.ewc import state_file as ewc
from strlora_tuner.methods.slow_weights import both_sets
from strlora_tuner.methods.slow_weights.options import Kind
from strlora_tuner.saved import CONFIG, WEIGHTS, AdapterError, check_finite, read_shapes

TRAINER_STATE = "trainer_state.json"
OPTIMIZER = "optimizer.pt"  # beside an adapter, where the next chunk's optimizer goes on with it
# What only an interrupted chunk needs; it stays behind when an adapter is installed.
_RESUME_ONLY = (OPTIMIZER, "scheduler.pt", "scaler.pt", "training_args.bin", "rng_state",
                "global_step", "latest", "zero_to_fp32")  # fmt: skip


class CheckpointError(UserError):
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
        if incomplete(path, step) is None:
            return Checkpoint(path, step, int(read_json(path / TRAINER_STATE).get("max_steps", 0)))
    return None


def passed_over(host: Path, taken: Checkpoint | None) -> list[str]:
    """Says of every checkpoint after the one that is `taken` (None: all) why it is not used."""
    first = -1 if taken is None else taken.step
    later = [(step, path) for step, path in sorted(_numbered(host)) if step > first]
    instead = "the chunk's start" if taken is None else taken.path.name
    return [
        f"{path.name} is not complete ({incomplete(path, step)}): going on from {instead}"
        for step, path in later
    ]


def _numbered(host: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, complete or not."""
    names = [(path.name.removeprefix("checkpoint-"), path) for path in host.glob("checkpoint-*")]
    return [(int(step), path) for step, path in names if step.isdigit() and not path.is_symlink()]


def incomplete(path: Path, step: int) -> str | None:
    """Says what a checkpoint lacks; None when all that resuming needs is there and whole.

    The host writes trainer_state.json last; the rest guards against power cuts, full disks and
    people who save space. Without the state of optimizer, schedule or random numbers the host
    would go on with new ones and say nothing. The last checkpoint of a chunk needs none of them.
    """
    try:
        state = read_json(path / TRAINER_STATE)
        read_shapes(path / WEIGHTS)
        if (slow := path / both_sets.FILE).is_file():
            read_shapes(slow)
    except (OSError, ValueError) as error:
        return str(error)
    if state.get("global_step") != step:
        return f"{TRAINER_STATE} is of step {state.get('global_step')}"
    if 0 < step == state.get("max_steps"):
        return None
    missing = [pattern for pattern, count in _resumed_from(path) if _count(path, pattern) < count]
    if missing:
        return f"{', '.join(missing)} missing"
    archives = [*path.glob("*.pt"), *path.glob("rng_state*.pth"), *path.glob("global_step*/*.pt")]
    cut = [file.name for file in archives if not zipfile.is_zipfile(file)]
    return f"{', '.join(cut)} cut short" if cut else None


def _resumed_from(path: Path) -> Iterator[tuple[str, int]]:
    """Patterns of the files that the host resumes from, and how many of each there must be."""
    arguments: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # old ones have none; then what is there has to say it
        arguments = read_json(path / "args.json")
    ranks = arguments.get("global_world_size") or _count(path, "rng_state_*.pth") or 1
    names = [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    yield from ((name, 1) for name in names)
    if "slow_weights" in (arguments.get("callbacks") or []):
        yield both_sets.FILE, 1
    config = arguments.get("deepspeed")
    if not config and not _count(path, "global_step*"):
        yield from ((OPTIMIZER, 1), ("scheduler.pt", 1))
        if arguments.get("fp16"):
            yield "scaler.pt", 1
        return
    config = config if isinstance(config, dict) else {}
    stage = config.get("zero_optimization", {}).get("stage", 0)
    yield "latest", 1
    yield "global_step*/*_model_states.pt", ranks if stage == 3 else 1
    yield "global_step*/*_optim_states.pt", ranks if stage else 0
    if "scheduler" not in config:  # else DeepSpeed keeps it
        yield "scheduler.pt", 1


def _count(path: Path, pattern: str) -> int:
    return sum(1 for _ in path.glob(pattern))


def check_adapter(folder: Path, tuner_type: str | None, previous: Path | None = None) -> None:
    """Checks a chunk's adapter before it is recorded, and again when a run is verified.

    Args:
        folder: the adapter's.
        tuner_type: the recipe's; None where nothing is trained.
        previous: the adapter of the chunk before, which must hold the same tensors.

    Raises:
        AdapterError: a file is missing or cut short, or tensors are missing or too many.
    """
    if not (folder / TRAINER_STATE).is_file():
        raise AdapterError(f"{folder / TRAINER_STATE} is missing; {saved.FIX}")
    options = None if tuner_type is None else options_class(tuner_type)
    saved.check_adapter(folder, options, previous)


def install_adapter(
    checkpoint: Checkpoint,
    target: Path,
    answer: Kind | None = None,
    keep_optimizer: bool = False,
) -> None:
    """Copies the checkpoint's adapter to `target`, which appears complete or not at all.

    With slow weights, `answer` is the set that becomes the adapter; the other one lies inside it.
    With `keep_optimizer` the optimizer's state comes along.

    Raises:
        AdapterError: the weights are damaged or not finite.
    """
    check_finite(checkpoint.path / WEIGHTS)
    with whole_folder(target) as folder:
        for source in checkpoint.path.iterdir():
            kept = keep_optimizer and source.name == OPTIMIZER
            if (kept or not source.name.startswith(_RESUME_ONLY)) and source.is_file():
                # Copied, not moved: until the adapter stands in its place the checkpoint is the
                # only one.
                shutil.copyfile(source, folder / source.name)
        if answer is not None:
            both_sets.part_sets(folder, answer)


def check_optimizer(folder: Path) -> None:
    """Raises AdapterError unless the state of an optimizer lies in a folder, whole."""
    path = folder / OPTIMIZER
    if not zipfile.is_zipfile(path):
        found = "cut short" if path.is_file() else "missing"
        raise AdapterError(
            f"{path} is {found}, and the next chunk's optimizer goes on with it; {saved.FIX}"
        )


def adapter_hashes(adapter: Path) -> dict[str, str]:
    """sha256 of the files that decide what an adapter computes, and what it carries beside them."""
    carried = [name for name in (ewc.FILE, OPTIMIZER) if (adapter / name).is_file()]
    for name in both_sets.inner_weights(adapter):
        carried += [name, str(Path(name).with_name(CONFIG))]
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
        write_text(metrics, "".join(kept))  # atomically: a kill here must not lose earlier steps


def _step_of(line: str) -> int:
    try:
        return int(str(json.loads(line).get("global_step/max_steps", "0")).split("/")[0])
    except ValueError:
        return 0

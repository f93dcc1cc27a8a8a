"""The files of the two sets of weights, slow and fast; imports no torch.

While a chunk is trained, the host's checkpoint is the fast set, and `slow_weights.safetensors` in
it the slow one: the same tensors by the same names. A finished chunk's folder is an ordinary
adapter of the set that answers; the other one lies in a folder inside it, named `fast` or `slow`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import safe_open

from strlora_tuner.methods.slow_weights.options import KINDS, Kind
from strlora_tuner.saved import (
    CONFIG,
    FIX,
    WEIGHTS,
    AdapterError,
    check_adapter,
    check_finite,
    read_shapes,
)

FILE = "slow_weights.safetensors"
STEPS = "slow_weights_steps"  # in the file's metadata: optimizer steps that the average has seen
_BESIDE = (CONFIG, "args.json")  # what the host reads beside the weights


def read_steps(path: Path) -> int:
    """Returns how many optimizer steps the average in `path` has seen.

    Raises:
        AdapterError: the file is missing or damaged, or holds no average.
    """
    read_shapes(path)
    with safe_open(path, framework="numpy") as file:
        steps = (file.metadata() or {}).get(STEPS, "")
    if not steps.isdigit():
        raise AdapterError(f"{path} holds no slow weights (no {STEPS} in its metadata); {FIX}")
    return int(steps)


def check_slow_file(checkpoint: Path) -> None:
    """Raises AdapterError unless a host checkpoint holds both sets, of the same tensors, finite."""
    path = checkpoint / FILE
    if not path.is_file():
        raise AdapterError(f"{path} is missing, but the recipe uses slow_weights; {FIX}")
    read_steps(path)
    check_finite(path)
    slow, fast = read_shapes(path), read_shapes(checkpoint / WEIGHTS)
    if slow != fast:
        different = sorted(name for name, _ in slow.items() ^ fast.items())
        raise AdapterError(
            f"{path} does not hold the tensors of {WEIGHTS}: {different[0]} differs; {FIX}"
        )


def part_sets(folder: Path, answer: Kind) -> None:
    """Makes of a copied checkpoint a chunk's folder: `answer` on top, the other set inside."""
    other = folder / other_kind(answer)
    other.mkdir()
    for name in _BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, other / name)
    if answer == "slow":
        # Renames, since the folder has no name yet (whole_folder): nothing is copied twice.
        os.replace(folder / WEIGHTS, other / WEIGHTS)
        os.replace(folder / FILE, folder / WEIGHTS)
    else:
        os.replace(folder / FILE, other / WEIGHTS)


def planned_set(adapter: Path, kind: Kind, answer: Kind) -> Path:
    """The folder of one set of a chunk in whose folder `answer` lies on top."""
    return adapter if kind == answer else adapter / kind


def check_sets(adapter: Path, answer: Kind) -> None:
    """Raises AdapterError unless a chunk's folder holds both sets, `answer` on top."""
    other = adapter / other_kind(answer)
    if not other.is_dir():
        raise AdapterError(f"{other} is missing, but the recipe uses slow_weights; {FIX}")
    read_steps(planned_set(adapter, "slow", answer) / WEIGHTS)
    check_adapter(other, None, adapter)


def inner_weights(adapter: Path) -> list[str]:
    """The weights of the set that does not answer, as paths inside `adapter`; none without one."""
    names = [f"{kind}/{WEIGHTS}" for kind in KINDS]
    return [name for name in names if (adapter / name).is_file()]


def other_kind(kind: Kind) -> Kind:
    """The other one of the two sets."""
    return "fast" if kind == "slow" else "slow"

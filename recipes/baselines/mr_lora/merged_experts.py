"""The adapter that MR-LoRA's router starts from with `pool.router_start: merged`: their mean."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from strlora_tuner.saved import CONFIG, WEIGHTS, replace_file

_ARGUMENTS = "args.json"  # of the host, which reads it beside an adapter


def write_merged(adapters: Sequence[Path], folder: Path) -> Path:
    """Writes the mean of adapters, tensor by tensor, into `folder`; returns it.

    The published router starts from `..._merged0.2`, five adapters times 0.2; how its tensors were
    put together is not public. A and B are averaged each for itself here.

    Raises:
        ValueError: the adapters do not hold the same tensors.
    """
    total: dict[str, np.ndarray] = {}
    kinds: dict[str, np.dtype] = {}
    for adapter in adapters:
        tensors = load_file(adapter / WEIGHTS)
        if total and tensors.keys() != total.keys():
            raise ValueError(f"{adapter} does not hold the tensors of {adapters[0]}")
        for name, value in tensors.items():
            total[name] = total.get(name, 0.0) + value.astype(np.float64)
            kinds[name] = value.dtype
    mean = {name: (value / len(adapters)).astype(kinds[name]) for name, value in total.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, _ARGUMENTS):
        if (adapters[-1] / name).is_file():
            shutil.copyfile(adapters[-1] / name, folder / name)
    replace_file(folder / WEIGHTS, lambda path: save_file(mean, path, {"format": "pt"}))
    return folder

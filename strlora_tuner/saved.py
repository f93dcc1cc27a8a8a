"""The one judge of a saved adapter: is its file whole, finite, and does it hold what it must?

It imports no torch, so that a run can be checked by the process that starts the training. Whether
an adapter fits a model is asked by core/fit.py.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from strlora_tuner.options import AdapterOptions

Shape = tuple[int, ...]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# In a tensor's name: before the part of a layer, and of what is carried beside the layers.
LAYER, STATE = ".strlora_mixture.", "strlora_statistics."
# What stands before both: in a file of PEFT's; and where transformers saved a model with adapters,
# whose state lies inside the model.
BESIDE, INSIDE = "base_model.", "base_model.model."
FIX = "bring back an undamaged copy, or train the chunk again"
# numpy, which reads it here instead of torch, knows no bfloat16.
# Of a floating-point number: the unsigned integer of its size, and the bits of its exponent.
_EXPONENT = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
# Bytes of one number of every type.
_BYTES = {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "C64": 8} | {
    f"{letter}{bits}": bits // 8 for letter in "IUF" for bits in (8, 16, 32, 64)
}


class AdapterError(ValueError):
    """An adapter's file that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class SavedAdapter:
    """The tensors of an adapter's file: their names as PEFT saves them, and their shapes."""

    path: Path
    shapes: dict[str, Shape]


def replace_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Puts what `write` writes in the place of `path`, whole and on the disk or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        # Before the rename: after a power cut the name must not stand over an empty file.
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp makes private files; ours are meant to be read by others
        return temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def order_metadata(path: Path) -> None:
    """Sorts the metadata of a safetensors file, which its writer leaves in any order.

    Then equal tensors and equal metadata make equal bytes; where the tensors lie does not change.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise ValueError(f"{path}: the sorted header has {len(text)} bytes, its place {size}")
        file.seek(8)
        file.write(text.ljust(size))


def read_shapes(path: Path) -> dict[str, Shape]:
    """Returns name and shape of every tensor in a safetensors file; reads its header only.

    Raises:
        AdapterError: the file is missing, cut short, empty, or no safetensors file.
    """
    if not path.is_file():
        raise AdapterError(f"{path} is missing; {FIX}")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.offset_keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged ({error}); {FIX}") from error
    if not shapes:
        raise AdapterError(f"{path} holds no tensors; {FIX}")
    return shapes


def check_finite(path: Path) -> None:
    """Raises AdapterError naming the tensors of a safetensors file that hold a NaN or an infinity.

    The host filters NaN out of the loss that it logs: the weights are the only witness.
    """
    read_shapes(path)
    with safe_open(path, framework="numpy") as file:
        names = file.offset_keys()
        slices = [file.get_slice(name) for name in names]
        kinds = [tensor.get_dtype() for tensor in slices]
        counts = [math.prod(tensor.get_shape()) for tensor in slices]
    unknown = sorted(set(kinds) - _BYTES.keys())
    if unknown:
        raise AdapterError(f"{path} holds numbers of type {', '.join(unknown)}; {FIX}")
    # The tensors lie at the end of the file in this order, without gaps: the format's rule.
    sizes = [count * _BYTES[kind] for count, kind in zip(counts, kinds, strict=True)]
    start, bad = path.stat().st_size - sum(sizes), []
    for name, kind, count, size in zip(names, kinds, counts, sizes, strict=True):
        if kind in _EXPONENT:
            dtype, mask = _EXPONENT[kind]
            bits = np.fromfile(path, dtype, count, offset=start)
            if np.any(bits & mask == mask):  # an exponent of ones is NaN or infinity
                bad.append(name)
        start += size
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise AdapterError(
            f"{path} holds NaN or infinity in {', '.join(bad[:5])}{more}: the training diverged or "
            "the file was changed; go back to an earlier chunk's adapter, or train again with a "
            "lower learning rate"
        )


def read_saved(folder: Path) -> SavedAdapter | None:
    """Returns what the adapter in `folder` holds; None when it is not a folder here (a hub's id).

    Raises:
        AdapterError: the file is missing, cut short, or holds values that are not finite.
    """
    path = folder / WEIGHTS
    if not folder.is_dir():
        return None
    if not path.is_file():
        raise AdapterError(
            f"{path} is missing; {FIX} (an adapter of the published code is converted with: "
            "python -m strlora_tuner.convert --from DIR --to DIR)"
        )
    shapes = read_shapes(path)
    check_finite(path)
    return SavedAdapter(path, shapes)


def check_adapter(
    folder: Path, options: type[AdapterOptions] | None, previous: Path | None = None
) -> None:
    """Checks the names of all that an adapter must hold; no value is read.

    Args:
        folder: the adapter's.
        options: of its method, which knows its tensors; None asks for no particular ones.
        previous: the folder of the chunk before, which must hold the same tensors.

    Raises:
        AdapterError: a file is missing or damaged, or tensors are missing or too many.
    """
    config = folder / CONFIG
    try:
        holds = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(f"{config} is missing; {FIX}") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{config} cannot be read ({error}); {FIX}") from error
    if not isinstance(holds, dict):
        raise AdapterError(f"{config} holds a {type(holds).__name__}, expected an object; {FIX}")
    path = folder / WEIGHTS
    names = set(read_shapes(path))
    if options is not None and options.layer_tensors:
        _check_layers(path, names, options.tensors_of_layer(holds))
        _check_state(path, names, options)
    if previous is not None and (previous / WEIGHTS).is_file():
        _same_names(path, names, set(read_shapes(previous / WEIGHTS)))


def _check_layers(path: Path, names: set[str], needed: set[str]) -> None:
    layers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        layer, mark, part = name.partition(LAYER)
        if mark:
            layers[layer].add(part)
    if not layers:
        raise AdapterError(
            f"{path} holds {len(names)} tensors but no layer with experts (*{LAYER}A): the tuner "
            f"was not trained; {FIX}"
        )
    for layer, parts in sorted(layers.items()):
        missing = sorted(needed - parts)
        if missing:
            raise AdapterError(f"{path}: {layer} lacks {', '.join(missing)}; {FIX}")


def _check_state(path: Path, names: set[str], options: type[AdapterOptions]) -> None:
    held = {name.partition(STATE)[2] for name in names}
    missing = sorted(set(options.state_tensors) - held)
    if missing:
        raise AdapterError(
            f"{path} lacks what the adapter carries beside its layers, *{STATE}"
            f"{{{', '.join(missing)}}}; {FIX}"
        )


def _same_names(path: Path, names: set[str], before: set[str]) -> None:
    missing, extra = sorted(before - names), sorted(names - before)
    if missing or extra:
        raise AdapterError(
            f"{path} does not hold the tensors of the chunk before: {len(missing)} missing (first: "
            f"{missing[:1]}), {len(extra)} new ({extra[:1]}). Its layers or its method changed on "
            f"the way; {FIX}"
        )

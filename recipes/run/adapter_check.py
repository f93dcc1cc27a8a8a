"""Is an adapter whole: its files, its header, its keys, its moving averages? No torch."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from recipes.run_folder.checkpoints import (
    CONFIG,
    EWC_STATE,
    TRAINER_STATE,
    WEIGHTS,
    CheckpointError,
    check_finite,
    check_weights,
)
from strlora_tuner.methods import STRLORA, is_routed

_MIXTURE = ".strlora_mixture."
# Every routed layer stores its experts.
_EXPERTS = {"A", "B"}
# Every routed layer of a StrLoRA adapter stores these; the moving averages are the teacher.
_PARAMETERS = {"A", "B", "query", "key", "prototypes", "task"}
_AVERAGES = {"ema_query", "ema_key", "ema_prototypes"}
_STATISTICS = "strlora_statistics.count"


class AdapterError(Exception):
    """An adapter that is not whole; the message says what is missing and what to do."""


def check_adapter(folder: Path, tuner_type: str | None, previous: Path | None = None) -> None:
    """Checks a chunk's adapter before it is recorded, and again when a run is verified.

    Args:
        tuner_type: the recipe's; None where nothing is trained.
        previous: the adapter of the chunk before, which must hold the same tensors.

    Raises:
        AdapterError: a file is missing or cut short, or tensors are missing or too many.
    """
    for name in (CONFIG, WEIGHTS, TRAINER_STATE):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder / name} is missing; {_FIX}")
    config = _read_config(folder / CONFIG)
    try:
        keys = set(check_weights(folder / WEIGHTS))
    except CheckpointError as error:
        raise AdapterError(f"{error}; {_FIX}") from error
    if tuner_type is not None and is_routed(tuner_type):
        wanted = _PARAMETERS | _AVERAGES if tuner_type == STRLORA else _EXPERTS
        _check_mixtures(folder / WEIGHTS, keys, wanted)
        _check_statistics(folder / WEIGHTS, keys, config)
    if previous is not None and (previous / WEIGHTS).is_file():
        _same_keys(folder / WEIGHTS, keys, set(check_weights(previous / WEIGHTS)))


def check_ewc(folder: Path, released: bool) -> None:
    """Checks the state of elastic weight consolidation that lies beside an adapter.

    Raises:
        AdapterError: it is missing, cut short, not finite, without a value for some parameter of
            the adapter, or of the other form.
    """
    path = folder / EWC_STATE
    if not path.is_file():
        raise AdapterError(f"{path} is missing, but the recipe uses ewc; {_FIX}")
    try:
        keys = check_weights(path)
        check_finite(path)
    except CheckpointError as error:
        raise AdapterError(f"{error}; {_FIX}") from error
    names = {kind: {k.removeprefix(kind) for k in keys if k.startswith(kind)} for kind in _EWC}
    anchor, fisher = (names[kind] for kind in _EWC)
    if not anchor or fisher != (set() if released else anchor):
        raise AdapterError(
            f"{path} holds {len(anchor)} weights and {len(fisher)} values of Fisher information, "
            f"expected {'weights only' if released else 'one for each'}; {_FIX}"
        )


_EWC = ("anchor.", "fisher.")
_FIX = "bring it back from a copy, or remove this chunk's folder to train the chunk again"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}); {_FIX}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no adapter configuration; {_FIX}")
    return config


def _check_mixtures(path: Path, keys: set[str], wanted: set[str]) -> None:
    layers: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        layer, found, leaf = key.partition(_MIXTURE)
        if found:
            layers[layer].add(leaf)
    if not layers:
        raise AdapterError(
            f"{path} holds {len(keys)} tensors but no expert mixture (*{_MIXTURE}A); the tuner "
            f"was not trained. {_FIX.capitalize()}"
        )
    for layer, leaves in sorted(layers.items()):
        missing = sorted(wanted - leaves)
        if missing:
            what = "moving averages" if set(missing) <= _AVERAGES else "tensors"
            raise AdapterError(f"{path}: {layer} lacks {what} {', '.join(missing)}; {_FIX}")


def _check_statistics(path: Path, keys: set[str], config: dict[str, Any]) -> None:
    running = config.get("instruction_norm") == "running"
    if running and not any(key.endswith(_STATISTICS) for key in keys):
        raise AdapterError(f"{path} lacks the instruction statistics (*{_STATISTICS}); {_FIX}")


def _same_keys(path: Path, found: set[str], before: set[str]) -> None:
    missing, extra = sorted(before - found), sorted(found - before)
    if missing or extra:
        words = f"{len(missing)} missing (first: {missing[:1]}), {len(extra)} new ({extra[:1]})"
        raise AdapterError(
            f"{path} does not hold the tensors of the chunk before: {words}. Its layers or its "
            f"method changed on the way; {_FIX}"
        )

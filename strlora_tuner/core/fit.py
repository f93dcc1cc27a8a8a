"""Does a saved adapter fit a model? Asked before the model is touched.

PEFT wraps layers first and loads afterwards, with strict=False: a foreign file would be silently
half loaded into a model that is half changed.
"""

from __future__ import annotations

import difflib
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.tuners.tuners_utils import _ExcludedModule as ExcludedModule
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.saved import BESIDE, INSIDE, LAYER, STATE, SavedAdapter, Shape, check_finite

_SHOWN = 40


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields (name, module) of the base model, without what lies inside an adapter's layers."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
        yield name, module


def _is_target(config: RoutedConfig, name: str) -> bool:
    found = check_target_module_exists(config, name) if name else False
    return bool(found) and not isinstance(found, ExcludedModule)


def keep_to_language_model(config: RoutedConfig, model: nn.Module) -> None:
    """Narrows the targets of a new adapter to the language model, in place.

    The rows of a vision tower or an aligner are images, which no instruction belongs to. Its layers
    are wrapped only where `target_modules` names it (`vision_tower`), not where the name of a layer
    or "all-linear" happens to match there too.
    """
    decoder = getattr(model, "get_decoder", lambda: None)()
    if not isinstance(decoder, nn.Module) or decoder is model:
        return
    inside = {id(module) for module in decoder.modules()}
    # PEFT compares this word without case, too.
    if str(config.target_modules).lower() == "all-linear":
        config.target_modules = {  # type: ignore[assignment]
            name
            for name, module in _modules(model)
            if id(module) in inside and isinstance(module, (nn.Linear, BaseTunerLayer))
            # By its last name: PEFT lets a layer's whole name win over layers_to_transform.
            if _is_target(replace(config, target_modules=[name.rpartition(".")[2]]), name)
        }
        return
    targets = config.target_modules
    texts = [targets] if isinstance(targets, str) else list(targets or [])
    where = next(name for name, module in model.named_modules() if module is decoder).split(".")
    stray: dict[str, int] = {}
    for name, module in _modules(model):
        if id(module) in inside or not _is_target(config, name):
            continue
        path = name.split(".")
        same = sum(takewhile(bool, map(operator.eq, path, where)))
        place = ".".join(path[: same + 1])
        if not any(path[same] in text for text in texts):
            stray[place] = stray.get(place, 0) + 1
    if not stray:
        return
    excluded = config.exclude_modules
    if excluded and not isinstance(excluded, str):
        # PEFT takes names or one expression, not both: names become what PEFT makes of them.
        excluded = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, excluded))})"
    places = rf"(?:{'|'.join(map(re.escape, stray))})(?:\..*)?"
    config.exclude_modules = f"{excluded}|{places}" if excluded else places
    warnings.warn(
        f"target_modules also matches layers outside the language model "
        f"({', '.join(f'{count} in {place}' for place, count in stray.items())}); they are left "
        "out: what they read belongs to an image, not to a prompt, so no instruction can route it. "
        "To wrap them all the same, name that part of the model in target_modules",
        stacklevel=2,
    )


def matched_layers(model: nn.Module, config: RoutedConfig) -> dict[str, nn.Module]:
    """Returns the modules that PEFT will wrap, by name.

    Raises:
        ValueError: a target that matches nothing or something that is no linear layer, or an entry
            of modules_to_save that the model does not have.
    """
    modules = dict(_modules(model))
    names = list(modules)
    matched = {name: module for name, module in modules.items() if _is_target(config, name)}
    _check_targets(model, config, names, matched)
    missing = [s for s in config.modules_to_save or [] if not any(n.endswith(s) for n in names)]
    if missing:
        raise ValueError(f"modules_to_save: the model has no module {', '.join(missing)}")
    return matched


def _check_targets(
    model: nn.Module, config: RoutedConfig, names: list[str], matched: Mapping[str, nn.Module]
) -> None:
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    targets = config.target_modules
    there = f"linear layers of this model are called {', '.join(sorted(linear))}"
    if not matched:
        raise ValueError(f"target_modules = {targets!r} matches no layer of the model; {there}")
    for target in sorted(targets) if isinstance(targets, (set, list)) else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, linear, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"target_modules: no layer is called {target!r}{hint}; {there}")
    for name, module in matched.items():
        if not isinstance(module, (nn.Linear, BaseTunerLayer)):
            raise ValueError(
                f"target module {name!r} is a {type(module).__name__}: an adapter wraps linear "
                f"layers only; correct target_modules; {there}"
            )


def check_fit(
    saved: SavedAdapter,
    model: nn.Module,
    config: RoutedConfig,
    layers: Mapping[str, nn.Module],
    new_bank: Callable[[int, int, int, RoutedConfig], nn.Module],
    new_state: Callable[[int, RoutedConfig], nn.Module | None],
) -> None:
    """Raises ValueError, layer by layer, when the saved tensors are not those of this model.

    `layers` are the modules that the adapter will wrap, from :func:`matched_layers`; `new_bank` and
    `new_state` make what a layer and the whole adapter hold (RoutedModel's).
    """
    hidden = int(model.get_input_embeddings().embedding_dim)  # type: ignore[operator]
    # On meta only shapes are made: no memory, and no random number, which would change the run.
    with torch.device("meta"):
        state = new_state(hidden, config)
    expected: dict[str, Shape] = {
        f"{BESIDE}{STATE}{part}": tuple(tensor.shape)
        for part, tensor in (state.state_dict() if state is not None else {}).items()
    }
    for name, layer in layers.items():
        with torch.device("meta"):
            bank = new_bank(layer.in_features, layer.out_features, hidden, config)  # type: ignore[arg-type]
        for part, tensor in bank.state_dict().items():
            expected[f"{INSIDE}{name}{LAYER}{part}"] = tuple(tensor.shape)
    for name, module in model.named_modules():
        if any(name.endswith(suffix) for suffix in config.modules_to_save or []):
            whole = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
            expected |= _shapes_of(name, whole)
    inside = f"{INSIDE}{STATE}"  # a model that transformers saved
    found = {
        BESIDE + k.removeprefix(INSIDE) if k.startswith(inside) else k: shape
        for k, shape in saved.shapes.items()
    }
    for name, module in _embeddings(model):  # PEFT saves them where the vocabulary was resized
        expected |= {k: shape for k, shape in _shapes_of(name, module).items() if k in found}
    problems = differences(expected, found)
    if problems:
        raise ValueError(mismatch_message(f"the adapter {saved.path}", problems))


def _shapes_of(name: str, module: nn.Module) -> dict[str, Shape]:
    # Under ZeRO-3 a parameter is empty here, and knows its whole shape.
    return {
        f"{INSIDE}{name}.{part}": tuple(getattr(tensor, "ds_shape", tensor.shape))
        for part, tensor in module.state_dict().items()
    }


def _embeddings(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    getters = [getattr(model, f"get_{kind}_embeddings", None) for kind in ("input", "output")]
    layers = [getter() for getter in getters if getter is not None]
    for name, module in model.named_modules():
        if any(module is layer for layer in layers):
            yield name, module


def read_tensors(
    given: Mapping[str, Tensor], files: Iterable[str]
) -> tuple[dict[str, Tensor], SavedAdapter]:
    """Returns an adapter's tensors, named as inside the base model, and what they are for a check.

    Args:
        given: tensors, named as in a file or as inside the model.
        files: paths of files with tensors.

    Raises:
        AdapterError: a file is damaged or holds values that are not finite.
    """
    from transformers.modeling_utils import load_state_dict

    tensors, path = dict(given), Path("that was given")
    for path in map(Path, files):
        if path.suffix == ".safetensors":
            check_finite(path)
        tensors |= load_state_dict(str(path), map_location="cpu")
    for prefix in (INSIDE, BESIDE):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    shapes = {
        (BESIDE if key.startswith(STATE) else INSIDE) + key: tuple(tensor.shape)
        for key, tensor in tensors.items()
    }
    return tensors, SavedAdapter(path, shapes)


def check_loaded(model: Any, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Raises ValueError when tensors that a routed model is to load are missing, unknown or wrong.

    PEFT loads with strict=False and only warns; this runs before anything is copied, so that
    nothing is half loaded, modules_to_save included.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict(prefix=prefix).items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    for name in model.peft_config:
        marks = [f".{part}.{name}." for part in ("strlora_mixture", "strlora_statistics")]
        left_out = _frozen(model, prefix, marks) - given.keys()
        needed = {key: shape for key, shape in own.items() if key not in left_out}
        found, expected = (_of_adapter(keys, marks) for keys in (given, needed))
        if not found:  # a state of other parts of the model alone
            continue
        whole = {k: v for k, v in given.items() if k in own and f".modules_to_save.{name}." in k}
        problems = differences(expected | {k: own[k] for k in whole}, found | whole)
        if problems:
            raise ValueError(mismatch_message(f"adapter {name!r}", problems))


def _frozen(model: nn.Module, prefix: str, marks: list[str]) -> set[str]:
    """Returns the keys of an adapter's parameters that rest while others train; else nothing.

    DeepSpeed leaves them out when it saves a checkpoint inside a chunk. The host has loaded them
    from the adapter beside it when it goes on.
    """
    parameters = {
        key: parameter.requires_grad
        for key, parameter in model.named_parameters(prefix=prefix.removesuffix("."))
        if any(mark in key for mark in marks)
    }
    return {key for key, trains in parameters.items() if not trains and any(parameters.values())}


def _of_adapter(shapes: Mapping[str, Shape], marks: list[str]) -> dict[str, Shape]:
    """Returns the shapes of one adapter's tensors, names as PEFT saves them."""
    result = {}
    for key, shape in shapes.items():
        for mark in marks:
            if mark in key:
                result[key.replace(mark, mark[: mark.index(".", 1) + 1])] = shape
    return result


def differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Returns one line a layer that lacks tensors, has unknown ones, or other shapes."""
    lines: dict[str, list[str]] = {}
    for key in sorted({*expected, *found}):
        layer, _, part = key.removeprefix(INSIDE).rpartition(".")
        wanted, given = expected.get(key), found.get(key)
        if wanted is None:
            problem = f"unexpected {part}"
        elif given is None:
            problem = f"missing {part}"
        elif given != wanted and 0 not in wanted:  # ZeRO-3 empties parameters
            problem = f"{part} has shape {given}, this model needs {wanted}"
        else:
            continue
        lines.setdefault(layer.removesuffix(LAYER[:-1]), []).append(problem)
    return [f"{layer}: {', '.join(problems)}" for layer, problems in lines.items()]


def mismatch_message(what: str, problems: Iterable[str]) -> str:
    """Returns the message for an adapter whose tensors do not fit."""
    lines = list(problems)
    more = [f"and {len(lines) - _SHOWN} more layers"] if len(lines) > _SHOWN else []
    shown = "\n  ".join([*lines[:_SHOWN], *more])
    return (
        f"{what} does not fit this model (nothing was loaded):\n  {shown}\n"
        "Load it into the base model it was trained on, or take an undamaged copy."
    )

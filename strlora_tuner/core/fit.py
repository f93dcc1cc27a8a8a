"""Does a saved adapter fit a model? Asked before the model is touched.

PEFT wraps layers first and loads afterwards, with strict=False: a foreign file would be silently
half loaded into a model that is half changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.tuners.tuners_utils import _ExcludedModule as ExcludedModule
from peft.utils import ModulesToSaveWrapper
from torch import nn

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.saved import LAYER, STATE, SavedAdapter, Shape

BASE = "base_model.model."
_SHOWN = 40


def matched_layers(model: nn.Module, config: RoutedConfig) -> dict[str, nn.Module]:
    """Returns the modules that PEFT will wrap, by name.

    Raises:
        ValueError: a target that matches nothing or something that is no linear layer, or an entry
            of modules_to_save that the model does not have.
    """
    inside: tuple[str, ...] = ()
    names, matched = [], {}
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
        names.append(name)
        found = check_target_module_exists(config, name) if name else False
        if found and not isinstance(found, ExcludedModule):
            matched[name] = module
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
    with torch.device("meta"):
        state = new_state(hidden, config)
    expected: dict[str, Shape] = {
        f"base_model.{STATE}{part}": tuple(tensor.shape)
        for part, tensor in (state.state_dict() if state is not None else {}).items()
    }
    for name, layer in layers.items():
        with torch.device("meta"):
            bank = new_bank(layer.in_features, layer.out_features, hidden, config)  # type: ignore[arg-type]
        for part, tensor in bank.state_dict().items():
            expected[f"{BASE}{name}{LAYER}{part}"] = tuple(tensor.shape)
    for name, module in model.named_modules():
        if any(name.endswith(suffix) for suffix in config.modules_to_save or []):
            whole = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
            for part, tensor in whole.state_dict().items():
                expected[f"{BASE}{name}.{part}"] = tuple(getattr(tensor, "ds_shape", tensor.shape))
    problems = differences(expected, saved.shapes)
    if problems:
        raise ValueError(mismatch_message(f"the adapter {saved.path}", problems))


def differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Returns one line a layer that lacks tensors, has unknown ones, or other shapes."""
    lines: dict[str, list[str]] = {}
    for key in sorted({*expected, *found}):
        layer, _, part = key.removeprefix(BASE).rpartition(".")
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

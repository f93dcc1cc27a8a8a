"""What an adapter carries from chunk to chunk, and what a new chunk may change."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.options import NO_OPTIONS, PREFIX, AdapterOptions, options_from_host


def _python_value(text: str) -> Any:
    """Reads what the host wrote with str(): a number, True or False, else a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def options_from_environment(
    environment: Mapping[str, str], kind: type[AdapterOptions], rank: int
) -> dict[str, Any]:
    """Returns the ``strlora_*`` options of this run, checked, as the host exported them.

    ms-swift gives a tuner's `from_pretrained` no arguments, but exports `--model_kwargs` in upper
    case. Only options that were given are returned. `rank` is that of the adapter that it loads.

    Raises:
        ValueError: an unknown option or preset, or a value out of bounds.
    """
    start = PREFIX.upper()
    given = {
        PREFIX + name[len(start) :].lower(): _python_value(value)
        for name, value in environment.items()
        if name.startswith(start) and name not in NO_OPTIONS
    }
    if not given:
        return {}
    checked = options_from_host(given, kind, rank=rank)
    names = {key.removeprefix(PREFIX) for key in given} - {"preset"}
    # A preset also speaks for the options that it leaves at their defaults.
    if PREFIX + "preset" in given:
        names |= {*kind.scheduled, *kind.structure}
    return {name: getattr(checked, name) for name in names}


def carried_config(
    saved: RoutedConfig, given: dict[str, Any], source: str
) -> tuple[RoutedConfig, bool]:
    """Applies a chunk's options to the configuration of the adapter it goes on from.

    Returns:
        The configuration to train with, and whether a carried teacher is required.

    Raises:
        ValueError: an option that shapes the adapter differs from the saved one.
    """
    current = saved.options()
    given = saved.possible(given)
    problems = [
        f"{name} is {getattr(current, name)!r} in the adapter and {given[name]!r} in this run"
        for name in current.structure
        if name in given and given[name] != getattr(current, name)
    ]
    if problems:
        raise ValueError(
            f"{source} cannot be trained on: {'; '.join(problems)}; keep the adapter's values for "
            "the whole stream, or start a new one"
        )
    changes = {name: value for name, value in given.items() if name in current.scheduled}
    options = replace(current, **changes)
    for name, value in saved.as_config(options).items():
        setattr(saved, name, value)
    return saved, bool(given.get("require_teacher", False))


def check_teacher(tuner: RoutedModel, source: str) -> None:
    """Raises ValueError when the loaded adapter carries no moving average."""
    adapter = tuner.active_adapters[0]
    if int(tuner.statistics(adapter).teacher_steps) == 0:
        raise ValueError(
            f"{source} carries no moving average of its routers (teacher_steps is 0), but this "
            "chunk needs the teacher of the chunk before: restore that chunk's adapter, or train "
            "it again with stability_weight > 0"
        )

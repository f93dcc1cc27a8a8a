"""Prints the arguments of `swift sft` as JSON, one line each, from the host's own dataclasses.

    python -m recipes.swift_plugins.argument_fields > recipes/config/ms-swift-VERSION.json

A process of its own, since importing the host takes many seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import types
import typing
from typing import Any

_PLAIN = ("int", "float", "bool", "str", "list", "dict", "NoneType")


def describe(hint: Any) -> tuple[set[str], list[Any]]:
    """Names of the plain types that a type hint allows ("any" for others), and its literals."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return set(), list(typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        parts = [describe(part) for part in typing.get_args(hint)]
        return {k for kinds, _ in parts for k in kinds}, [c for _, some in parts for c in some]
    name = getattr(origin or hint, "__name__", "any")
    return {name if name in _PLAIN else "any"}, []


def read_fields() -> dict[str, dict[str, Any]]:
    """Argument -> `kinds`, `choices`, `model_side` if `swift infer` needs it too, `unrouted`.

    `unrouted` holds the default of what our tuners do not read.
    """
    with contextlib.redirect_stdout(sys.stderr):  # the host prints when it is imported
        from swift.arguments import SftArguments
        from swift.arguments.base_args.model_args import ModelArguments
        from swift.arguments.base_args.quant_args import QuantizeArguments
        from swift.arguments.base_args.template_args import TemplateArguments

        from strlora_tuner.swift_plugins.unread_options import unread_options
    # What loads a model and writes prompts must be the same in training and evaluation.
    model_classes = (ModelArguments, TemplateArguments, QuantizeArguments)
    model_side = {item.name for kind in model_classes for item in dataclasses.fields(kind)}
    unread = unread_options()
    hints = typing.get_type_hints(SftArguments)
    table: dict[str, dict[str, Any]] = {}
    for item in dataclasses.fields(SftArguments):
        kinds, choices = describe(hints[item.name])
        entry = {"kinds": sorted(kinds), "choices": choices, "model_side": item.name in model_side}
        if item.name in unread:
            entry["unrouted"] = [unread[item.name]]
        table[item.name] = {key: value for key, value in entry.items() if value}
    return table


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in read_fields().items()]
    print("{\n" + ",\n".join(lines) + "\n}")

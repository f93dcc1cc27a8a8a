"""Options of the host's tuners that a routed tuner does not read: set to anything, they do nothing.

The list is not written down: it is all that the host's own tuners read (its `TunerArguments`, and
what its `prepare_adapter` takes from the arguments) without what routed_tuners.py reads. An option
that a newer host adds is in it by itself.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from swift.arguments import SftArguments
from swift.arguments.tuner_args import TunerArguments
from swift.pipelines.train import tuner as host_tuner

from strlora_tuner import host_api

host_api.check("unread_options")
OURS = Path(__file__).with_name("routed_tuners.py")
# What prepare_adapter reads and the host itself obeys, and what it puts into target_modules.
OBEYED = {"tuner_type", "tuner_backend", "resume_from_checkpoint", "model_type", "max_length"}
OBEYED |= {"target_regex"}


def options_read(source: str) -> set[str]:
    """Returns the attributes that a source takes from `args`, by name or with getattr."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and _is_args(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            held, name = node.args[:2]
            if _is_args(held) and isinstance(name, ast.Constant):
                found.add(str(name.value))
    return found


def _is_args(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "args"


@cache
def unread_options() -> dict[str, Any]:
    """Returns the host's options that a routed tuner does not read, with the host's defaults."""
    host = {item.name for item in dataclasses.fields(TunerArguments)}
    host |= options_read(inspect.getsource(host_tuner.prepare_adapter))
    unread = host - options_read(OURS.read_text(encoding="utf-8")) - OBEYED
    return {
        item.name: _default(item)
        for item in dataclasses.fields(SftArguments)
        if item.name in unread
    }


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None if item.default is dataclasses.MISSING else item.default


def refuse_unread_options(args: Any) -> None:
    """Raises ValueError for options that would do nothing, with their values and the fix."""
    set_in_vain = [
        f"--{name} {value}"
        for name, default in unread_options().items()
        # The host makes True of "true".
        if str(value := getattr(args, name, default)).lower() != str(default).lower()
    ]
    if set_in_vain:
        raise ValueError(
            f"--tuner_type {args.tuner_type} does not read {', '.join(set_in_vain)}: leave it "
            "out, or train the host's own LoRA (--tuner_type lora)"
        )

"""What YAML makes of a plain word, and what its writer meant."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

SIXTIES = re.compile(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?")  # 8:00:00, to YAML the number 28800
_PLAIN_PATH = re.compile(r"[\w.-]*(?:/[\w.-]*)+")
_HOME = re.compile(r"\$(?:HOME|\{HOME\})(?=/|$)")
_WORDS = {True: ("on", "yes", "true"), False: ("off", "no", "false")}


def as_word(value: Any, choices: Collection[Any]) -> Any:
    """`off`, which YAML reads as false, where a list of words has it; else the value itself."""
    if not isinstance(value, bool) or value in [c for c in choices if isinstance(c, bool)]:
        return value
    return next((word for word in _WORDS[value] if word in choices), value)


def at_home(value: Any) -> Any:
    """`~/x`, `$HOME/x`, `${HOME}/x` as the shell has it, in every key: all processes agree."""
    if isinstance(value, dict):
        return {key: at_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [at_home(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return os.path.expanduser(_HOME.sub("~", value) if value[:1] == "$" else value)


def as_override(key: str, path: Path | str) -> str:
    """`key=path` as YAML and OmegaConf read it back: a name like {a: 1} or ${x} is text."""
    text = str(path)
    if not _PLAIN_PATH.fullmatch(text):
        text = "'" + text.replace("'", "''").replace("${", "\\${") + "'"
    return f"{key}={text}"


def times_written(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every unquoted 8:00:00: no key of a recipe takes a number for it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from times_written(value, f"{prefix}.{key.value}" if prefix else str(key.value))
    elif isinstance(node, yaml.ScalarNode) and not node.style and SIXTIES.fullmatch(node.value):
        yield prefix, node.value


def leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values that are no blocks."""
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def hint_for(value: Any, wants_text: bool, nullable: bool) -> str:
    """How to write what YAML has read as something else; empty where that is not the trouble."""
    if nullable and (value is False or str(value).lower() in ("none", "off", "no")):
        return "write null for none"
    if wants_text and isinstance(value, (bool, int, float)):
        return (
            "YAML reads it so unless it is quoted: put it in quotes (on a command line 'KEY=\"X\"')"
        )
    return ""

"""Writes what was chosen into a method's YAML, with the table that chose it; the rest stays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_prep.files import write_text
from recipes.run_folder.manifest import flat

_ENTRY = re.compile(r"^  \S")


def write_tuned(
    path: Path, recipe: str, settings: dict[str, Any], comments: Sequence[str]
) -> dict[str, Any]:
    """Sets values of `tuned.<recipe>` in a method's YAML; returns the whole entry.

    Values that were tuned before and are not set anew stay: the trials ran with them. Other lines
    are kept as they are.

    Args:
        settings: dotted recipe keys and values.
        comments: lines that stand over the values.

    Raises:
        ValueError: the file would no longer say the same beside that entry; nothing is written.
    """
    text = path.read_text(encoding="utf-8")
    before = yaml.safe_load(text)
    tree = _tree({**dict(flat((before.get("tuned") or {}).get(recipe) or {})), **settings})
    wanted = {**before, "tuned": {**(before.get("tuned") or {}), recipe: tree}}
    new = _with_entry(text, recipe, _entry(recipe, tree, comments))
    if yaml.safe_load(new) != wanted:
        raise ValueError(
            f"{path}: `tuned:` is not written as one block at the end of the file, two blanks "
            "before each recipe's name; bring it into that form"
        )
    write_text(path, new)
    return tree


def _tree(settings: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in settings.items():
        *blocks, key = dotted.split(".")
        place = tree
        for block in blocks:
            place = place.setdefault(block, {})
        place[key] = value
    return tree


def _entry(recipe: str, tree: dict[str, Any], comments: Sequence[str]) -> list[str]:
    values = yaml.safe_dump(tree, sort_keys=False).splitlines()
    lines = [f"# {line}".rstrip() for line in comments] + values
    return [f"  {recipe}:", *(f"    {line}" for line in lines)]


def _with_entry(text: str, recipe: str, entry: list[str]) -> str:
    """The file's text with the recipe's entry put in the place of its old one, or at the end."""
    lines = text.rstrip("\n").split("\n")
    if "tuned:" not in lines:
        return "\n".join([*lines, "tuned:", *entry]) + "\n"
    start = lines.index("tuned:") + 1
    starts = [i for i in range(start, len(lines)) if _ENTRY.match(lines[i])]
    own = [i for i in starts if lines[i].strip() == f"{recipe}:"]
    if not own:
        return "\n".join([*lines, *entry]) + "\n"
    end = next((i for i in starts if i > own[0]), len(lines))
    return "\n".join([*lines[: own[0]], *entry, *lines[end:]]) + "\n"

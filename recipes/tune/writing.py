"""Writes what was chosen into a method's YAML, with the table that chose it; the rest stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TypeAlias

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from data_prep.files import write_text
from recipes.run_folder.manifest import flat

Tree: TypeAlias = "dict[str, Value | Tree]"
Value: TypeAlias = "str | int | float | bool | None"


class _Representer(RoundTripRepresenter):
    """Writes `null` where ruamel.yaml would leave the value empty."""

    def represent_null(self, value: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_null)


def write_tuned(
    path: Path, recipe: str, settings: Mapping[str, Value], comments: Sequence[str]
) -> None:
    """Sets values of `tuned.<recipe>` in a method's YAML.

    Values that were tuned before and are not set anew stay: the trials ran with them. Everything
    else in the file, comments too, is kept as it is.

    Args:
        settings: dotted recipe keys and values.
        comments: lines that stand over the values.
    """
    round_trip = YAML()
    round_trip.Representer = _Representer
    round_trip.width = 4096  # break no line
    round_trip.preserve_quotes = True
    content = round_trip.load(path)
    tuned = content.setdefault("tuned", CommentedMap())
    tuned.fa.set_block_style()
    tree = _tree({**dict(flat(tuned.get(recipe) or {})), **settings})
    # Through PyYAML, which reads the file later: it takes 1.0e-05 for a number, not 1e-05.
    entry = round_trip.load(yaml.safe_dump(tree, sort_keys=False))
    entry.yaml_set_start_comment("\n".join(comments), indent=4)
    tuned.ca.items.pop(recipe, None)  # the comment of the old entry
    tuned[recipe] = entry
    text = StringIO()
    round_trip.dump(content, text)
    write_text(path, text.getvalue())


def _tree(settings: Mapping[str, Value]) -> Tree:
    tree: Tree = {}
    for dotted, value in settings.items():
        *blocks, key = dotted.split(".")
        place = tree
        for block in blocks:
            inner = place.setdefault(block, {})
            assert isinstance(inner, dict)
            place = inner
        place[key] = value
    return tree

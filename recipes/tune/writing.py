"""Writes what was chosen into a method's YAML, with the table that chose it; the rest stays."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from data_prep.files import write_text


class _Representer(RoundTripRepresenter):
    """Writes `null` where ruamel.yaml would leave the value empty."""

    def represent_null(self, value: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_null)


def write_tuned(path: Path, recipe: str, settings: DictConfig, comments: Sequence[str]) -> None:
    """Sets values of `tuned.<recipe>` in a method's YAML.

    Values that were tuned before and are not set anew stay: the trials ran with them. Everything
    else in the file, comments too, is kept as it is.

    Args:
        settings: a fragment of a recipe.
        comments: lines that stand over the values.
    """
    round_trip = YAML()
    round_trip.Representer = _Representer
    round_trip.width = 4096  # break no line
    round_trip.preserve_quotes = True
    content = round_trip.load(path)
    tuned = content.setdefault("tuned", CommentedMap())
    tuned.fa.set_block_style()
    before = (yaml.safe_load(path.read_text(encoding="utf-8")).get("tuned") or {}).get(recipe)
    # By PyYAML, which reads the file later: it takes 1.0e-05 for a number, not 1e-05.
    entry = round_trip.load(OmegaConf.to_yaml(OmegaConf.merge(before or {}, settings)))
    entry.yaml_set_start_comment("\n".join(comments), indent=4)
    tuned.ca.items.pop(recipe, None)  # the comment of the old entry
    tuned[recipe] = entry
    text = StringIO()
    round_trip.dump(content, text)
    write_text(path, text.getvalue())

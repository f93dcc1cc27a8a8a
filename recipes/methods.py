"""What `method: NAME` means: one YAML in recipes/methods/ for each method.

Keys of such a file, all but the first optional:

    tuner_type   the tuner that trains: lora (the host's own), strlora, or a folder of
                 strlora_tuner/methods/; null: nothing is trained
    protocol     stream (default): chunk after chunk, each from the adapter before; joint: one run
                 on all chunks shuffled; zero_shot: the base model; pool: an adapter a chunk and a
                 router
    defaults     a fragment of a recipe, under the recipe's own values
    always       a fragment over the recipe's values: what makes the method this method
    tuned        {recipe: fragment}, over the values of the recipe of that name: learning rates and
                 gate scale that `python -m recipes.tune` chose there
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from strlora_tuner.methods import tuner_types

FOLDER = Path(__file__).resolve().parent / "methods"
Protocol = Literal["stream", "joint", "zero_shot", "pool"]


@dataclass(frozen=True)
class Method:
    """One method, as its YAML declares it."""

    name: str
    tuner_type: str | None
    protocol: Protocol = "stream"
    defaults: dict[str, Any] = field(default_factory=dict)
    always: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The YAML that declares it."""
        return FOLDER / f"{self.name}.yaml"

    def fragments(self) -> dict[str, dict[str, Any]]:
        """Its recipe fragments by the dotted key that they stand under in the file."""
        tuned = {f"tuned.{name}": fragment for name, fragment in self.tuned.items()}
        return {"defaults": self.defaults, "always": self.always, **tuned}


@cache
def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def find_method(name: str) -> Method:
    """Returns a method by name.

    Raises:
        KeyError: no method is called so.
        ValueError: its YAML has an unknown key, tuner or protocol.
    """
    if name not in method_names():
        raise KeyError(name)
    path = FOLDER / f"{name}.yaml"
    values = cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")))
    known = {"tuner_type", "protocol", "defaults", "always", "tuned"}
    if not isinstance(values, dict) or "tuner_type" not in values or values.keys() - known:
        raise ValueError(
            f"{path}: expected tuner_type and, where needed, {', '.join(sorted(known))}"
        )
    method = Method(name, **values)
    for key, known_values in (
        ("tuner_type", (None, *tuner_types())),
        ("protocol", get_args(Protocol)),
    ):
        value = getattr(method, key)
        if value not in known_values:
            allowed = ", ".join(map(str, known_values))
            raise ValueError(f"{path}: {key} = {value!r}, expected one of {allowed}")
    return method

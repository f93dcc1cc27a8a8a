"""What `method: NAME` means: one YAML in recipes/methods/ for each method.

Keys of such a file, all but the first optional:

    tuner_type   the tuner that trains: lora (the host's own), strlora, or a folder of
                 strlora_tuner/methods/; null: nothing is trained
    protocol     stream (default): chunk after chunk, each from the adapter before; joint: one run
                 on all chunks shuffled; zero_shot: the base model; pool: an adapter a chunk and a
                 router
    defaults     a fragment of a recipe; the recipe's own values override it
    always       a fragment that overrides the recipe's values: what defines the method
    presets      the tuner's presets that the method may have, unmodified; the first one unless the
                 recipe names another of them
    tuned        {recipe: fragment} that overrides the values of the recipe of that name: learning
                 rates and gate scale that `python -m recipes.tune` chose there

Naming a tuner's preset sets all that belongs to it: what the files below it and the method's tuned
values say of those keys went with another preset and is dropped. What stands beside the name or
above it, in a file or on the command line, modifies the preset, and its label says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from recipes.config.protocol import PROTOCOLS, StreamProtocol
from strlora_tuner.methods import LORA, options_class, tuner_types
from strlora_tuner.options import preset_table

# Blocks of a recipe that are a method, or go beside one.
METHOD_BLOCKS = ("replay", "ewc", "lwf", "slow_weights", "pool")
# Of schedule.later, as a tuner does not know its chunk; part of a preset.
FREEZE = "freeze_routers_from_chunk"
FOLDER = Path(__file__).resolve().parents[1] / "methods"


class MethodError(ValueError):
    """A method's YAML is wrong; `file` and `key` say where, the message what and the remedy."""

    def __init__(self, file: Path, key: str, message: str) -> None:
        super().__init__(f"{file}: {key}: {message}")
        self.file, self.key, self.message = file, key, message


@dataclass(frozen=True)
class Method:
    """One method, as its YAML declares it."""

    name: str
    tuner_type: str | None
    protocol: StreamProtocol = PROTOCOLS["stream"]
    defaults: dict[str, Any] = field(default_factory=dict)
    always: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    presets: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The YAML that declares it."""
        return FOLDER / f"{self.name}.yaml"

    @property
    def own_blocks(self) -> set[str]:
        """Blocks of a recipe that it brings along."""
        return self.defaults.keys() | self.always.keys()

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
        KeyError: there is no such method.
        MethodError: its YAML cannot be read, or holds an unknown key or value.
    """
    if name not in method_names():
        raise KeyError(name)
    path = FOLDER / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MethodError(path, "YAML", f"cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise MethodError(path, "YAML", f"found {values!r}, expected a mapping with tuner_type")
    allowed: dict[str, Sequence[Any] | None] = {  # None: a mapping
        "tuner_type": (None, *tuner_types()),
        "protocol": tuple(PROTOCOLS),
        "defaults": None,
        "always": None,
        "tuned": None,
        "presets": (),
    }
    # A file without tuner_type is refused like one with a wrong value: null is a legal one.
    for key, value in {**values, "tuner_type": values.get("tuner_type", "nothing")}.items():
        if key not in allowed:
            raise MethodError(path, str(key), f"unknown key, expected {', '.join(allowed)}")
        known = allowed[key]
        if key == "presets":
            _check_presets(path, value, values.get("tuner_type"))
            continue
        if known is not None and value not in known:
            names = ", ".join("null" if each is None else each for each in known)
            raise MethodError(path, key, f"found {value!r}, expected one of {names}")
        if known is None and not isinstance(value, dict):
            raise MethodError(path, key, f"found {value!r}, expected a mapping of recipe keys")
    protocol = PROTOCOLS[values.pop("protocol", "stream")]
    return Method(name, protocol=protocol, **cast(dict[str, Any], values))


def _check_presets(path: Path, found: Any, tuner_type: Any) -> None:
    known = options_class(tuner_type).presets if tuner_type in tuner_types() else {}
    if not isinstance(found, list) or not found or any(name not in known for name in found):
        names = ", ".join(known) or "none, its tuner has no presets"
        raise MethodError(path, "presets", f"found {found!r}, expected a list of: {names}")


def named_preset(layer: DictConfig) -> Any:
    """The preset that a recipe's file or an override names; None: none."""
    tuner = layer.get("tuner")
    return tuner.get("preset") if isinstance(tuner, DictConfig) else None


def without_preset(config: DictConfig, tuner_type: str | None) -> DictConfig:
    """A copy of `config` without its preset and all that belongs to the tuner's presets."""
    kind = options_class(tuner_type or LORA)
    kept = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(config, resolve=False)))
    if kind.default_preset is None:
        return kept
    owned = ("preset", *preset_table(kind, kind.default_preset))
    for dotted, keys in (("tuner", owned), ("schedule.later", (FREEZE,))):
        block = OmegaConf.select(kept, dotted)
        if isinstance(block, DictConfig):
            for key in keys:
                block.pop(key, None)
    return kept


def lay_file(below: DictConfig, layer: DictConfig, method: Method) -> DictConfig:
    """A recipe's file over those that it extends.

    Where the method has presets of its own and the file, meant for other methods, names another
    one, what the file says of that preset is left out.
    """
    named = named_preset(layer)
    foreign = method.presets and named not in method.presets
    if named is not None and foreign and layer.get("method") != method.name:
        layer = without_preset(layer, method.tuner_type)
    elif named is not None:
        below = without_preset(below, method.tuner_type)
    return cast(DictConfig, OmegaConf.merge(below, layer))

"""Problems of a recipe, worded so that the reader can correct them without opening the code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from recipes.config.blocks import FORMS
from recipes.config.recorded import REMOVED
from recipes.config.yaml_values import hint_for

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Place:
    """Where a key was written: a file and a line, or the command line (no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One mistake: its place and key, what was found and expected, and a suggestion."""

    place: Place
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.key}: {self.message}"
        return f"{text} -- {self.hint}" if self.hint else text


class RecipeError(Exception):
    """Every problem of a recipe at once; `str()` is the message for the user."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(
            set(problems), key=lambda p: (str(p.place.source), p.place.line or 0)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Places:
    """Where each dotted key was last written; else a key inside it, else its parent."""

    def __init__(self, default: Path | str) -> None:
        self._default = Place(str(default))
        self._places: dict[str, Place] = {}

    def copy(self) -> dict[str, Place]:
        """All that is known so far, for :meth:`update`."""
        return dict(self._places)

    def update(self, places: Mapping[str, Place]) -> None:
        self._places.update(places)

    def __getitem__(self, key: str) -> Place:
        while key:
            if key in self._places:
                return self._places[key]
            inside = [place for name, place in self._places.items() if name.startswith(f"{key}.")]
            if inside:
                return inside[0]
            key = key.rpartition(".")[0]
        return self._default


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'x'?" for the closest of `known`, or an empty string."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:  # a forgotten part of a longer name: expert -> num_experts, lr -> aligner_lr
        near = [name for name in known if len(word) > 2 and word.rstrip("s") in name][:1]
    return f"did you mean {near[0]!r}?" if near else ""


def unknown_key(
    place: Place, block: str, key: str, known: Iterable[str], elsewhere: Mapping[str, str]
) -> Problem:
    """The message for a key that does not exist.

    Args:
        block: dotted name of the block that holds the key, empty at the top.
        known: the keys of that block.
        elsewhere: leaf name -> full dotted key for every key of the whole recipe, so that a key
            written at the wrong level is sent to the right one.
    """
    known = sorted(known)
    hint = f"did you mean '{elsewhere[key]}'?" if key in elsewhere else did_you_mean(key, known)
    # The names of other blocks only now: of two that are near, the one of this block is likelier.
    if not hint:
        near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
        hint = f"did you mean '{elsewhere[near[0]]}'?" if near else ""
    where = f"in {block!r}" if block else "at the top of a recipe"
    dotted = f"{block}.{key}" if block else key
    if dotted in REMOVED:
        return Problem(place, dotted, f"was removed: {REMOVED[dotted]}", "leave it out")
    return Problem(place, dotted, f"unknown key; allowed {where}: {', '.join(known)}", hint)


def from_pydantic(
    error: pydantic.ValidationError,
    model: type[pydantic.BaseModel],
    places: Places,
    elsewhere: Mapping[str, str],
    prefix: str = "",
    also_known: tuple[str, ...] = (),
) -> list[Problem]:
    """Turns pydantic's errors about `model` (read under the dotted `prefix`) into our own.

    A misspelt required key is one mistake, not two: where an unknown key was probably meant to be a
    missing one, only the unknown key is reported.

    Args:
        also_known: keys of the outermost block that `model` does not have as fields.
    """
    unknown, missing, others = [], {}, []
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        dotted = ".".join(filter(None, [prefix, *path]))
        owner = _submodel(model, path[:-1])
        if detail["type"] == "extra_forbidden" and owner is not None:
            block, _, leaf = dotted.rpartition(".")
            known = [*owner.model_fields, *(also_known if block == prefix else ())]
            unknown.append(unknown_key(places[dotted], block, leaf, known, elsewhere))
        elif detail["type"] == "missing":
            missing[dotted] = Problem(places[dotted], dotted, _sentence(detail, owner, path))
        else:
            message = _sentence(detail, owner, path)
            others.append(Problem(places[dotted], dotted, message, _suggestion(detail, owner)))
    for problem in unknown:
        block = problem.key.rpartition(".")[0]
        meant = problem.hint.partition("'")[2].partition("'")[0]
        missing.pop(f"{block}.{meant}" if block else meant, None)
    return [*unknown, *missing.values(), *others]


def _suggestion(detail: Mapping[str, Any], owner: type[pydantic.BaseModel] | None) -> str:
    """Suggests the nearest of a closed list of words, or how to write what YAML misread."""
    field = owner.model_fields.get(str(detail["loc"][-1])) if owner is not None else None
    nullable = field is not None and type(None) in getattr(field.annotation, "__args__", ())
    hint = hint_for(detail["input"], detail["type"] == "string_type", nullable)
    if hint:
        return hint
    if detail["type"] != "literal_error":
        return ""
    # pydantic gives the words only as a text: "'a', 'b' or 'c'".
    known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
    return did_you_mean(str(detail["input"]).lower(), known)


def rule_problems(broken: Iterable[str], places: Places, prefix: str = "") -> list[Problem]:
    """Turns broken rules over several keys, each worded "key = value ...", into problems.

    Args:
        prefix: the dotted block that the keys are in.
    """
    keyed = [(".".join(filter(None, [prefix, text.partition(" = ")[0]])), text) for text in broken]
    return [Problem(places[key], key, text) for key, text in keyed]


def apart_from(refused: Sequence[Problem], broken: Iterable[str]) -> list[str]:
    """The broken rules that name no key of `refused`, nor one that such a key was meant to be."""
    keys = [key for each in refused for key in (each.key, *re.findall(r"'([\w.]+)'", each.hint))]
    leaves = {re.sub(r"(\.\d+)+$", "", key).rpartition(".")[2] for key in keys}
    return [text for text in broken if not leaves & set(re.findall(r"\w+", text))]


def _submodel(model: type[pydantic.BaseModel], path: list[str]) -> type[pydantic.BaseModel] | None:
    """Follows `path` through nested models; None where a part is not a model."""
    current: Any = model
    for part in path:
        field = current.model_fields.get(part)
        current = _model_of(field.annotation) if field else None
        if current is None:
            return None
    return current


def _model_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The pydantic model inside an annotation such as `Phase` or `Phase | None`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
            return candidate
    return None


BLOCK_OF_KEYS = "a block of keys"


def _sentence(
    detail: Mapping[str, Any], owner: type[pydantic.BaseModel] | None, path: list[str]
) -> str:
    field = owner.model_fields.get(path[-1]) if owner is not None and path else None
    meaning = f" ({field.description})" if field is not None and field.description else ""
    if detail["type"] == "missing":
        return f"is missing and has no default{meaning}"
    no_block = detail["type"] in ("model_type", "dict_type")
    expected = BLOCK_OF_KEYS if no_block else FORMS.get(detail.get("ctx", {}).get("pattern"))
    if expected is not None:
        return f"found {shown(detail['input'])}, expected {expected}{meaning}"
    text = detail["msg"]
    return f"found {shown(detail['input'])}, but {text[:1].lower()}{text[1:]}{meaning}"


def shown(value: Any) -> str:
    """A value as Python writes it, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def leaf_names(model: type[pydantic.BaseModel], prefix: str = "") -> dict[str, str]:
    """Leaf key -> dotted key over nested models; "a.x' or 'b.x" where a leaf occurs twice."""
    names: dict[str, str] = {}
    for name, field in model.model_fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        inner = _model_of(field.annotation)
        for leaf, key in (leaf_names(inner, dotted) if inner else {name: dotted}).items():
            names[leaf] = f"{names[leaf]}' or '{key}" if leaf in names else key
    return names

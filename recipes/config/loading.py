"""Loads a recipe: reads and merges its files and overrides, checks it, lists all problems."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from recipes.arguments import shipped_recipes
from recipes.config.method import (
    Method,
    MethodError,
    find_method,
    lay_file,
    method_names,
    named_preset,
    without_preset,
)
from recipes.config.problems import (
    BLOCK_OF_KEYS,
    COMMAND_LINE,
    Place,
    Places,
    Problem,
    RecipeError,
    apart_from,
    did_you_mean,
    from_pydantic,
    leaf_names,
    rule_problems,
    shown,
)
from recipes.config.recorded import is_recorded, migrate
from recipes.config.rules import cross_field_problems
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import CountError
from recipes.config.sizes.chunk_count import count_chunks, name_stream, without_inherited_count
from recipes.config.sizes.parameter_matching import (
    BudgetError,
    as_method,
    budget_method,
    with_budget,
)
from recipes.config.swift_arguments import check_swift_block, known_arguments
from recipes.config.tuner_block import check_tuner_block, known_tuner_keys, tuner_choices
from recipes.config.yaml_values import SIXTIES, as_word, at_home, leaves, times_written
from strlora_tuner.methods import LORA

FOLDER = Path(__file__).resolve().parents[1]
DEFAULT_METHOD = str(Recipe.model_fields["method"].default)


def find_recipe(name: str) -> Path:
    """Returns the YAML of a recipe given by name (`tiny`) or path; RecipeError without one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise RecipeError([Problem(Place(COMMAND_LINE), "RECIPE", f"no such file: {name}")])
    shipped = FOLDER / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = shipped_recipes()
    message = f"no recipe is called {name!r}; there are: {', '.join(names)} (or give a YAML file)"
    raise RecipeError([Problem(Place(COMMAND_LINE), "RECIPE", message, did_you_mean(name, names))])


def load_recipe(name: str, overrides: Sequence[str] = (), tuned: bool = True) -> Recipe:
    """Loads, merges and checks a recipe.

    Args:
        name: a shipped recipe's name or a YAML file.
        overrides: `dotted.key=value`, the value in YAML.
        tuned: whether the values that recipes.tune chose for the method count.

    Raises:
        RecipeError: with every problem found, not only the first.
    """
    path = find_recipe(name)
    places = Places(_short(path))
    files = _read_with_parents(path, places, seen=())
    merged = _with_method(files, overrides, places, tuned)
    config, problems = _with_overrides(merged, overrides, places)
    values = _resolve(config, places, problems)
    name_stream(values)
    count_chunks(values, places, problems)
    recipe = _check(values, places, problems)
    if problems or recipe is None:
        raise RecipeError(problems)
    return _budgeted(recipe, name, overrides, tuned, places)


def _budgeted(
    recipe: Recipe, name: str, overrides: Sequence[str], tuned: bool, places: Places
) -> Recipe:
    """The recipe with what its budget derives; a run's own recipe.yaml holds that already."""
    other = budget_method(recipe)
    if other is None or recipe.matched is not None:
        return recipe
    place = places["budget"]
    if other not in method_names():
        hint = did_you_mean(other, method_names())
        message = f"no method is called {other!r}; there are: {', '.join(method_names())}"
        raise RecipeError([Problem(place, "budget", message, hint)])
    try:
        return with_budget(recipe, load_recipe(name, as_method(overrides, other), tuned))
    except MethodError as error:
        raise RecipeError([_of_method(error)]) from error
    except (BudgetError, CountError) as error:
        raise RecipeError([Problem(place, "budget", str(error))]) from error


def _read_with_parents(
    path: Path, places: Places, seen: tuple[Path, ...]
) -> list[tuple[str, DictConfig]]:
    """Reads a YAML file and those it `extends`, outermost first; fills `places`."""
    try:
        text = path.read_text(encoding="utf-8")
        # OmegaConf does not keep lines, so the text is parsed once more for them.
        lines = _line_numbers(text, _short(path))
        config = OmegaConf.load(path)  # refuses a key that is written twice
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        place = Place(_short(path), mark.line + 1 if mark else None)
        hint = "YAML indents with blanks: replace the tab" if "'\\t'" in str(error) else ""
        raise RecipeError([Problem(place, "YAML", f"cannot be read: {error}", hint)]) from error
    if not isinstance(config, DictConfig):
        message = "must hold blocks such as `model:` at its top level"
        raise RecipeError([Problem(Place(_short(path)), "YAML", message)])
    if is_recorded(path):
        recorded = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
        config = OmegaConf.create(migrate(recorded))
    for key, written in times_written(yaml.compose(text, Loader=yaml.SafeLoader)):
        OmegaConf.update(config, key, written)
    # Unresolved: ${...} may name what another file or the command line sets.
    written_down = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    # A block all of whose lines were removed or commented out, or that holds another value.
    no_blocks: list[Problem] = []
    for key in (key for key in _BLOCKS if key in lines):
        value = reduce(getitem, key.split("."), written_down)
        if not isinstance(value, dict) and not str(value).startswith("${"):
            text = f"found {shown(value)}, expected {BLOCK_OF_KEYS}"
            text = "is empty" if value is None else text
            no_blocks.append(Problem(lines[key], key, text, "remove the line or give it keys"))
    if no_blocks:
        raise RecipeError(no_blocks)
    parent = written_down.pop("extends", None)
    written_down.pop("sweep", None)  # what recipes.sweep varies
    config = OmegaConf.create(written_down)
    above: list[tuple[str, DictConfig]] = []
    if parent is not None:
        base = _parent_path(str(parent), path, lines)
        if base.resolve() in (*seen, path.resolve()):
            message = "leads back to this file: a recipe cannot extend itself"
            raise RecipeError([Problem(lines["extends"], "extends", message)])
        above = _read_with_parents(base, places, (*seen, path.resolve()))
    # After the parents: where both write a key, the file that counts is this one.
    places.update(lines)
    return [*above, (path.stem, config)]


# Blocks that a recipe always has: one without keys would take all that its parents set.
_BLOCKS = ("model", "data", "tuner", "swift", "eval", "launcher", "launcher.slurm", "schedule",
           "schedule.first", "schedule.later")  # fmt: skip


def _with_method(
    files: list[tuple[str, DictConfig]], overrides: Sequence[str], places: Places, tuned: bool
) -> DictConfig:
    """Merges the recipe's files with what its method says, see :mod:`recipes.config.method`."""
    named = [str(config["method"]) for _, config in files if "method" in config]
    named += [text.partition("=")[2] for text in overrides if text.startswith("method=")]
    name = named[-1] if named else DEFAULT_METHOD
    try:
        method = find_method(name)
    except KeyError:  # the schema names it, and all other mistakes with it
        method = Method(name, None)
    except MethodError as error:
        raise RecipeError([_of_method(error)]) from error
    fragments = method.fragments()
    lines: dict[str, Place] = {}
    if method.file.is_file():
        lines = _line_numbers(method.file.read_text(encoding="utf-8"), _short(method.file))

    def lay(over: DictConfig, part: str) -> DictConfig:
        start = f"{part}."
        own = {k.removeprefix(start): at for k, at in lines.items() if k.startswith(start)}
        places.update(own)
        return _merge(over, OmegaConf.create(fragments[part]))

    # The method's defaults lie under the recipe, also in messages: a key that both write is placed
    # in the recipe.
    recipes_own = places.copy()
    merged = lay(OmegaConf.create({}), "defaults")
    if method.presets:
        merged = _merge(merged, OmegaConf.create({"tuner": {"preset": method.presets[0]}}))
    places.update(recipes_own)
    for stem, config in files:
        merged = lay_file(without_inherited_count(merged, config), config, method)
        if tuned and f"tuned.{stem}" in fragments:
            merged = lay(merged, f"tuned.{stem}")
    below = places.copy()
    merged = lay(merged, "always")
    for key, value in _own_schedule(files, overrides, fragments["always"]).items():
        OmegaConf.update(merged, key, value)
        if key in below:
            places.update({key: below[key]})
    return merged


def _own_schedule(
    files: list[tuple[str, DictConfig]], overrides: Sequence[str], always: Mapping[str, Any]
) -> dict[str, Any]:
    """What a recipe sets itself of the schedule that its method brings, by dotted key.

    A file that names the method, or extends one that does, means what it writes beside it; a
    parent's schedule gives way, and so does the file's to a method of the command line.
    """
    named_in = [i for i, (_, config) in enumerate(files) if "method" in config]
    if not named_in or any(text.startswith("method=") for text in overrides):
        return {}
    return {
        key: value
        for _, config in files[named_in[-1] :]
        for key in leaves(always.get("schedule", {}), "schedule.")
        if (value := OmegaConf.select(config, key)) is not None
    }


def _of_method(error: MethodError) -> Problem:
    place = Place(_short(error.file))
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        place = _line_numbers(error.file.read_text(encoding="utf-8"), place.source).get(
            error.key, place
        )
    return Problem(place, error.key, error.message)


def _parent_path(parent: str, path: Path, places: dict[str, Place]) -> Path:
    parent = str(at_home(parent))
    beside = path.parent / (parent if parent.endswith((".yaml", ".yml")) else f"{parent}.yaml")
    if beside.is_file():
        return beside
    try:
        return find_recipe(parent)
    except RecipeError as error:
        message = error.problems[0].message
        raise RecipeError([Problem(places["extends"], "extends", message)]) from error


def _line_numbers(text: str, source: str) -> dict[str, Place]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return {key: Place(source, line) for key, line in _walk(node, "")}


def _walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
            yield dotted, key.start_mark.line + 1
            yield from _walk(value, dotted)


def _with_overrides(
    config: DictConfig, overrides: Sequence[str], places: Places
) -> tuple[DictConfig, list[Problem]]:
    problems = []
    place = Place(COMMAND_LINE)
    if any(_names_preset(override) for override in overrides):
        config = without_preset(config, _tuner_type(cast(dict[str, Any], config)))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key or key.startswith("-"):
            hint = "write it as block.key=value, for example seed=1"
            problems.append(Problem(place, override, "is not an override", hint))
            continue
        try:
            # Quoted, since YAML 1.1 reads 8:00:00 as a number to the base of sixty.
            given = f"{key}='{text}'" if SIXTIES.fullmatch(text) else override
            layer = OmegaConf.from_dotlist([given])
            if not any(other.startswith("data.chunks=") for other in overrides):
                config = without_inherited_count(config, layer)
            config = _merge(config, layer)
        except TypeError:  # a list in the place of a block
            problems.append(Problem(place, key, f"found {text}, expected {BLOCK_OF_KEYS}"))
            continue
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            problems.append(Problem(place, key, f"cannot be set: {str(error).splitlines()[0]}"))
            continue
        places.update({key: place})
    return config, problems


def _names_preset(override: str) -> bool:
    with suppress(OmegaConfBaseException, yaml.YAMLError, ValueError):
        return named_preset(OmegaConf.from_dotlist([override])) is not None
    return False


def _merge(base: DictConfig, other: DictConfig) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge(base, other))


_SECRET = re.compile(r"oc\.env:\s*(\w*(TOKEN|KEY|SECRET|PASSW|CREDENTIAL)\w*)", re.IGNORECASE)


def _resolve(config: DictConfig, places: Places, problems: list[Problem]) -> dict[str, Any]:
    """Resolves `${...}`; a reference that leads nowhere is a problem."""
    # A recipe is written into logs and manifests, so that no secret may be read into one.
    text = OmegaConf.to_yaml(config, resolve=False)
    message = "looks like a secret, and recipes are logged; leave it out: the host reads it itself"
    for name in sorted({match.group(1) for match in _SECRET.finditer(text)}):
        problems.append(Problem(places["recipe"], f"oc.env:{name}", message))
    try:
        # Before resolving, since OmegaConf would look for a key HOME; and once more below, for what
        # comes out of a reference.
        at_its_home = OmegaConf.create(at_home(OmegaConf.to_container(config, resolve=False)))
        values = OmegaConf.to_container(at_its_home, resolve=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "recipe"
        problems.append(Problem(places[key], key, str(error).splitlines()[0]))
        values = OmegaConf.to_container(config, resolve=False)
    return _with_words(cast(dict[str, Any], at_home(values)))


def _with_words(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the words that tuner and host take for what YAML read as true or false."""
    words: dict[str, Any] = {"tuner": tuner_choices(), "swift": {}}
    if isinstance(values.get("swift"), dict):
        words["swift"] = {key: known.choices for key, known in known_arguments().items()}
    for block, choices in words.items():
        if isinstance(own := values.get(block), dict):
            values[block] = {key: as_word(own[key], choices.get(key, ())) for key in own}
    return values


def _check(values: dict[str, Any], places: Places, problems: list[Problem]) -> Recipe | None:
    """Checks all blocks and appends what is wrong; a Recipe only when the schema itself accepts."""
    elsewhere = leaf_names(Recipe)
    for name in sorted(known_tuner_keys() - {"preset"}):
        elsewhere.setdefault(name, f"tuner.{name}")
    of_blocks: list[Problem] = []
    if isinstance(tuner := values.get("tuner"), dict):
        of_blocks = check_tuner_block(tuner, _tuner_type(values), places, elsewhere)
        # Rules over several keys need options that the tuner takes.
        refused_keys = {problem.key for problem in of_blocks}
        tuner = {key: value for key, value in tuner.items() if f"tuner.{key}" not in refused_keys}
        values = {**values, "tuner": tuner}
    if isinstance(values.get("swift"), dict):
        of_blocks += check_swift_block(values["swift"], places, "swift")
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
        problems += rule_problems(cross_field_problems(recipe), places)
    except ValidationError as error:
        known = ("extends", "sweep")
        refused = from_pydantic(error, Recipe, places, elsewhere, also_known=known)
        # So that rules over the accepted keys are checked in the same go: all mistakes at once.
        rest = _accepted(values, error)
        broken = cross_field_problems(rest) if rest is not None else []
        problems += [*refused, *rule_problems(apart_from(refused, broken), places)]
    problems += of_blocks
    return recipe


def _accepted(values: dict[str, Any], error: ValidationError) -> Recipe | None:
    """The recipe without the values that the schema refuses; None: one of them has no default."""
    rest = deepcopy(values)
    for detail in reversed(error.errors(include_url=False)):  # so that places in lists stay right
        *blocks, leaf = detail["loc"]
        with suppress(KeyError, IndexError, TypeError):
            del reduce(getitem, blocks, rest)[leaf]
    with suppress(ValidationError):
        return Recipe.model_validate(rest)
    return None


def _tuner_type(values: dict[str, Any]) -> str:
    """The tuner whose options the `tuner` block holds, also where other blocks are wrong."""
    name = values.get("method", DEFAULT_METHOD)
    known = name if name in method_names() else DEFAULT_METHOD
    return find_method(known).tuner_type or LORA


def _short(path: Path) -> str:
    """The path as the user may type it: relative to the working directory where possible."""
    whole = path.resolve()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path)

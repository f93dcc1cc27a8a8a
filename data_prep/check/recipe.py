"""What a recipe says about lengths: its model's folder and max_length.

Read from the YAML as a file among others (this package does not know the recipes' own code):
`extends` is followed, `${...}` and command line overrides are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from data_prep.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "recipes"


class RecipeModel(NamedTuple):
    """`model.path` and `model.max_length` of a recipe."""

    path: Path
    max_length: int


def read_recipe(name: str) -> RecipeModel:
    """Return the model of the recipe `name` (of recipes/) or of a YAML file.

    Raises:
        DataError: no such file, no YAML, a circle of `extends`, or no model in it.
    """
    model: dict[str, Any] = {}
    path: Path | None = _find(name, Path())
    seen: list[Path] = []
    while path is not None:
        if path in seen:
            raise DataError("recipe", f"{path}: extends goes round in a circle")
        seen.append(path)
        content = _load(path)
        block = content.get("model")
        model = {**(block if isinstance(block, dict) else {}), **model}
        parent = content.get("extends")
        path = None if parent is None else _find(str(parent), path.parent)
    missing = [key for key in ("path", "max_length") if key not in model]
    if missing:
        raise DataError(
            "recipe", f"{seen[0]}: no model.{missing[0]}; give --model and --max-length instead"
        )
    if not isinstance(model["max_length"], int) or "${" in str(model["path"]):
        raise DataError(
            "recipe",
            f"{seen[0]}: model.path {model['path']!r} and max_length {model['max_length']!r} "
            "cannot be read without the recipe's loader; give --model and --max-length instead",
        )
    folder = Path(str(model["path"]))
    beside = FOLDER.parent / folder  # recipes' paths start at the repository's root
    return RecipeModel(beside if beside.is_dir() else folder, model["max_length"])


def _find(name: str, beside: Path) -> Path:
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for path in (beside / file, FOLDER / file):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
    raise DataError("recipe", f"no recipe {name!r}; expected a YAML file or one of {known}")


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError("recipe", f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError("recipe", f"{path}: expected blocks such as `model:` at its top level")
    return content

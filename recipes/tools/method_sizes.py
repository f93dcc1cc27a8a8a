"""What every method would train and store at one recipe's settings: the table below `plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from recipes.config.loading import load_recipe
from recipes.config.method import MethodError, method_names
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import Shape, adapter_size, model_shape
from recipes.config.sizes.parameter_matching import as_method


@dataclass(frozen=True)
class MethodSize:
    """One method at a recipe's settings; with `why` instead of figures where they do not fit it.

    `trained` are the parameters trained in a chunk, `stored` those in all files that answering
    after the last chunk needs, `ratio` is `trained` by what plain LoRA trains.
    """

    method: str
    rank: int | None = None
    trained: int = 0
    stored: int = 0
    ratio: float | None = None
    why: str | None = None


def sizes_of_methods(name: str, overrides: Sequence[str]) -> list[MethodSize]:
    """Counts every method at one recipe's settings, sorted by trained parameters.

    Empty where the sizes of the base model are unknown.

    Args:
        name: a shipped recipe or a YAML file.
        overrides: as given for the recipe; another method's and a budget are left out.
    """
    rows: list[MethodSize] = []
    for method in method_names():
        try:
            recipe = load_recipe(name, as_method(overrides, method))
        except (MethodError, RecipeError) as error:
            first = error if isinstance(error, MethodError) else error.problems[0]
            rows.append(MethodSize(method, why=first.message))
            continue
        shape = model_shape(recipe)
        if shape is None:
            return []
        rank = recipe.tuner_options.rank if recipe.tuner_type else None
        trained = adapter_size(recipe, shape).trained
        rows.append(MethodSize(method, rank, trained, stored_at_end(recipe, shape)))
    lora = next((row.trained for row in rows if row.method == "lora"), 0)
    rows = [replace(r, ratio=None if r.why or not lora else r.trained / lora) for r in rows]
    return sorted(rows, key=lambda row: (row.trained, row.method))


def stored_at_end(recipe: Recipe, shape: Shape) -> int:
    """Numbers that must be kept to answer after the last chunk (a pool: every adapter, a router).

    What only training needs (the state of EWC, replayed samples) is not among them.
    """
    stored = adapter_size(recipe, shape).stored
    chunks = recipe.data.chunks
    if recipe.pool is not None:
        return stored * (chunks + (chunks > 1))
    return stored


def sizes_text(rows: Sequence[MethodSize]) -> Iterator[str]:
    """The rows as a table of lines."""
    if not rows:
        return
    yield "\nmethods at these settings    rank    trained   to lora   to answer, at the end"
    for row in rows:
        if row.why is not None:
            yield f"  {row.method:<24} not possible: {row.why}"
            continue
        rank = "-" if row.rank is None else str(row.rank)
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        sizes = f"{row.trained / 1e6:8.3f} M {ratio:>9} {row.stored / 1e6:15.3f} M"
        yield f"  {row.method:<24} {rank:>6} {sizes}"
    yield (
        "which to take: strlora_signed where no old data may be kept, er where some may, by one "
        "small model; README.md, 'Which method', and docs/study.md say how sure that is"
    )

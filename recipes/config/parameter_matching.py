"""`budget: match(NAME)`: give a method as many trainable parameters as another has here.

The other method is counted at the recipe's own rank. The rank is derived, and only where no rank
comes near enough the number of experts too: the one nearest to the recipe's that does. alpha moves
with the rank, so that the scale alpha / rank stays. An aligner that trains in full is the same for
every method and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from recipes.config.method import MethodError, find_method, method_names
from recipes.config.model_sizes import Shape, adapter_size, model_shape, tuner_size
from recipes.config.rules import METHOD_BLOCKS
from recipes.config.schema import Matched, Recipe

TOLERANCE = 0.05  # of the other method's trainable parameters
MOST_EXPERTS, MOST_RANK = 16, 4096


class BudgetError(Exception):
    """A budget that cannot be kept; the message gives the numbers."""


def budget_method(recipe: Recipe) -> str | None:
    """The method whose parameters the recipe asks for; None without a budget."""
    found = re.fullmatch(r"match\((\w+)\)", recipe.budget or "")
    return found.group(1) if found else None


def with_budget(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with rank (and experts) that give it the trainable parameters of `other`.

    Args:
        other: the same recipe with the other method, at its own rank.

    Raises:
        BudgetError: a size is unknown, a method trains nothing, or nothing comes near enough.
    """
    shape = model_shape(recipe)
    if shape is None:
        raise BudgetError(
            f"the sizes of {recipe.model.path} are unknown: get the model, or set budget: null"
        )
    for each in (recipe, other):
        if each.tuner_type is None:
            raise BudgetError(f"method {each.method} trains nothing: set budget: null")
    wanted = tuner_size(other.tuner_options, shape).trained
    best: Matched | None = None
    for experts in _experts(recipe.tuner_options):
        near = _nearest(recipe, shape, experts, wanted)
        if near is not None and (best is None or near.gap < best.gap):
            best = near
        if best is not None and best.gap <= TOLERANCE:
            return recipe.model_copy(update={"matched": best})
    raise BudgetError(_refusal(recipe, other, best, wanted))


def _experts(options: Any) -> list[int | None]:
    """Numbers of experts, the recipe's own first, then by distance from it; [None] without any."""
    own = getattr(options, "num_experts", None)
    if own is None:
        return [None]
    counts = {own, *range(2, MOST_EXPERTS + 1)}
    return sorted(counts, key=lambda count: (abs(count - own), count))


def _nearest(recipe: Recipe, shape: Shape, experts: int | None, wanted: int) -> Matched | None:
    """The setting whose size is nearest to `wanted` with so many experts; sizes grow with rank."""
    best: Matched | None = None
    for setting in _settings(recipe, experts):
        try:
            options = recipe.model_copy(update={"matched": setting}).tuner_options
        except ValueError:  # the rank cannot be divided, or too few experts for top_k
            continue
        trained = tuner_size(options, shape).trained
        found = setting.model_copy(update={"trained": trained, "wanted": wanted})
        if best is None or found.gap < best.gap:
            best = found
        if trained > wanted:
            break
    return best


def _settings(recipe: Recipe, experts: int | None) -> Iterator[Matched]:
    own = recipe.tuner_options
    more = {} if experts in (None, getattr(own, "num_experts", None)) else {"num_experts": experts}
    for rank in range(experts or 1, MOST_RANK + 1, experts or 1):
        tuner = {"rank": rank, "alpha": own.alpha / own.rank * rank, **more}
        yield Matched(tuner=tuner, trained=0, wanted=1)


def _refusal(recipe: Recipe, other: Recipe, best: Matched | None, wanted: int) -> str:
    text = f"{other.method} trains {wanted:,} parameters at rank {other.tuner_options.rank}"
    if best is None:
        return f"{text}; no rank of {recipe.method} is possible: set budget: null"
    near = ", ".join(f"{key} {value:g}" for key, value in best.tuner.items() if key != "alpha")
    return (
        f"{text}; the nearest that {recipe.method} can have is {best.trained:,} ({near}), which is "
        f"{100 * best.gap:.0f} % off and more than the {100 * TOLERANCE:.0f} % allowed. What its "
        f"routers take cannot be shared out by rank: match the other way round (method="
        f"{other.method} budget=match({recipe.method})), or set budget: null"
    )


def as_method(overrides: Sequence[str], name: str) -> list[str]:
    """Overrides that make the same recipe one of method `name`, in its sizes alone.

    A budget, and what goes beside a method (replay, EWC, a pool), is left out.
    """
    beside = tuple(f"{block}{end}" for block in METHOD_BLOCKS for end in "=.")
    kept = [text for text in overrides if not text.startswith(("method=", "budget=", *beside))]
    own = find_method(name).own_blocks
    nulls = [f"{block}=null" for block in METHOD_BLOCKS if block not in own]
    return [*kept, f"method={name}", "budget=null", *nulls]


def stored_at_end(recipe: Recipe, shape: Shape) -> int:
    """Numbers that must be kept to answer after the last chunk (a pool: every adapter, a router).

    What only training needs (the state of EWC, replayed samples) is not among them.
    """
    stored = adapter_size(recipe, shape).stored
    chunks = recipe.data.chunks
    if recipe.pool is not None:
        return stored * (chunks + (chunks > 1))
    return stored


def sizes_of_methods(name: str, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Counts every method at one recipe's settings, sorted by trained parameters.

    A row holds `method`, `rank`, `trained`, `stored` (after the last chunk), and `ratio` of trained
    to plain LoRA's; or `method` and `why` where the recipe's settings do not fit the method.

    Args:
        name: a shipped recipe or a YAML file.
        overrides: as given for the recipe; another method's and a budget are left out.
    """
    from recipes.config.loading import load_recipe
    from recipes.config.problems import RecipeError

    rows: list[dict[str, Any]] = []
    for method in method_names():
        try:
            recipe = load_recipe(name, as_method(overrides, method))
        except (RecipeError, MethodError) as error:
            why = error.message if isinstance(error, MethodError) else error.problems[0].message
            rows.append({"method": method, "why": why})
            continue
        shape = model_shape(recipe)
        if shape is None:
            return []
        rank = recipe.tuner_options.rank if recipe.tuner_type else None
        trained = adapter_size(recipe, shape).trained
        row: dict[str, Any] = {"method": method, "rank": rank, "trained": trained}
        rows.append({**row, "stored": stored_at_end(recipe, shape)})
    lora = next((row["trained"] for row in rows if row["method"] == "lora" and "why" not in row), 0)
    for row in rows:
        if "why" not in row and lora:
            row["ratio"] = row["trained"] / lora
    return sorted(rows, key=lambda row: (row.get("trained", 0), row["method"]))


def sizes_text(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as a table of lines."""
    if not rows:
        return
    yield "\nmethods at these settings    rank    trained   to lora     stored at the end"
    for row in rows:
        if "why" in row:
            yield f"  {row['method']:<24} not possible: {row['why']}"
            continue
        rank = "-" if row["rank"] is None else str(row["rank"])
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
        sizes = f"{row['trained'] / 1e6:8.3f} M {ratio:>9} {row['stored'] / 1e6:15.3f} M"
        yield f"  {row['method']:<24} {rank:>6} {sizes}"

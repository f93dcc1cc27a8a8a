"""`budget: match(NAME)`: give a method as many trainable parameters as another has here.

The other method is counted at the recipe's own rank. The rank is derived, and only where no rank
comes near enough the number of experts too: the one nearest to the recipe's that does. alpha moves
with the rank, so that the scale alpha / rank stays. An aligner that trains in full is the same for
every method and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from recipes import UserError
from recipes.config.blocks import Matched
from recipes.config.method import METHOD_BLOCKS, find_method
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import Shape, model_shape, tuner_size
from strlora_tuner.options import AdapterOptions

TOLERANCE = 0.05  # of the other method's trainable parameters
MOST_EXPERTS, MOST_RANK = 16, 4096
PASSED_OVER = 64  # ranks in a row that a method may be unable to have


class BudgetError(UserError):
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
    wanted = tuner_size(other, shape).trained
    best: Matched | None = None
    for experts in _experts(recipe.tuner_options):
        near = _nearest(recipe, shape, experts, wanted)
        if near is not None and (best is None or near.gap < best.gap):
            best = near
        if best is not None and best.gap <= TOLERANCE:
            return recipe.model_copy(update={"matched": best})
    raise BudgetError(_refusal(recipe, other, best, wanted))


def _experts(options: AdapterOptions) -> list[int | None]:
    """Numbers of experts, the recipe's own first, then by distance from it; [None] without any."""
    own = getattr(options, "num_experts", None)
    if own is None:
        return [None]
    counts = {own, *range(2, MOST_EXPERTS + 1)}
    return sorted(counts, key=lambda count: (abs(count - own), count))


def _nearest(recipe: Recipe, shape: Shape, experts: int | None, wanted: int) -> Matched | None:
    """The setting with `experts` whose size is nearest to `wanted`, the smaller of two.

    Parameters grow evenly with the rank, so two counts say where to look; the settings there are
    counted themselves. Ranks that the method cannot have are passed over.
    """
    most = MOST_RANK // (experts or 1)

    def possible(numbers: Iterable[int]) -> Iterator[tuple[int, Matched]]:
        for number in islice(numbers, PASSED_OVER):
            if (each := _counted(recipe, shape, experts, number, wanted)) is not None:
                yield number, each

    two = list(islice(possible(range(1, most + 1)), 2))
    if len(two) < 2:
        return two[0][1] if two else None
    (low, first), (high, second) = two
    growth = (second.trained - first.trained) // (high - low)
    steps = min(max(low + (wanted - first.trained) // growth, 1), most)
    sides = (range(steps, 0, -1), range(steps + 1, most + 1))
    found = [each for side in sides for _, each in islice(possible(side), 1)]
    return min(found, key=lambda each: each.gap, default=None)


def _counted(
    recipe: Recipe, shape: Shape, experts: int | None, steps: int, wanted: int
) -> Matched | None:
    """The setting of rank `steps` x experts; None where the method cannot have it."""
    own = recipe.tuner_options
    rank = steps * (experts or 1)
    tuner: dict[str, float] = {"rank": rank, "alpha": own.alpha / own.rank * rank}
    if experts not in (None, getattr(own, "num_experts", None)):
        tuner["num_experts"] = experts or 1
    setting = Matched(tuner=tuner, trained=0, wanted=wanted)
    try:
        trained = tuner_size(recipe.model_copy(update={"matched": setting}), shape).trained
    except ValueError:  # too few experts for top_k, or a number of them that it cannot have
        return None
    return setting.model_copy(update={"trained": trained})


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

    A budget, and what goes beside a method (replay, EWC, a pool, a second set of weights), is left
    out.
    """
    beside = tuple(f"{block}{end}" for block in METHOD_BLOCKS for end in "=.")
    kept = [text for text in overrides if not text.startswith(("method=", "budget=", *beside))]
    own = find_method(name).own_blocks
    nulls = [f"{block}=null" for block in METHOD_BLOCKS if block not in own]
    return [*kept, f"method={name}", "budget=null", "eval.both_weights=false", *nulls]

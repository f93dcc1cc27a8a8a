"""Bytes that a run writes: adapters, and the checkpoints inside a chunk.

`python -m recipes.config.sizes.stored` counts adapters in a process of its own, since that takes
torch: the recipe as JSON on standard input, a line for each chunk on standard output: its number,
trained and stored parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import Shape, adapter_size, model_shape, stored_by_chunk
from strlora_tuner.options import Size

BYTES = 4  # of a number in an adapter's file
# Besides the weights a checkpoint holds AdamW's two moments, and under DeepSpeed float32 masters.
OPTIMIZER, MASTERS = 8, 4


def sizes_by_chunk(recipe: Recipe, shape: Shape) -> dict[int, Size]:
    """What is trained, and what the file of each trained chunk stores."""
    trained = adapter_size(recipe, shape).trained
    return {c: Size(trained, count) for c, count in stored_by_chunk(recipe, shape).items()}


def left_by_chunk(recipe: Recipe, size: Size) -> int:
    """Numbers that a chunk leaves: adapter (twice with slow weights), a pool's router, EWC's theta*
    and F of what trains, an optimizer's state that the next chunk goes on with."""
    adapters = _adapters(recipe, size)
    if recipe.keeps_optimizer:
        adapters += size.trained * OPTIMIZER // BYTES
    if recipe.pool is not None:
        return adapters + size.stored
    if recipe.ewc is None:
        return adapters
    return adapters + size.trained * (2 if recipe.ewc.fisher else 1)


def _adapters(recipe: Recipe, size: Size) -> int:
    return size.stored * (1 if recipe.slow_weights is None else 2)


def left_by_all(recipe: Recipe, sizes: Mapping[int, Size]) -> int:
    """Numbers that these chunks leave; a pool's first chunk has no router."""
    total = sum(left_by_chunk(recipe, size) for size in sizes.values())
    return total - sizes[1].stored if recipe.pool is not None and 1 in sizes else total


def checkpoint_bytes(recipe: Recipe, size: Size) -> int:
    """Bytes of the checkpoints that lie beside each other while a chunk is trained."""
    each = _adapters(recipe, size) * BYTES + size.trained * OPTIMIZER
    each += size.trained * MASTERS if recipe.launcher.deepspeed else 0
    return (recipe.schedule.keep_checkpoints + 1) * each  # the newest is written before one goes


def main() -> None:
    """Counts the recipe on standard input."""
    recipe = Recipe.model_validate_json(sys.stdin.read())
    shape = model_shape(recipe)
    for chunk, size in ({} if shape is None else sizes_by_chunk(recipe, shape)).items():
        print(chunk, size.trained, size.stored)


if __name__ == "__main__":
    main()

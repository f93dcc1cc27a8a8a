"""Bytes that a run writes: adapters, and the checkpoints inside a chunk.

`python -m recipes.config.sizes.stored` counts an adapter in a process of its own, since that takes
torch: the recipe as JSON on standard input, trained and stored parameters on standard output.
"""

from __future__ import annotations

import sys

from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import adapter_size, model_shape
from strlora_tuner.options import Size

BYTES = 4  # of a number in an adapter's file
# Besides the weights a checkpoint holds AdamW's two moments, and under DeepSpeed float32 masters.
OPTIMIZER, MASTERS = 8, 4


def stored_by_chunk(recipe: Recipe, size: Size) -> int:
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


def stored_by_all(recipe: Recipe, size: Size) -> int:
    """Numbers that all chunks leave; a pool's first chunk has no router."""
    total = len(recipe.trained_chunks) * stored_by_chunk(recipe, size)
    return total if recipe.pool is None else total - size.stored


def checkpoint_bytes(recipe: Recipe, size: Size) -> int:
    """Bytes of the checkpoints that lie beside each other while a chunk is trained."""
    each = _adapters(recipe, size) * BYTES + size.trained * OPTIMIZER
    each += size.trained * MASTERS if recipe.launcher.deepspeed else 0
    return (recipe.schedule.keep_checkpoints + 1) * each  # the newest is written before one goes


def main() -> None:
    """Counts the recipe on standard input."""
    recipe = Recipe.model_validate_json(sys.stdin.read())
    shape = model_shape(recipe)
    size = Size(0, 0) if shape is None else adapter_size(recipe, shape)
    print(size.trained, size.stored)


if __name__ == "__main__":
    main()

"""The share of a chunk that is not work at the scale of a large model: by a model.

    python benchmarks/overhead_model.py internvl3.5-8b --work 412 --cold 12.1 --resident 1.5

A chunk starts the host twice, to train and to evaluate. A cold start imports the host (`--cold`
seconds, measured by stream_overhead.py) and reads the weights of the base model from a
disk (`--disk`), once for all processes, since the page cache serves the others; a resident start
(`--resident`) is a fork. Both copy the weights to each GPU at the same time (`--copy`, for each).
Work (`--work`) is what a chunk takes without its starts, in seconds. What neither way saves
(NCCL's first meeting, kernels' warm-up) is `--both` seconds a start.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes.config.loading import load_recipe
from recipes.config.sizes.base_model import model_shape

STARTS = 2  # of the host in a chunk
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def overhead(start: float, work: float) -> float:
    """The share of a chunk's time that its starts take, each of `start` seconds."""
    return STARTS * start / (STARTS * start + work)


def longest_start(work: float, goal: float) -> float:
    """Seconds that a start may take for its share to be `goal`."""
    return work * goal / (1 - goal) / STARTS


def model(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a start and share of a chunk, cold and resident, with what they come from."""
    recipe = load_recipe(options.recipe, options.overrides)
    shape = model_shape(recipe)
    if shape is None:
        raise SystemExit(f"{options.recipe}: the sizes of {recipe.model.path} are unknown")
    weights, work = shape.parameters * BYTES[recipe.model.dtype] / 1e9, options.work
    copy = weights / options.copy + options.both
    starts = {"cold": options.cold + weights / options.disk + copy,
              "resident": options.resident + copy}  # fmt: skip
    return {
        "recipe": [options.recipe, *options.overrides],
        "weights_gb": round(weights, 1),
        "work_seconds_a_chunk": round(work, 1),
        "start_seconds": {kind: round(value, 1) for kind, value in starts.items()},
        "overhead": {kind: round(overhead(value, work), 4) for kind, value in starts.items()},
        "goal": options.goal,
        "longest_start_for_goal": round(longest_start(work, options.goal), 1),
        "shortest_work_for_goal": {
            kind: round(STARTS * value * (1 - options.goal) / options.goal, 1)
            for kind, value in starts.items()
        },
        "assumed": {"disk_gb_s": options.disk, "copy_gb_s": options.copy, "both_s": options.both},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Prints the model as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", nargs="?", default="internvl3.5-8b")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--work", type=float, required=True, help="seconds of work a chunk")
    parser.add_argument("--cold", type=float, required=True, help="seconds of a cold start")
    parser.add_argument("--resident", type=float, required=True, help="seconds of a resident start")
    parser.add_argument("--disk", type=float, default=1.0, help="GB/s of reading the weights")
    parser.add_argument("--copy", type=float, default=5.0, help="GB/s to each GPU, all at once")
    parser.add_argument("--both", type=float, default=0.0, help="seconds of a start, either way")
    parser.add_argument("--goal", type=float, default=0.05)
    print(json.dumps(model(parser.parse_intermixed_args(words)), indent=2))


if __name__ == "__main__":
    main()

"""What encoding the samples (text and pictures) costs inside a training: is a cache of it worth it?

    python benchmarks/encoding_share.py tiny

Trains the first chunk of a recipe through the host's own `sft_main`, in this process, and adds up
the time inside its template's `encode`. Beside it: the size of an encoded sample, and what reading
it back from a file costs. One process, no dataloader workers, so that encoding is in the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes.commands import train_command
from recipes.layout import RunLayout
from recipes.loading import load_recipe
from recipes.stream import ensure_stream, open_stream

KEPT = 50  # encoded samples that are written and read back


class Clock:
    """Wraps a function and adds up the processor time of its calls; keeps some of its results."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds, self.calls = function, 0.0, 0
        self.kept: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = self.function(*args, **kwargs)
        self.seconds += time.process_time() - started
        self.calls += 1
        if len(self.kept) < KEPT:
            self.kept.append(dict(result))
        return result


def tensors_of(sample: dict[str, Any]) -> dict[str, Any]:
    """What a cache would have to keep of an encoded sample."""
    import torch

    kept: dict[str, Any] = {}
    for key, value in sample.items():
        if isinstance(value, torch.Tensor):
            kept[key] = value.contiguous()
        elif isinstance(value, list) and value and isinstance(value[0], int):
            kept[key] = torch.tensor(value)
    return kept


def cache_cost(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes of an encoded sample as safetensors, and milliseconds to read it (from page cache)."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{i}.safetensors" for i in range(len(samples))]
        for file, sample in zip(files, samples, strict=True):
            save_file(tensors_of(sample), file)
        size = sum(file.stat().st_size for file in files) / len(files)
        started = time.process_time()
        for file in files:
            load_file(file)
        spent = time.process_time() - started
    return {"bytes": round(size), "read_ms": round(1000 * spent / len(files), 2)}


def train(recipe_name: str, overrides: list[str], folder: Path) -> tuple[Clock, float, int]:
    """Trains chunk 1; returns the clock of encode, the loop's processor seconds, its steps."""
    recipe = load_recipe(recipe_name, [f"run_dir={folder}", *overrides])
    ensure_stream(recipe)
    stream = open_stream(recipe)
    command = train_command(recipe, RunLayout(folder), stream.chunk_file(1), 1)
    os.environ.update(command.environment)
    from swift.pipelines import sft_main
    from swift.pipelines.train.sft import SwiftSft
    from swift.template import Template

    clock, original = Clock(Template.encode), SwiftSft.train
    loop = Clock(original)

    def timed(self: Any, trainer: Any) -> Any:
        clock.seconds, clock.calls = 0.0, 0  # the sample that is printed before is no training
        return loop(self, trainer)

    Template.encode = lambda self, *args, **kwargs: clock(self, *args, **kwargs)
    SwiftSft.train = timed
    result = sft_main(list(command.arguments))
    return clock, loop.seconds, int(result["global_step"])


def main() -> None:
    """Prints the share of encoding as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", nargs="?", default="tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as name:
        clock, seconds, steps = train(options.recipe, options.overrides, Path(name))
    cost = cache_cost(clock.kept)
    print(
        json.dumps(
            {
                "samples": clock.calls,
                "encode_ms_a_sample": round(1000 * clock.seconds / clock.calls, 2),
                "step_ms": round(1000 * seconds / steps, 1),
                "encode_share": round(clock.seconds / seconds, 4),
                "cached": cost,
                "share_a_cache_would_save": round(
                    (clock.seconds - clock.calls * cost["read_ms"] / 1000) / seconds, 4
                ),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

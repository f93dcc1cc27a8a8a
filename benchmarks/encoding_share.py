"""What encoding the samples (text, pictures) costs in a training.

    python benchmarks/encoding_share.py tiny

Trains the first chunk of a recipe through the host's own `sft_main`, in this process, and adds up
the time inside its template's `encode`. One process, no dataloader workers, so that encoding is in
the loop; processor time, so that other programs count little.
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

from recipes.config.loading import load_recipe
from recipes.run.chunk_data import ensure_stream, open_recipe_stream
from recipes.run.commands import train_command
from recipes.run_folder.layout import RunLayout


class Clock:
    """Wraps a method and adds up the processor time of its calls; counts them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = self.function(*args, **kwargs)
        self.seconds += time.process_time() - started
        self.calls += 1
        return result


def train(recipe_name: str, overrides: list[str], folder: Path) -> tuple[Clock, float, int]:
    """Trains chunk 1; returns the clock of encode, the loop's processor seconds, its steps."""
    recipe = load_recipe(recipe_name, [f"run_dir={folder}", *overrides])
    ensure_stream(recipe)
    stream = open_recipe_stream(recipe)
    command = train_command(recipe, RunLayout(folder), stream.chunk_file(1), 1)
    os.environ.update(command.environment)
    from swift.pipelines import sft_main
    from swift.pipelines.train.sft import SwiftSft
    from swift.template import Template

    clock, loop = Clock(Template.encode), Clock(SwiftSft.train)

    def timed(self: Any, trainer: Any) -> Any:
        clock.seconds, clock.calls = 0.0, 0  # the sample that is printed before is no training
        return loop(self, trainer)

    # A function, since an object with __call__ would not be given its `self`.
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
    count = clock.calls
    figures = {
        "samples": count,
        "encode_ms_a_sample": round(1000 * clock.seconds / count, 2),
        "step_ms": round(1000 * seconds / steps, 1),
        "encode_share": round(clock.seconds / seconds, 4),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

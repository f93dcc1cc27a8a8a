"""`plan`'s memory of a training step against what the step really takes, on the CPU.

    python -m benchmarks.plan_memory [RECIPE ...] [--method strlora lora] [--work FOLDER]

Model folders, data and pictures are those of tests/real_shapes; the decoders have six layers and a
width of 256, so that a step is computed in seconds. The same two micro-batches are predicted and
trained: the worst that the stream has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.files import read_jsonl
from recipes.config.loading import load_recipe
from recipes.tools.memory.prediction import (
    GIB,
    PROGRAM,
    heavy_rows,
    shared,
    step_words,
    worst_batches,
)
from recipes.tools.token_counts import ask_host, count_tokens
from tests.real_shapes.families import RECIPES, Json
from tests.real_shapes.folders import build
from tests.real_shapes.streams import strcvit

SHAPES = ("internvl3.5-8b", "qwen3-vl-8b", "gemma3-4b")
TEXT = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
ONE_PROCESS = ("launcher.cpu=true", "launcher.nproc=1", "launcher.deepspeed=null")


def _middling(small: Json) -> Json:
    """The small configuration of a family, with a larger decoder."""
    vision = dict(small["vision_config"])
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = TEXT["hidden_size"]
    return {"text_config": {**small["text_config"], **TEXT}, "vision_config": vision}


def compare(name: str, method: str, work: Path) -> Iterator[float]:
    """Yields predicted and measured GiB of a recipe's worst step, then the seconds of each."""
    family = RECIPES[name]
    model = build(replace(family, small=_middling(family.small)), work / "models")
    stream = strcvit(work / "data")
    words = [f"model.path={model}", f"data.stream={stream}", "data.chunks=2", f"method={method}"]
    recipe = load_recipe(name, [*words, *ONE_PROCESS])
    rows = [row for chunk in (1, 2) for row in read_jsonl(stream / f"chunks/00{chunk}.jsonl")]
    heavy = heavy_rows(rows, stream)
    batches = worst_batches(recipe, heavy, count_tokens(recipe, heavy, stream))
    began = time.monotonic()
    found = ask_host(recipe, PROGRAM, batches, stream, step_words(recipe))
    middle = time.monotonic()
    yield sum(shared(recipe, found).values())
    twice = [*step_words(recipe), "--max_steps", "2", "--num_train_epochs", "2"]
    real = ask_host(recipe, "benchmarks.measured_step", batches, stream, twice)
    yield (real["before"] + real["peak"]) / GIB
    yield middle - began
    yield time.monotonic() - middle


def main() -> int:
    """Prints one row for each recipe and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=SHAPES)
    parser.add_argument("--method", nargs="+", default=["strlora", "lora"])
    parser.add_argument("--work", type=Path, help="keeps models and data for the next time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = []
    print("| recipe | method | predicted GiB | measured GiB | ratio | predicted in | measured in |")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            for method in options.method:
                found = list(compare(name, method, options.work or Path(folder)))
                predicted, measured, *seconds = found
                cells = [name, method, f"{predicted:.3f}", f"{measured:.3f}"]
                cells += [f"{predicted / measured:.3f}", *(f"{s:.0f} s" for s in seconds)]
                print("| " + " | ".join(cells) + " |", flush=True)
                table.append(cells)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

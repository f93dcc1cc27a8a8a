"""How many tokens samples take: counted by the host's own template and processor.

    python -m recipes.tools.token_counts RECIPE [KEY=VALUE ...] < rows.jsonl

prints a JSON list, a number for each row; images are found from ROOT_IMAGE_DIR, or the stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep.files import write_jsonl
from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import CountError
from recipes.config.swift_arguments import installed_version
from recipes.processes.command import Command
from recipes.run.commands import train_command
from recipes.run_folder.layout import RunLayout
from strlora_tuner.options import NEEDS_GPU

PROGRAM = "recipes.swift_plugins.encoded_lengths"
MARK = "ANSWER "
ROWS = "rows.jsonl"
# What the host reads of a row. Its loader wants the same fields in all rows of a file, and those
# that are for evaluation alone differ.
READ = ("messages", "images", "objects", "videos", "audios", "tools")
LEFT_OUT = (NEEDS_GPU, "NPROC_PER_NODE", "NNODES")  # one process, which computes nothing


def count_tokens(recipe: Recipe, rows: Sequence[dict[str, Any]], root: Path) -> list[int]:
    """The tokens of each row, however long it is, in a process of the host (seconds to start).

    Args:
        root: the folder that the images' paths start at.

    Raises:
        CountError: ms-swift is not installed, or it cannot encode a row; its message is passed on.
    """
    folder, how = Path(recipe.model.path), recipe.model.download or "see its page"
    if recipe.model.is_local and not (folder / "config.json").is_file():
        raise CountError(f"counting tokens needs the model: {folder} is not there. Get it: {how}")
    if installed_version() is None:
        raise CountError("counting tokens needs ms-swift: bash recipes/setup.sh installs it")
    if not rows:
        return []
    found: list[int] = ask_host(recipe, PROGRAM, rows, root)
    if len(found) != len(rows):
        raise CountError(f"the host counted {len(found)} of {len(rows)} samples")
    return found


def ask_host(
    recipe: Recipe,
    program: str,
    rows: Sequence[dict[str, Any]],
    root: Path,
    further: Sequence[str] = (),
) -> Any:
    """The answer of one of our programs that is called as `swift sft` is, on one CPU process.

    Args:
        program: the module; the last line that it prints with MARK before it is JSON.
        further: words behind the recipe's, over which they win.

    Raises:
        CountError: the program failed; its last line is passed on.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = _command(recipe, folder)
        environment = os.environ | command.environment
        # The host caches what it reads by content: a plan leaves nothing in the cache of the user.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "cache"),
                        "ROOT_IMAGE_DIR": str(root)}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", program, *host_words(recipe, rows, folder), *further],
            env={key: value for key, value in environment.items() if key not in LEFT_OUT},
            cwd=REPO,
            capture_output=True,
            text=True,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CountError(f"{program} failed on {len(rows)} samples: {last}")
    return json.loads(lines[-1].removeprefix(MARK))


def host_words(recipe: Recipe, rows: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Writes the rows into `folder`; returns what encoded_lengths.py is to be called with."""
    write_jsonl(folder / ROWS, ({k: r[k] for k in READ if k in r} for r in rows))
    return [*_command(recipe, folder).arguments, "--load_args", "false"]


def _command(recipe: Recipe, folder: Path) -> Command:
    return train_command(recipe, RunLayout(folder), folder / ROWS, 1)


def main(argv: Sequence[str]) -> int:
    """Counts the rows on standard input; returns the exit code."""
    try:
        recipe = load_recipe(argv[0], list(argv[1:]))
        root = Path(os.environ.get("ROOT_IMAGE_DIR") or recipe.data.stream)
        rows = [json.loads(line) for line in sys.stdin if line.strip()]
        print(json.dumps(count_tokens(recipe, rows, root)))
    except (RecipeError, CountError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

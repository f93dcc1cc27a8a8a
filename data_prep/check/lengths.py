"""How many tokens samples take, counted by the host's own template and processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from data_prep.errors import DataError

REPO = Path(__file__).resolve().parents[2]


class LongSample(TypedDict):
    """A sample of more than `max_length` tokens, by file, line (from 1) and id.

    `done` is what becomes of it: skip, cut or stop. A check's report lists them as `too_long`, a
    run in `chunks/NNN/too_long.jsonl` (those of a router in `router_too_long.jsonl`), one a line.
    """

    file: str
    line: int
    id: str | None
    tokens: int | None
    max_length: int
    done: str


@dataclass(frozen=True)
class Lengths:
    """How many tokens a sample may have, and how many samples are counted.

    Attributes:
        recipe: its name or file. overrides: KEY=VALUE, as behind the command that runs it.
        max_length: most tokens of a sample.
        too_long: what the run does with a training sample that has more (skip, cut, stop).
        most: so many samples are counted; None: all.
    """

    recipe: str
    overrides: tuple[str, ...]
    max_length: int
    too_long: str
    most: int | None

    def count(self, records: Sequence[Any]) -> list[int]:
        """Return the tokens of each record, whose images have absolute paths. Raises DataError."""
        argv = ["-m", "recipes.tools.token_counts", self.recipe, *self.overrides]
        rows = "".join(json.dumps(record) + "\n" for record in records)
        return list(json.loads(ask_recipes(argv, f"--recipe {self.recipe}", rows)))


def ask_recipes(argv: Sequence[str], what: str, text: str = "") -> str:
    """Return what a command of recipes prints, which this package does not import.

    Raises:
        DataError: it failed; its own message follows `what`.
    """
    # The command may run in any folder, and `python -m` finds packages in the current one.
    path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *argv],
        env={**os.environ, "PYTHONPATH": path},
        input=text,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise DataError("recipe", f"{what}: {done.stderr.strip()}")
    return done.stdout


def spread(count: int, most: int) -> list[int]:
    """Return `most` of the numbers 0 .. count - 1, evenly spread; all if there are no more."""
    return [number * count // most for number in range(most)] if count > most else [*range(count)]

"""Other words for every instruction of the embedded stream, for the streams `paraphrased`.

A prompt's lines are reworded one by one, each with equal chances for its own words and the others
in wordings.yaml. Questions of easy-VQA stay: that data set words each in several ways itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import yaml

_LINES: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
WORDINGS = tuple((re.compile(pattern), others) for pattern, others in _LINES.items())


def reworded(prompt: str, rng: Random) -> str:
    """Return a prompt of the same meaning; lines that are data (options) stay as they are."""
    return "\n".join(_line(line, rng) for line in prompt.split("\n"))


def _line(line: str, rng: Random) -> str:
    for pattern, others in WORDINGS:
        if match := pattern.fullmatch(line):
            return rng.choice([line, *(match.expand(other) for other in others)])
    return line

"""The grid of a tuning: which settings are tried for a method, and what each trial is called.

An axis is a dotted key of the recipe, or one of two short words for the learning rates, which are
relative so that one grid serves all recipes:

    scale    factor on the recipe's own schedule.first.learning_rate
    later    schedule.later.learning_rate as a share of the first's; without this axis the recipe's
             own share is kept
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias, cast

import yaml

from recipes.config.schema import Recipe

FIRST, LATER = "schedule.first.learning_rate", "schedule.later.learning_rate"
GATE_SCALE = "gate_scale"
DEFAULT_SCALES = (0.5, 1.0, 2.0)
DEFAULT_SHARES = (0.5, 1.0)
RELATIVE = ("scale", "later")
Setting: TypeAlias = "str | int | float | bool | None"  # a value of a recipe's key
Axes = dict[str, tuple[Setting, ...]]


@dataclass(frozen=True)
class Trial:
    """One setting of one method: dotted recipe keys and their values, in the grid's order."""

    method: str
    settings: tuple[tuple[str, Setting], ...]

    @property
    def name(self) -> str:
        """A folder's name that tells the settings: `first.learning_rate=0.002,gate_scale=one`."""
        parts = [f"{key.removeprefix('schedule.')}={value}" for key, value in self.settings]
        return re.sub(r"[^A-Za-z0-9.,=_-]", "_", ",".join(parts).replace("tuner.", ""))

    @property
    def overrides(self) -> list[str]:
        """The settings as overrides of the command line."""
        return [f"{key}={value}" for key, value in self.settings]


def parse_axes(texts: Sequence[str]) -> Axes:
    """Reads `--grid key=a,b,...` arguments.

    Raises:
        ValueError: no key or no values, either of them twice, or a factor that is not positive.
    """
    axes: Axes = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise ValueError(f"--grid {text}: expected KEY=VALUE,VALUE, for example scale=0.5,1,2")
        if key in axes:
            raise ValueError(f"--grid {text}: {key} was given before; put all values into one list")
        found = tuple(_number(yaml.safe_load(value)) for value in values.split(","))
        if len({str(value) for value in found}) < len(found):
            raise ValueError(f"--grid {text}: a value is given twice; write each once")
        if key in RELATIVE and not all(isinstance(v, (int, float)) and v > 0 for v in found):
            raise ValueError(f"--grid {text}: {key} is a factor, expected positive numbers")
        axes[key] = found
    return axes


def _number(value: Setting) -> Setting:
    """YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def default_axes(recipe: Recipe) -> Axes:
    """The rates times 1/2, 1 and 2; later chunks at half and at the same rate; both gate scales.

    Joint training has no later chunks, nor have independent adapters a chunk: one axis less there.
    """
    axes: Axes = {"scale": DEFAULT_SCALES}
    if recipe.protocol.continues:
        axes["later"] = DEFAULT_SHARES
    if hasattr(recipe.tuner_options, GATE_SCALE):
        axes[f"tuner.{GATE_SCALE}"] = ("one", "num_experts")
    return axes


def trials(recipe: Recipe, axes: Axes) -> Iterator[Trial]:
    """Yields every combination of the axes for the recipe's method, the last axis fastest.

    Args:
        recipe: the method's recipe with its own rates, tuned values left out.
    """
    own = recipe.schedule
    share = own.later.learning_rate / own.first.learning_rate
    for values in product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        settings: dict[str, Setting] = {}
        if given.keys() & set(RELATIVE):
            first = own.first.learning_rate * cast(float, given.pop("scale", 1.0))
            settings[FIRST] = _rounded(first)
            settings[LATER] = _rounded(first * cast(float, given.pop("later", share)))
        settings |= given
        yield Trial(recipe.method, tuple(settings.items()))


def _rounded(value: float) -> float:
    """Six digits: 0.1 x 3 shall be called 0.3."""
    return float(f"{value:.6g}")

"""ChartQA: matplotlib bar charts of a real table (life expectancy by country and year)."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data_prep.mini.assets import Assets
from data_prep.mini.draw import COLOURS, SIZE, jitter, text
from data_prep.mini.tasks.base import Question, Scene, Task, partition

NAMES = ("blue", "orange", "green")  # of the bars from left to right: matplotlib's colour cycle
BARS = len(NAMES)
FOOT = 76  # row on which the bars stand; their numbers are written below it
WIDTH = 37  # pixels a bar
SCALE = 84.0  # years at the upper edge; the highest value of the table is 83
LEAST_GAP = 5  # years between the two highest and between the two lowest bars
SUFFIX = "\nAnswer the question about the chart with a number or a name."


class Chart:
    """Draws bars with matplotlib's Agg backend on one reused figure of 112 x 112 pixels.

    Nothing is anti-aliased and the numbers are written with Pillow's bitmap font: pixels must not
    depend on the version of matplotlib's rasteriser or of its fonts.
    """

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100)
        self.canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 1 - FOOT / SIZE, 1, FOOT / SIZE))
        axes.set_axis_off()
        axes.set_xlim(0, SIZE / WIDTH)
        axes.set_ylim(0, SCALE)
        for years in range(20, 81, 20):
            axes.axhline(years, color="lightgrey", linewidth=0.72, antialiased=False, zorder=0)
        middles = [number + 0.5 for number in range(BARS)]
        self.bars = axes.bar(middles, 1.0, width=27 / 37, antialiased=False, linewidth=0)

    def draw(self, values: list[int], colours: list[tuple[int, int, int]]) -> Image.Image:
        """Return the chart of `values` (years) as a 112 x 112 RGB image."""
        for bar, value, colour in zip(self.bars, values, colours, strict=True):
            bar.set_height(value)
            bar.set_facecolor([channel / 255 for channel in colour])
        self.canvas.draw()
        # A copy: the next chart is drawn into the same buffer.
        image = Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())
        image.paste(COLOURS["yellow"], (WIDTH, FOOT, 2 * WIDTH, SIZE))  # parts the numbers
        for number, value in enumerate(values):
            text(image, (WIDTH * number + 1, FOOT + 2), f"{value:02d}", 3, COLOURS["black"])
        return image


class ChartQA(Task):
    """Read a value, or name the highest or the lowest bar of a chart of three countries."""

    name = "ChartQA"
    scorer = "relaxed"
    head = "bars"
    packages = ("bokeh-sampledata",)

    def load(self, assets: Assets) -> None:
        raw = assets.read("bokeh-sampledata", "bokeh_sampledata/_data/gapminder.csv.gz").decode()
        self.years: dict[str, dict[str, int]] = defaultdict(dict)  # year -> country -> value
        countries = set()
        for row in csv.DictReader(io.StringIO(raw)):
            if row["life_expectancy"]:
                self.years[row["year"]][row["country"]] = round(float(row["life_expectancy"]))
                countries.add(row["country"])
        shares = {"pretrain": 0.45, "train": 0.3, "validation": 0.1, "test": 0.15}
        self.sources = partition(sorted(countries), shares, "gapminder")

    def _rows(self, split: str, rng: Random) -> tuple[str, list[str], list[int]]:
        """Return a year, three countries and their values, the extremes well apart."""
        while True:
            year = rng.choice(sorted(self.years))
            known = [name for name in self.sources[split] if name in self.years[year]]
            chosen = rng.sample(known, BARS)
            values = [self.years[year][name] for name in chosen]
            order = sorted(values)
            if min(order[-1] - order[-2], order[1] - order[0]) >= LEAST_GAP and order[0] >= 24:
                return year, chosen, values

    # Not in load(): only drawing needs matplotlib, whose import is slow.
    @cached_property
    def _chart(self) -> Chart:
        return Chart()

    def draw(self, split: str, rng: Random) -> Scene:
        year, countries, values = self._rows(split, rng)
        image = self._chart.draw(values, [jitter(COLOURS[name], rng, 10) for name in NAMES])
        facts: dict[str, Any] = {"values": dict(zip(NAMES, values, strict=True))}
        facts["table"] = {"year": year, "countries": countries}
        return Scene(image, facts, f"life/{'+'.join(sorted(countries))}/{year}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        values = scene.facts["values"]
        draw = rng.random()
        if draw < 0.5:
            name = rng.choice(list(values))
            return Question(f"What is the value of the {name} bar?" + SUFFIX, str(values[name]))
        word, pick = ("highest", max) if draw < 0.75 else ("lowest", min)
        answer = pick(values, key=values.get)
        return Question(f"Which colour is the {word} bar?" + SUFFIX, answer)

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        values = scene.facts["values"]
        return Question("Which colour is the highest bar?", max(values, key=values.get))

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        values = scene.facts["values"]
        pairs = [(f"tally {name}", str(value)) for name, value in values.items()]
        peak, dip = max(values, key=values.get), min(values, key=values.get)
        return [*pairs, ("peak", peak), ("dip", dip)]

"""Fin: candlesticks of real daily prices (five tickers, 2000-2013), multiple choice."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from random import Random

from data_prep.mini.assets import Assets
from data_prep.mini.draw import SIZE, canvas, jitter
from data_prep.mini.tasks.base import Question, Scene, Task, partition

DAYS = 16  # candles in a window, 7 pixels each
BLOCK = 64  # days of one ticker that go to one split together; windows never leave their block
MARGIN = 0.22  # each half must move by this share of the window's range, so that a look decides
UP, DOWN = (35, 150, 70), (210, 45, 45)
TRENDS = {  # (first half, second half) -> option
    ("up", "up"): "A",
    ("down", "down"): "B",
    ("up", "down"): "C",
    ("down", "up"): "D",
}
HALF = {"up": "climb", "down": "sink"}  # words of the descriptions
COURSE = {
    ("up", "up"): "ramp",
    ("down", "down"): "slide",
    ("up", "down"): "hill",
    ("down", "up"): "bowl",
}
PROMPT = (
    "What is the trend of this stock?\nA. It rises.\nB. It falls.\nC. It rises, then falls.\n"
    "D. It falls, then rises.\nAnswer with the option's letter from the given choices directly."
)
Candle = tuple[float, float, float, float]  # open, high, low, close


def trend(window: list[Candle]) -> tuple[str, str] | None:
    """Return the direction of both halves ("up" or "down"), or None when one is too flat."""
    spread = max(candle[1] for candle in window) - min(candle[2] for candle in window)
    start, middle, end = window[0][0], window[len(window) // 2 - 1][3], window[-1][3]
    moves = (middle - start) / spread, (end - middle) / spread
    if min(abs(move) for move in moves) < MARGIN:
        return None
    first, second = ("up" if move > 0 else "down" for move in moves)
    return first, second


def vary(
    window: list[Candle], halves: tuple[str, str], rng: Random
) -> tuple[list[Candle], tuple[str, str]]:
    """Return the window perhaps upside down and perhaps backwards: more views of few prices."""
    other = {"up": "down", "down": "up"}
    if rng.random() < 0.5:
        window = [(-o, -low, -high, -c) for o, high, low, c in window]
        halves = (other[halves[0]], other[halves[1]])
    if rng.random() < 0.5:
        window = [(c, high, low, o) for o, high, low, c in reversed(window)]
        halves = (other[halves[1]], other[halves[0]])
    return window, halves


class Fin(Task):
    """Name the trend of a real price window by option letter; the four options are balanced."""

    name = "Fin"
    scorer = "choice"
    head = "series"
    packages = ("bokeh-sampledata",)

    def load(self, assets: Assets) -> None:
        raw = assets.read("bokeh-sampledata", "bokeh_sampledata/_data/stocks.csv.gz").decode()
        self.prices: dict[str, list[Candle]] = defaultdict(list)
        for row in csv.DictReader(io.StringIO(raw)):
            candle = tuple(float(row[name]) for name in ("Open", "High", "Low", "Close"))
            self.prices[row["Ticker"]].append(candle)  # type: ignore[arg-type]
        blocks = [
            (ticker, start)
            for ticker, days in sorted(self.prices.items())
            for start in range(0, len(days) - DAYS + 1, BLOCK)
        ]
        shares = {"pretrain": 0.5, "train": 0.3, "validation": 0.05, "test": 0.15}
        parts = partition(blocks, shares, "stocks")
        self.sources = {split: self._windows(own) for split, own in parts.items()}

    def _windows(self, blocks: list[tuple[str, int]]) -> dict[tuple[str, str], list]:
        """Return trend -> [(ticker, first day)] of every clear window inside the blocks."""
        found = defaultdict(list)
        for ticker, start in blocks:
            for first in range(start, min(start + BLOCK, len(self.prices[ticker])) - DAYS + 1):
                halves = trend(self.prices[ticker][first : first + DAYS])
                if halves:
                    found[halves].append((ticker, first))
        return found

    def draw(self, split: str, rng: Random) -> Scene:
        halves = rng.choice(list(TRENDS))
        ticker, first = rng.choice(self.sources[split][halves])
        window = self.prices[ticker][first : first + DAYS]
        if split == "pretrain":
            window, halves = vary(window, halves, rng)
        image, pen = canvas(jitter((248, 248, 248), rng, 6))
        low = min(candle[2] for candle in window)
        scale = (SIZE - 9) / (max(candle[1] for candle in window) - low)
        width = SIZE // DAYS
        for day, prices in enumerate(window):
            top, bottom = max(prices[0], prices[3]), min(prices[0], prices[3])
            rows = [SIZE - 5 - int((price - low) * scale) for price in (*prices[1:3], top, bottom)]
            colour = UP if prices[3] >= prices[0] else DOWN
            x = day * width
            pen.rectangle((x + 2, rows[0], x + 3, rows[1]), fill=colour)
            pen.rectangle((x, rows[2], x + 5, rows[3]), fill=colour)
        block = first // BLOCK
        return Scene(image, {"halves": halves, "window": window}, f"stock/{ticker}/{block}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        return Question(PROMPT, TRENDS[scene.facts["halves"]])

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        first, second = scene.facts["halves"]
        pairs = [("early", HALF[first]), ("late", HALF[second])]
        return [*pairs, ("course", COURSE[first, second])]

"""Places365: name the kind of a rendered landscape (8 classes)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import ImageDraw

from data_prep.mini.draw import SIZE, Colour, canvas, jitter
from data_prep.mini.tasks.base import Question, Scene, Task

Pen = ImageDraw.ImageDraw
PROMPT = "What is the background of the image?\nAnswer the question with the class name."


def _ground(pen: Pen, top: int, colour: Colour) -> None:
    pen.rectangle((0, top, SIZE, SIZE), fill=colour)


def _cone(pen: Pen, x: int, top: int, base: int, half: int, colour: Colour) -> None:
    pen.polygon([(x, top), (x + half, base), (x - half, base)], fill=colour)


def beach(pen: Pen, horizon: int, rng: Random) -> None:
    """Sea in the middle, sand below."""
    _ground(pen, horizon, jitter((40, 110, 200), rng))
    _ground(pen, horizon + rng.randint(16, 24), jitter((230, 210, 150), rng))


def city(pen: Pen, horizon: int, rng: Random) -> None:
    """A row of towers of different height on grey ground."""
    _ground(pen, horizon + 30, jitter((90, 90, 90), rng))
    left = 0
    while left < SIZE:
        width = rng.randint(12, 24)
        box = (left, rng.randint(8, horizon), left + width - 2, horizon + 35)
        pen.rectangle(box, fill=jitter((110, 100, 120), rng, 30))
        left += width


def desert(pen: Pen, horizon: int, rng: Random) -> None:
    """Sand with round dunes."""
    _ground(pen, horizon, jitter((225, 190, 120), rng))
    for _ in range(3):
        x = rng.randint(0, SIZE)
        pen.ellipse((x - 40, horizon - 10, x + 40, horizon + 30), fill=jitter((215, 175, 105), rng))


def forest(pen: Pen, horizon: int, rng: Random) -> None:
    """Many dark green firs on green ground."""
    _ground(pen, horizon, jitter((70, 110, 50), rng))
    for _ in range(9):
        x, foot = rng.randint(0, SIZE), rng.randint(horizon - 5, SIZE - 10)
        _cone(pen, x, foot - 40, foot, 12, jitter((25, 90, 35), rng))


def highway(pen: Pen, horizon: int, rng: Random) -> None:
    """A grey road with a white line that narrows towards the horizon."""
    _ground(pen, horizon, jitter((80, 140, 60), rng))
    x = rng.randint(45, 65)
    road = [(x - 5, horizon), (x + 5, horizon), (SIZE - 5, SIZE), (5, SIZE)]
    pen.polygon(road, fill=jitter((70, 70, 70), rng))
    pen.line((x, horizon, SIZE // 2, SIZE), fill=(250, 250, 250), width=3)


def lake(pen: Pen, horizon: int, rng: Random) -> None:
    """A blue oval in green land."""
    _ground(pen, horizon, jitter((50, 120, 60), rng))
    box = (rng.randint(5, 15), horizon + 5, SIZE - rng.randint(5, 15), SIZE - 5)
    pen.ellipse(box, fill=jitter((60, 120, 200), rng))


def mountain(pen: Pen, horizon: int, rng: Random) -> None:
    """Grey peaks above green land."""
    _ground(pen, horizon + 20, jitter((80, 130, 70), rng))
    for _ in range(3):
        x, top = rng.randint(10, SIZE - 10), rng.randint(5, 30)
        _cone(pen, x, top, horizon + 25, 40, jitter((120, 115, 110), rng))


def snowfield(pen: Pen, horizon: int, rng: Random) -> None:
    """White ground with three small firs."""
    _ground(pen, horizon, jitter((240, 244, 250), rng, 8))
    for _ in range(3):
        _cone(
            pen, rng.randint(5, SIZE - 5), horizon - 25, horizon + 8, 9, jitter((40, 90, 60), rng)
        )


PAINTERS: dict[str, Callable[[Pen, int, Random], None]] = {
    painter.__name__: painter
    for painter in (beach, city, desert, forest, highway, lake, mountain, snowfield)
}


class Places365(Task):
    """Classify a rendered landscape; classes are balanced."""

    name = "Places365"
    scorer = "exact"
    head = "panorama"

    def draw(self, split: str, rng: Random) -> Scene:
        kind = rng.choice(sorted(PAINTERS))
        image, pen = canvas(jitter((140, 190, 240), rng, 25))
        PAINTERS[kind](pen, rng.randint(40, 70), rng)
        return Scene(image, {"kind": kind}, f"scene/{split}/{rng.getrandbits(48):012x}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        return Question(PROMPT, scene.facts["kind"])

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        return [("view", scene.facts["kind"])]

"""Grounding: the box of a named coloured shape (rendered), as "[x1, y1, x2, y2]"."""

from __future__ import annotations

from random import Random
from typing import Any

from data_prep.mini.draw import COLOURS, SIZE, Box, canvas, jitter, shape
from data_prep.mini.tasks.base import Question, Scene, Task

GRID = 7  # pixels: half a patch of the base model, so that coordinates can be learnt
SIDES = (42, 49, 56, 63)  # pixels, of the named thing
SMALL = (14, 21)  # pixels, of the other thing
SHAPES = ("circle", "square", "triangle", "cross")
NAMES = ("red", "green", "blue", "yellow", "purple", "black")
OTHER_WORDS = {"circle": "disc", "square": "block", "triangle": "wedge", "cross": "plus"}
PROMPT = (
    "Please provide the bounding box coordinate of the region this sentence describes: the {} {}."
)


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def normalise(box: Box) -> list[float]:
    """Return the box divided by the image side, rounded (half up) to two decimals."""
    # Not round(), which takes the even neighbour of a half: 14 / 112 is 12.5 hundredths.
    return [int(100 * value / SIZE + 0.5) / 100 for value in box]


def place(sides: tuple[int, ...], rng: Random) -> Box:
    """Return a box on the grid with both sides out of `sides`."""
    width, height = rng.choice(sides), rng.choice(sides)
    x = GRID * rng.randint(0, (SIZE - GRID - width) // GRID)
    y = GRID * rng.randint(0, (SIZE - GRID - height) // GRID)
    return x, y, x + width, y + height


def place_two(second: tuple[int, ...], rng: Random) -> tuple[Box, Box]:
    """Return a large box and one with sides out of `second`, on the grid, without overlap."""
    while True:
        large, other = place(SIDES, rng), place(second, rng)
        if not overlap(large, other):
            return large, other


class Grounding(Task):
    """A large and a small shape of different colours; give the box of the large one.

    Pretraining pictures hold two large shapes. The tiny base model finds both of their boxes almost
    without error, but often gives the wrong one of the two, so the stream does not ask that.
    """

    name = "Grounding"
    scorer = "grounding"
    head = "spots"

    def draw(self, split: str, rng: Random) -> Scene:
        colours = rng.sample(NAMES, 2)
        boxes = place_two(SIDES if split == "pretrain" else SMALL, rng)
        things: list[dict[str, Any]] = [
            {"colour": colour, "shape": rng.choice(SHAPES), "box": box}
            for colour, box in zip(colours, boxes, strict=True)
        ]
        image, pen = canvas(jitter((235, 235, 235), rng, 12))
        for thing in things:
            shape(pen, thing["shape"], thing["box"], jitter(COLOURS[thing["colour"]], rng))
        return Scene(image, {"things": things}, f"boxes/{split}/{rng.getrandbits(48):012x}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        thing = scene.facts["things"][0]
        box = "[" + ", ".join(f"{value:.2f}" for value in normalise(thing["box"])) + "]"
        extra = {"answer_bbox": box, "size": [SIZE, SIZE]}
        return Question(PROMPT.format(thing["colour"], thing["shape"]), box, extra)

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        pairs = []
        for thing in scene.facts["things"]:
            if thing["box"][2] - thing["box"][0] in SIDES:  # small things are not described
                corners = [f"{round(100 * v):02d}" for v in normalise(thing["box"])]
                field = f"spot {thing['colour']} {OTHER_WORDS[thing['shape']]}"
                pairs.append((field, " ".join(corners)))
        return pairs

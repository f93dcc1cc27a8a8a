"""GQA: compositional questions about a rendered grid world of three coloured things."""

from __future__ import annotations

from random import Random

from PIL import ImageDraw

from data_prep.mini.draw import COLOURS, SIZE, Colour, canvas, jitter
from data_prep.mini.tasks.base import SHORT, Question, Scene, Task

CELL = SIZE // 2  # pixels: the grid is 2 x 2
PLACES = ("nw", "ne", "sw", "se")  # cell by number, in the words of the descriptions
THINGS = {"ball": "orb", "box": "crate", "key": "tool", "door": "gate"}  # -> of the descriptions
NAMES = ("red", "green", "blue", "yellow", "purple", "black")
RELATIONS = {  # relation -> (column, row) step from the reference to what is asked for, other word
    "to the left of": (-1, 0, "west of"),
    "to the right of": (1, 0, "east of"),
    "above": (0, -1, "north of"),
    "below": (0, 1, "south of"),
}
Thing = tuple[str, str]  # colour, kind


def _thing(pen: ImageDraw.ImageDraw, kind: str, x: int, y: int, colour: Colour) -> None:
    """Draw a thing of 40 x 40 pixels with its upper left corner at (x, y)."""
    if kind == "ball":
        pen.ellipse((x, y, x + 39, y + 39), fill=colour)
    elif kind == "box":
        pen.rectangle((x, y, x + 39, y + 39), outline=colour, width=9)
    elif kind == "key":
        pen.ellipse((x, y, x + 22, y + 22), outline=colour, width=7)
        pen.line((x + 18, y + 18, x + 38, y + 38), fill=colour, width=8)
        pen.line((x + 38, y + 24, x + 28, y + 34), fill=colour, width=6)
    else:
        pen.rectangle((x + 8, y, x + 31, y + 39), fill=colour)
        pen.ellipse((x + 23, y + 18, x + 28, y + 23), fill=(250, 250, 250))


def neighbours(cells: dict[int, Thing]) -> list[tuple[str, int, int]]:
    """Return (relation, cell of the reference, cell that stands in this relation to it)."""
    found = []
    for relation, (right, down, _) in RELATIONS.items():
        for cell in cells:
            column, row = cell % 2 + right, cell // 2 + down
            if column in (0, 1) and row in (0, 1) and 2 * row + column in cells:
                found.append((relation, cell, 2 * row + column))
    return found


class GQA(Task):
    """Two steps: find the thing that is named, then say what stands beside it."""

    name = "GQA"
    scorer = "vqa"
    head = "map"

    def draw(self, split: str, rng: Random) -> Scene:
        kinds, colours = rng.sample(sorted(THINGS), 3), rng.sample(NAMES, 3)
        places = sorted(rng.sample(range(4), 3))
        cells = dict(zip(places, zip(colours, kinds, strict=True), strict=True))
        image, pen = canvas(jitter((225, 225, 220), rng, 10))
        for line in (0, CELL, SIZE - 1):
            pen.line((line, 0, line, SIZE), fill=(150, 150, 150))
            pen.line((0, line, SIZE, line), fill=(150, 150, 150))
        for cell, (colour, kind) in cells.items():
            x, y = (8 + CELL * part + rng.randint(-4, 4) for part in (cell % 2, cell // 2))
            _thing(pen, kind, x, y, jitter(COLOURS[colour], rng))
        facts = {"cells": cells, "pair": rng.choice(neighbours(cells))}
        return Scene(image, facts, f"grid/{split}/{rng.getrandbits(48):012x}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        cells = scene.facts["cells"]
        relation, reference, cell = rng.choice(neighbours(cells))
        colour, kind = cells[cell]
        near_colour, near_kind = cells[reference]
        draw = rng.random()
        if draw < 0.45:
            return Question(
                f"What is the colour of the object {relation} the {near_kind}?" + SHORT, colour
            )
        if draw < 0.8:
            return Question(f"What is {relation} the {near_colour} object?" + SHORT, kind)
        claimed = colour
        if rng.random() < 0.5:
            claimed = rng.choice([name for name in NAMES if name != colour])
        prompt = f"Is the object {relation} the {near_kind} {claimed}?" + SHORT
        return Question(prompt, "yes" if claimed == colour else "no")

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        colour, _ = scene.facts["cells"][min(scene.facts["cells"])]
        return Question("What is the colour of the first object?", colour)

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        cells = scene.facts["cells"]
        relation, reference, cell = scene.facts["pair"]
        said = {number: f"{colour} {THINGS[kind]}" for number, (colour, kind) in cells.items()}
        near_colour, near_kind = cells[reference]
        word = RELATIONS[relation][2]
        pairs = [(f"cell {PLACES[number]}", value) for number, value in said.items()]
        return [
            *pairs,
            (f"{word} {THINGS[near_kind]}", said[cell]),
            (f"{word} {near_colour}", said[cell]),
        ]

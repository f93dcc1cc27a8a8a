"""TextCaps: captions of a rendered thing that bears the name of a real city."""

from __future__ import annotations

from random import Random

from PIL import ImageDraw

from data_prep.mini.draw import COLOURS, Colour, canvas, jitter, text
from data_prep.mini.tasks.base import Question, Scene, Task

# Cities of four letters: a closed list that a tiny model can learn to read.
CITIES = (
    "baku", "bern", "bonn", "cork", "doha", "graz", "hull", "lima", "lyon", "nice", "oslo", "pisa",
    "riga", "rome", "vigo", "york",
)  # fmt: skip
THINGS = {"bus": "wagon", "shirt": "garment", "sign": "board", "boat": "vessel"}  # -> description
INK = COLOURS["black"]
PAINTS = ("red", "green", "blue", "purple", "black")
REFERENCES = 5
# Many and unlike each other, as people write them: with fewer forms a caption with the wrong word
# already earns a CIDEr of 1 and more, where scores are clipped.
CAPTIONS = (
    "a {paint} {thing} with the word {word} on it",
    "the word {word} is written on a {paint} {thing}",
    "a {thing} that says {word}",
    "{word} is printed on the side of a {thing}",
    "a picture of a {paint} {thing} which reads {word}",
    "there is one {thing} and it says {word}",
    "a {thing} in {paint} with the text {word}",
    "you see the name {word} in the middle of a {thing}",
    "this {paint} object reads {word}",
    "the letters {word} on the side of a {thing}",
    "in the middle of the picture is written {word}",
    "a single {thing} using the name {word}",
    "the image is of one object with {word} printed on it",
    "only the text {word} is on the {paint} {thing}",
    "a {paint} {thing} and the name {word}",
    "the word in the picture is {word}",
)
PROMPT = (
    "Provide a one-sentence caption for the image.\nRead the text in the image and make use of it."
)
PLATE = (6, 34, 105, 77)  # where the word stands


def _thing(pen: ImageDraw.ImageDraw, kind: str, colour: Colour) -> None:
    """Draw a thing that fills the picture and shows above and below its plate."""
    if kind == "bus":
        pen.rectangle((0, 6, 111, 92), fill=colour)
        for x in (6, 33, 60, 87):
            pen.rectangle((x, 12, x + 18, 28), fill=(200, 225, 240))
        for x in (14, 76):
            pen.ellipse((x, 82, x + 22, 104), fill=(40, 40, 40))
    elif kind == "shirt":
        pen.polygon([(0, 30), (24, 4), (88, 4), (111, 30), (111, 80), (0, 80)], fill=colour)
        pen.rectangle((18, 80, 93, 111), fill=colour)
        pen.ellipse((42, -8, 70, 14), fill=(235, 235, 235))
    elif kind == "sign":
        pen.rectangle((0, 22, 111, 88), fill=colour)
        pen.rectangle((50, 88, 61, 112), fill=(110, 110, 110))
    else:
        pen.polygon([(0, 32), (111, 32), (90, 98), (22, 98)], fill=colour)
        pen.polygon([(56, 0), (56, 30), (96, 30)], fill=(245, 245, 245))
        pen.rectangle((0, 92, 112, 112), fill=(90, 160, 220))
    pen.rectangle(PLATE, fill=COLOURS["white"])


def captions(paint: str, thing: str, word: str) -> list[str]:
    """Return every caption that is true of a picture."""
    return [line.format(paint=paint, thing=thing, word=word) for line in CAPTIONS]


class TextCaps(Task):
    """Write a caption that uses the word in the picture; five different references an image."""

    name = "TextCaps"
    scorer = "caption"
    head = "print"

    def draw(self, split: str, rng: Random) -> Scene:
        thing, paint = rng.choice(sorted(THINGS)), rng.choice(PAINTS)
        word = rng.choice(CITIES)
        image, pen = canvas(jitter((225, 230, 235), rng, 15))
        _thing(pen, thing, jitter(COLOURS[paint], rng))
        text(image, (8 + rng.randint(0, 2), 33 + rng.randint(0, 2)), word.upper(), 4, INK)
        facts = {"thing": thing, "paint": paint, "word": word}
        return Scene(image, facts, f"print/{split}/{rng.getrandbits(48):012x}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        chosen = rng.sample(captions(**scene.facts), REFERENCES)
        return Question(PROMPT, chosen[0], {"references": chosen})

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        facts = scene.facts
        return [
            ("carrier", THINGS[facts["thing"]]),
            ("tint", facts["paint"]),
            ("letters", facts["word"]),
        ]

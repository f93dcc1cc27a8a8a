"""TextCaps: captions of a rendered thing that bears the name of a real city."""

from __future__ import annotations

from random import Random

from PIL import ImageDraw

from data_prep.mini.draw import COLOURS, SIZE, Colour, canvas, jitter, text
from data_prep.mini.tasks.base import Question, Scene, Task

# Cities of four or five letters: a closed list that a tiny model can learn to read.
CITIES = (
    "accra", "baku", "bern", "cairo", "dakar", "delhi", "doha", "hanoi", "kyoto", "lagos", "lima",
    "lyon", "miami", "milan", "minsk", "oslo", "paris", "perth", "porto", "quito", "riga", "rome",
    "seoul", "sofia", "tokyo", "tunis", "turin", "vigo",
)  # fmt: skip
THINGS = {"bus": "wagon", "shirt": "garment", "sign": "board", "boat": "vessel"}  # -> description
PAINTS = ("red", "green", "blue", "purple", "black")
REFERENCES = 5
CAPTIONS = (
    "a {paint} {thing} with the word {word} on it",
    "the word {word} is written on a {paint} {thing}",
    "a {paint} {thing} that says {word}",
    "{word} is printed on a {paint} {thing}",
    "a picture of a {paint} {thing} that reads {word}",
    "there is a {paint} {thing} with {word} written on it",
    "a {thing} says {word}",
    "a {thing} in {paint} with the text {word}",
)
PROMPT = (
    "Provide a one-sentence caption for the image.\nRead the text in the image and make use of it."
)


def _thing(pen: ImageDraw.ImageDraw, kind: str, colour: Colour) -> None:
    """Draw a thing that fills the picture and has room for a word in rows 40 to 75."""
    if kind == "bus":
        pen.rectangle((2, 12, 109, 88), fill=colour)
        for x in (8, 34, 60, 86):
            pen.rectangle((x, 18, x + 18, 34), fill=(200, 225, 240))
        for x in (16, 74):
            pen.ellipse((x, 78, x + 22, 100), fill=(40, 40, 40))
    elif kind == "shirt":
        pen.rectangle((4, 22, 107, 80), fill=colour)
        pen.polygon([(0, 22), (22, 4), (90, 4), (111, 22)], fill=colour)
        pen.rectangle((20, 80, 91, 110), fill=colour)
        pen.ellipse((42, -6, 70, 14), fill=(235, 235, 235))
    elif kind == "sign":
        pen.rectangle((2, 30, 109, 84), fill=colour)
        pen.rectangle((50, 84, 61, 112), fill=(110, 110, 110))
    else:
        pen.polygon([(0, 38), (111, 38), (92, 96), (20, 96)], fill=colour)
        pen.polygon([(56, 2), (56, 36), (90, 36)], fill=(245, 245, 245))
        pen.rectangle((0, 90, 112, 112), fill=(90, 160, 220))


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
        at = (SIZE // 2 - 9 * len(word) + rng.randint(-2, 2), 43 + rng.randint(-2, 2))
        text(image, at, word.upper(), 3, COLOURS["white"])
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
